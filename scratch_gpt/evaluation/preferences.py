"""Evaluate preferences: loss, accuracy, margin and log-probabilities, the same at every batch size."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..train.batches import Batch
from ..train.preference_losses import Answers, Preference, read_answers
from .losses import LossSums, means


TIE = 1e-4  # a smaller lead in reward is rounding; before the first step all leads are
# In 16 bits an answer and its reference, which was computed in another batch, differ by rounding: by fewer nats than
# this times the square root of the number of its tokens (seen: 0.0097, in bf16, with models of 2.6M and 124M).
ROUNDING = 0.01


@torch.no_grad()
def preference_metrics(
    model: nn.Module,
    batches: Iterable[tuple[Batch, bool]],
    objective: Preference,
    reduce: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> dict[str, float]:
    """Return {"loss", "accuracy", "margin", "chosen_logps", "rejected_logps"} and KTO's "kl": means, in nats.

    An answer's reward is beta times its log-ratio to the reference; ORPO and SimPO have no reference, so there it is
    beta times the log-probability per token (as in TRL). Margin: mean reward of the chosen answers minus that of the
    rejected ones. Accuracy: share of pairs with the larger reward for the chosen answer, or of judged answers on the
    right side of KTO's baseline; a tie counts half. The baseline, "kl", is the mean over all batches of KTO's estimate
    for a global batch. A metric without data is omitted.

    Args:
        batches, reduce: as for losses.mean_losses.
    """
    was_training = model.training
    model.eval()
    results: list[tuple[Answers, dict[str, Any], bool]] = []  # small enough to hold those of all batches
    with _types_of_products(model) as types:
        for batch, counted in batches:
            answers = read_answers(model, batch, with_prompts=objective.loss_type == "orpo")
            results.append((answers, {**batch, "counts": objective.counts(batch)}, counted))
    model.train(was_training)
    rounding = ROUNDING if objective.needs_reference and any(kind.itemsize == 2 for kind in types) else 0.0
    kls = {}
    if objective.loss_type == "kto":
        log_ratios = [
            ((answers.logps - batch["reference_logps"]).chunk(2)[1], counted) for answers, batch, counted in results
        ]
        kls = means([({"kl": (ratios.sum(), len(ratios))}, counted) for ratios, counted in log_ratios], reduce)
    kl = {name: torch.tensor(value, device=results[0][0].logps.device) for name, value in kls.items()}
    metrics = means(
        [(_sums(objective, answers, batch | kl, rounding), counted) for answers, batch, counted in results], reduce
    )
    terms = {name: metrics.pop(name) for name in ("loss", "nll") if name in metrics}
    margin = metrics.pop("chosen_rewards") - metrics.pop("rejected_rewards")
    metrics = {"accuracy": metrics.pop("accuracy"), "margin": margin, **metrics, **kls}
    defined = {name: value for name, value in metrics.items() if not math.isnan(value)}  # NaN without such answers
    return {"loss": sum(terms.values()), **defined}


@contextmanager
def _types_of_products(model: nn.Module) -> Iterator[set[torch.dtype]]:
    # Collect the output types of the model's matrix products while it runs, because autocast decides them.
    types: set[torch.dtype] = set()
    product = next(module for module in model.modules() if isinstance(module, nn.Linear))
    hook = product.register_forward_hook(lambda module, inputs, output: types.add(output.dtype))
    try:
        yield types
    finally:
        hook.remove()


def _sums(objective: Preference, answers: Answers, batch: dict[str, Any], rounding: float) -> LossSums:
    # `rounding`: the largest rounding error of one token, in nats.
    if objective.loss_type == "kto":  # drop the answers to other prompts
        answers = answers._replace(logps=answers.logps.chunk(2)[0], lengths=answers.lengths.chunk(2)[0])
        batch = batch | {"reference_logps": batch["reference_logps"].chunk(2)[0]}
    sums: LossSums = {name: (total, batch["counts"][name]) for name, total in objective.terms(answers, batch).items()}
    rewards = objective.rewards(answers, batch)
    if objective.loss_type == "kto":
        is_chosen = batch["preference"]
        lead = (rewards - objective.beta * batch["kl"].clamp(min=0)) * torch.where(is_chosen, 1, -1)
        tokens = answers.lengths
    else:
        is_chosen = torch.arange(len(rewards), device=rewards.device) < len(rewards) // 2
        lead = rewards[is_chosen] - rewards[~is_chosen]
        tokens = answers.lengths[is_chosen] + answers.lengths[~is_chosen]
    tie = (objective.beta * rounding * tokens.sqrt()).clamp(min=TIE)
    sums["accuracy"] = ((lead > tie).sum() + (lead.abs() <= tie).sum() / 2, len(lead))
    for name, values in (("logps", answers.logps), ("rewards", rewards)):
        sums[f"chosen_{name}"] = (values[is_chosen].sum(), is_chosen.sum())
        sums[f"rejected_{name}"] = (values[~is_chosen].sum(), (~is_chosen).sum())
    return sums


__all__ = ["preference_metrics"]
