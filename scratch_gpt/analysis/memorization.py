"""Measure how well a model has memorized planted secrets: exposure, and verbatim extraction.

Carlini et al. 2019, "The Secret Sharer": exposure = log2 |R| - log2 rank. R is the space of possible secrets, and
rank is the secret's position in it by likelihood: 0 bits for the least likely, log2 |R| for the most likely. A model
that has not seen the secret gives log2 e = 1.44 bits on average. A large space is sampled; then exposure is at most
log2 of the sample's size.
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
    """A planted text: a prefix, and the secret that follows it."""

    prefix: str
    secret: str


def exposure(logp: float, other_logps: Sequence[float]) -> float:
    """Return the exposure in bits from the log-likelihoods of a secret and of the other texts in its space.

    Of the equally likely texts, half rank before it.

    Example:
        >>> exposure(-1.0, [-2.0, -3.0, -4.0])  # the most likely of 4
        2.0
        >>> exposure(-9.0, [-2.0, -3.0, -4.0])
        0.0
    """
    better, equal = sum(x > logp for x in other_logps), sum(x == logp for x in other_logps)
    return math.log2(len(other_logps) + 1) - math.log2(1 + better + equal / 2)


def lookalikes(secret: str, count: int, seed: int = 0) -> list[str]:
    """Return `count` other texts of a secret's shape: letters for letters of the same case, digits for digits.

    Raises:
        ValueError: fewer than `count` such texts exist.
    """
    alphabets = [next((a for a in ALPHABETS if letter in a), letter) for letter in secret]
    if math.prod(map(len, alphabets)) <= count:
        raise ValueError(f"Fewer than {count} other texts have the shape of {secret!r}. Give more digits or letters.")
    generator = random.Random(f"{seed}/{secret}")
    texts = {secret: None}  # an ordered set
    while len(texts) <= count:
        texts["".join(map(generator.choice, alphabets))] = None
    return [text for text in texts if text != secret]


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
    """Return {"exposure", "extracted"} over all secrets, and one row each: its number, from 0, and the same two.

    "exposure" is the mean, in bits, at most log2(sample + 1). "extracted" is the share of secrets that greedy decoding
    from the prefix reproduces completely. No row holds a secret, so the rows may be published.
    """
    rows = []
    for number, (prefix, secret) in enumerate(secrets):
        texts = [secret, *lookalikes(secret, sample, seed)]
        pairs = [(prefix, f" {text}") for text in texts]
        likelihood, *negatives = score_continuations(model, tokenizer, pairs, max_length, batch_size)
        bits = exposure(likelihood.logp, [negative.logp for negative in negatives])
        rows.append({"row": number, "exposure": bits, "extracted": likelihood.is_greedy})
    means = {name: math.fsum(row[name] for row in rows) / len(rows) for name in ("exposure", "extracted")}
    return means, rows


def read_secrets(rows: Sequence[dict[str, Any]]) -> list[Secret]:
    """Read secrets from rows of {"prefix", "secret"}.

    Raises:
        ValueError: a row lacks these two texts.
    """
    for number, row in enumerate(rows, start=1):
        if not all(isinstance(row.get(name), str) and row[name].strip() for name in Secret._fields):
            raise ValueError(f"Row {number} is not {{prefix: text, secret: text}}: {dict(row)!r:.100}")
    return [Secret(row["prefix"].rstrip(), row["secret"].strip()) for row in rows]


ALPHABETS = (string.digits, string.ascii_lowercase, string.ascii_uppercase)

__all__ = ["Secret", "exposure", "lookalikes", "read_secrets", "secret_metrics"]
