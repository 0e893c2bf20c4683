"""Choose the peak learning rate and the epochs of a run that gives none. Not a recipe itself.

The rates of pretrained models are those for GPT-2, whose hidden size is 768. Wider models get lower rates: with Adam,
the best rate of a hidden matrix is proportional to 1 / width (Yang et al. 2022, "Tensor Programs V",
https://arxiv.org/abs/2203.03466). Narrower models were trained on less text than GPT-2, and need higher rates than
this rule gives. Theirs come from a sweep (training/docs/finetune.md).
"""

import math
from typing import NamedTuple

import numpy as np

from scratch_gpt_training.support.options import Run


GPT2_WIDTH = 768
FACTORS = {  # width: its rate / GPT-2's; narrower models get the first
    "full": {128: 14.7, 384: 6, GPT2_WIDTH: 1},
    "lora": {128: 7.35, GPT2_WIDTH: 1},
}
FROM_SCRATCH = 1e-3  # of random weights, at every width
FULL, LORA = 5e-5, 5e-4  # of a pretrained model at GPT-2's width; FULL is also for its last blocks or its head alone
RATES = {  # task: rates at GPT-2's width
    "pretrain": {"full": FULL, "lora": LORA},
    "classify": {"full": FULL, "lora": LORA},
    "instruct": {"full": FULL, "lora": LORA},
    "prefer": {"full": FULL / 10, "lora": LORA / 10},
}
EPOCHS, MOST_EPOCHS = 3, 10  # without any limit; small data sets get more than 3 in some recipes


class Rate(NamedTuple):
    """A peak learning rate, and its reason in words."""

    value: float
    reason: str


def default_rate(task: str, tune: str, hidden_size: int, from_scratch: bool) -> Rate:
    """Return the default peak rate.

    Args:
        task: pretrain, classify, instruct or prefer.
        tune: what is trained, as in `--tune`.
        from_scratch: the model has random weights.

    Example:
        >>> default_rate("classify", "full", hidden_size=128, from_scratch=False)
        Rate(value=0.000735, reason="5e-5 at GPT-2's width of 768, adapted to 128")
    """
    if from_scratch:
        return Rate(FROM_SCRATCH, "the default of a new model")
    kind = "lora" if tune == "lora" else "full"
    rate = RATES[task][kind]
    if hidden_size == GPT2_WIDTH:
        return Rate(rate, f"the default at GPT-2's width of {GPT2_WIDTH}")
    if hidden_size > GPT2_WIDTH:
        factor = GPT2_WIDTH / hidden_size
    else:  # a straight line between the logarithms
        widths, factors = np.log([*FACTORS[kind]]), np.log([*FACTORS[kind].values()])
        factor = math.exp(np.interp(math.log(hidden_size), widths, factors))
    reason = f"{spell_rate(rate)} at GPT-2's width of {GPT2_WIDTH}, adapted to {hidden_size}"
    return Rate(float(f"{rate * factor:.3g}"), reason)


def resolve_rate(run: Run, task: str, hidden_size: int, record: dict | None) -> Rate:
    """Return the peak rate of a run: its own, that of the checkpoint that it resumes, or the default.

    Args:
        record: what the checkpoint has recorded about its run; None without a checkpoint. Before rates followed the
            width, the checkpoint had a resolved rate, and run.yaml had none.
    """
    saved: float | None = None if record is None else record["config"]["learning_rate"]
    if saved is not None and run.learning_rate in (None, saved):
        return Rate(saved, "that of the checkpoint")
    if run.learning_rate is not None:
        return Rate(run.learning_rate, "as given")
    return default_rate(task, run.tune, hidden_size, run.model is None)


def spell_rate(rate: float) -> str:
    """Return a rate as people write it.

    >>> [spell_rate(rate) for rate in (5e-5, 2.5e-05, 0.001, 0.05, 0.0)]
    ['5e-5', '2.5e-5', '1e-3', '0.05', '0']
    """
    if not 0 < rate < 0.01:
        return f"{rate:g}"
    digits, exponent = f"{rate:.5e}".split("e")
    return f"{float(digits):g}e{int(exponent)}"


def describe_rate(rate: Rate) -> str:
    """Return the line that a run prints."""
    return f"Learning rate {spell_rate(rate.value)}: {rate.reason}."


def default_epochs(rows: int, batch: int, min_steps: int) -> int:
    """Return the default number of epochs: 3, or as many as take `min_steps` steps, at most 10.

    Args:
        batch: rows of an optimizer step.

    >>> [default_epochs(rows, batch=8, min_steps=1000) for rows in (500, 2000, 10_000)]
    [10, 4, 3]
    """
    return min(MOST_EPOCHS, max(EPOCHS, math.ceil(min_steps * batch / max(1, rows))))


def resolve_epochs(run: Run, rows: int | None, batch: int, record: dict | None) -> float | None:
    """Return the epochs of a run: its own, those of the checkpoint that it resumes, or the default without any limit.

    Args:
        rows: rows of an epoch; None for a stream.
        batch: rows of an optimizer step.
        record: what the checkpoint has recorded about its run; None without a checkpoint.
    """
    if rows is None or has_limit(run):
        return run.epochs
    return default_epochs(rows, batch, run.MIN_STEPS) if record is None else recorded_epochs(record)


def has_limit(run: Run) -> bool:
    """Return whether a run says how long it trains."""
    return (run.epochs, run.max_steps, run.max_tokens) != (None, None, None)


def recorded_epochs(record: dict) -> float:
    """Return the epochs of a checkpoint without any limit; before small data sets got more, they were not recorded."""
    return record["config"]["epochs"] or EPOCHS
