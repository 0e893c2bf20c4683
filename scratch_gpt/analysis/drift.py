"""Measure how far tuning has moved a model from its base: the divergence on text, and changed answers.

V vocabulary. The divergence is KL(tuned || base) = sum over tokens of p_tuned log(p_tuned / p_base), in nats: the
penalty in preference tuning (Ziegler et al. 2019), 0 if both predict the same.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from ..generation.generate import generate_answers
from ..train.batches import Batch
from .next_token import next_token_logits
from .probe_prompts import Probe


SAME = 1e-6  # nats: differences up to this are rounding


def kl_divergence(tuned: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    """Return KL(tuned || base) from the logits (..., V) of both at each position, (...) float32, in nats."""
    tuned_logps, base_logps = tuned.float().log_softmax(-1), base.float().log_softmax(-1)
    return (tuned_logps.exp() * (tuned_logps - base_logps)).sum(-1)


@torch.no_grad()
def text_drift(tuned: nn.Module, base: nn.Module, batches: Iterable[tuple[Batch, bool]]) -> dict[str, float]:
    """Return the means {"loss", "base_loss", "kl"} over all target tokens of (batch, counted) pairs.

    Raises:
        ValueError: the vocabularies differ in size, or the batches have no targets.
    """
    check_same_vocabulary(tuned, base)
    totals, count = torch.zeros(3, dtype=torch.float64), 0
    for batch, counted in batches:
        if not counted:
            continue
        is_target = batch["shift_labels"] != -100
        inputs = {name: value for name, value in batch.items() if name != "shift_labels"}
        tuned_logits, base_logits = (
            model(**inputs, use_cache=False).logits[is_target].float() for model in (tuned, base)
        )
        labels = batch["shift_labels"][is_target]
        losses = [
            nn.functional.cross_entropy(logits, labels, reduction="sum") for logits in (tuned_logits, base_logits)
        ]
        kl = kl_divergence(tuned_logits, base_logits).sum()
        totals += torch.tensor([*map(float, losses), float(kl)], dtype=torch.float64)
        count += len(labels)
    if not count:
        raise ValueError("The text for measuring drift has no targets. Give more text.")
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
    """Return {"kl", "changed"} of probes and their prompts' ids, and a row for each changed probe, largest kl first.

    "kl" is the mean divergence of the next token; "changed" is the share of probes with different greedy answers. A
    row has the probe, its divergence and both answers; a probe without any change has no row.
    """
    check_same_vocabulary(tuned, base)
    kls = kl_divergence(*(next_token_logits(model, prompts) for model in (tuned, base))).tolist()
    answers, base_answers = (
        generate_answers(model, tokenizer, [*prompts], temperature=0, max_new_tokens=max_new_tokens)
        for model in (tuned, base)
    )
    changed = sum(answer != base_answer for answer, base_answer in zip(answers, base_answers, strict=True))
    rows = [
        {**probe._asdict(), "kl": kl, "base": base_answer, "tuned": answer}
        for probe, kl, base_answer, answer in zip(probes, kls, base_answers, answers, strict=True)
        if kl > SAME or base_answer != answer
    ]
    means = {"kl": math.fsum(kls) / len(kls), "changed": changed / len(kls)}
    return means, sorted(rows, key=lambda row: -row["kl"])


def check_same_vocabulary(tuned: nn.Module, base: nn.Module) -> None:
    """Raise a ValueError if the two models have different vocabulary sizes."""
    sizes = [cast(PreTrainedConfig, model.config).vocab_size for model in (tuned, base)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"The model has {sizes[0]} tokens and its base {sizes[1]}, so their next tokens cannot be compared. Give "
            "the base from which the model was tuned."
        )


__all__ = ["check_same_vocabulary", "kl_divergence", "prompt_drift", "text_drift"]
