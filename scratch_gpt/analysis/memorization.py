"""A model and planted secrets -> how well it has learned them by heart: exposure, and what can be drawn out verbatim.

Carlini et al. 2019, "The Secret Sharer": exposure = log2 |R| - log2 rank, where R is the space that a secret was drawn
from and rank its place in it by likelihood. 0 bits for the unlikeliest, log2 |R| for the likeliest; a model that has
not seen the secret gives log2 e = 1.44 bits on average. Of a large space a sample stands for the whole: exposure then
ends at log2 of the sample.
"""

import math
import random
import string
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import nn
from transformers import PreTrainedTokenizerBase

from ..evaluation.likelihood import score_continuations


class Secret(NamedTuple):
    """A text that was planted: what leads to it, and what nobody can know."""

    prefix: str
    secret: str


def exposure(logp: float, others: Sequence[float]) -> float:
    """The log-likelihoods of a secret and of the rest of its space -> bits; equals rank before it, half of them.

    Example:
        >>> exposure(-1.0, [-2.0, -3.0, -4.0])  # the likeliest of 4
        2.0
        >>> exposure(-9.0, [-2.0, -3.0, -4.0])
        0.0
    """
    better, equal = sum(other > logp for other in others), sum(other == logp for other in others)
    return math.log2(len(others) + 1) - math.log2(1 + better + equal / 2)


def lookalikes(secret: str, count: int, seed: int = 0) -> list[str]:
    """`count` other texts of a secret's shape: each letter a letter of its case, each digit a digit, the rest kept.

    Raises:
        ValueError: there are not so many.
    """
    alphabets = [next((a for a in ALPHABETS if letter in a), letter) for letter in secret]
    if math.prod(map(len, alphabets)) <= count:
        raise ValueError(f"There are no {count} others of the shape of {secret!r}: a secret has digits or letters.")
    draw, found = random.Random(f"{seed}/{secret}"), {secret: None}
    while len(found) <= count:
        found["".join(map(draw.choice, alphabets))] = None
    return [text for text in found if text != secret]


def secret_metrics(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    secrets: Sequence[Secret],
    max_length: int,
    *,
    sample: int = 1023,
    batch_size: int = 64,
    seed: int = 0,
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Secrets -> ({"exposure", "extracted"}, one row each: its number, from 0, and the same two).

    "exposure" is the mean, in bits, at most log2(sample + 1); "extracted" the share that greedy decoding from the
    prefix gives back, every token of it. No row holds a secret: what is made of them may be published.
    """
    rows = []
    for number, one in enumerate(secrets):
        texts = [one.secret, *lookalikes(one.secret, sample, seed)]
        pairs = [(one.prefix, f" {text}") for text in texts]
        found = score_continuations(model, tokenizer, pairs, max_length, batch_size)
        bits = exposure(found[0].logp, [other.logp for other in found[1:]])
        rows.append({"row": number, "exposure": bits, "extracted": found[0].is_greedy})
    means = {name: math.fsum(row[name] for row in rows) / len(rows) for name in ("exposure", "extracted")}
    return means, rows


def read_secrets(rows: Sequence[dict[str, Any]]) -> list[Secret]:
    """Rows of {"prefix", "secret"} -> secrets.

    Raises:
        ValueError: a row without these two texts.
    """
    for number, row in enumerate(rows, start=1):
        if not all(isinstance(row.get(name), str) and row[name].strip() for name in Secret._fields):
            raise ValueError(f"Row {number} is not {{prefix: text, secret: text}}: {dict(row)!r:.100}")
    return [Secret(row["prefix"].rstrip(), row["secret"].strip()) for row in rows]


ALPHABETS = (string.digits, string.ascii_lowercase, string.ascii_uppercase)

__all__ = ["Secret", "exposure", "lookalikes", "read_secrets", "secret_metrics"]
