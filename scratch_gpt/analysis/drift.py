"""A tuned model and the one it was tuned from -> how far tuning has moved it: on text, and answer by answer.

V vocabulary. The divergence is KL(tuned || base) = sum over tokens of p_tuned log(p_tuned / p_base), in nats: the
penalty that tuning by preferences pays (Ziegler et al. 2019), 0 where both say the same.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from ..generation.generate import generate_answers
from ..train.objectives import Batch
from .next_token import next_token_logits
from .probe_prompts import Probe


SAME = 1e-6  # nats: what rounding alone can make of 0


def kl_divergence(tuned: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    """Logits (..., V) of both -> KL(tuned || base) at each place, (...) float32, in nats."""
    ours, theirs = tuned.float().log_softmax(-1), base.float().log_softmax(-1)
    return (ours.exp() * (ours - theirs)).sum(-1)


@torch.no_grad()
def text_drift(tuned: nn.Module, base: nn.Module, batches: Iterable[tuple[Batch, bool]]) -> dict[str, float]:
    """Batches of (batch, counted) -> {"loss", "base_loss", "kl"}, means over all asked tokens.

    Raises:
        ValueError: vocabularies of two sizes, or nothing is asked.
    """
    check_same_vocabulary(tuned, base)
    totals, count = torch.zeros(3, dtype=torch.float64), 0
    for batch, counted in batches:
        if not counted:
            continue
        asked = batch["shift_labels"] != -100
        inputs = {name: value for name, value in batch.items() if name != "shift_labels"}
        ours, theirs = (model(**inputs, use_cache=False).logits[asked].float() for model in (tuned, base))
        labels = batch["shift_labels"][asked]
        losses = [nn.functional.cross_entropy(logits, labels, reduction="sum") for logits in (ours, theirs)]
        totals += torch.tensor([*map(float, losses), float(kl_divergence(ours, theirs).sum())], dtype=torch.float64)
        count += len(labels)
    if not count:
        raise ValueError("Nothing is asked in the text that drift is measured on. Give more of it.")
    return dict(zip(("loss", "base_loss", "kl"), (totals / count).tolist(), strict=True))


@torch.no_grad()
def prompt_drift(
    tuned: nn.Module,
    base: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    probes: Sequence[Probe],
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int = 40,
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Probes, and the ids of each as a prompt -> ({"kl", "changed"}, what has changed, the most first).

    "kl" is the mean divergence of the next token; "changed" the share of the probes whose greedy answers differ. Each
    row has the probe, its divergence and both answers; a probe that tuning left alone has none.
    """
    check_same_vocabulary(tuned, base)
    kls = kl_divergence(*(next_token_logits(model, prompts) for model in (tuned, base))).tolist()
    options = {"temperature": 0, "max_new_tokens": max_new_tokens}
    answers, before = (generate_answers(model, tokenizer, [*prompts], **options) for model in (tuned, base))
    changed = sum(one != other for one, other in zip(answers, before, strict=True))
    rows = [
        {**probe._asdict(), "kl": kl, "base": old, "tuned": new}
        for probe, kl, old, new in zip(probes, kls, before, answers, strict=True)
        if kl > SAME or old != new
    ]
    means = {"kl": math.fsum(kls) / len(kls), "changed": changed / len(kls)}
    return means, sorted(rows, key=lambda row: -row["kl"])


def check_same_vocabulary(tuned: nn.Module, base: nn.Module) -> None:
    """Raise a ValueError where the two models do not know the same number of tokens."""
    sizes = tuned.config.vocab_size, base.config.vocab_size
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"The model knows {sizes[0]} tokens and its base {sizes[1]}: their next tokens cannot be compared. Give "
            "the base that it was tuned from."
        )


__all__ = ["check_same_vocabulary", "kl_divergence", "prompt_drift", "text_drift"]
