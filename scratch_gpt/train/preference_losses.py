"""Compute preference losses from log-probabilities of answers: DPO, IPO, KTO, ORPO and SimPO.

B pairs, or answers with a label; N = 2B rows of a batch, T positions. Rows [0, B) are chosen and [B, 2B) rejected. In
KTO's batches, rows [0, B) have a `preference` (True is desirable), and row B + b is the prompt of row b with the
answer to another prompt; only KTO's baseline reads it.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from .batches import Batch


# --- One formula each ----------------------------------------------------------------------------------------------


def dpo_loss(chosen: torch.Tensor, rejected: torch.Tensor, beta: float) -> torch.Tensor:
    """Return the losses (B,) of direct preference optimization from log-ratios (B,).

    Rafailov et al. 2023, equation 7. A log-ratio is log P(answer | prompt) under the model minus the same under the
    reference.
    """
    return -F.logsigmoid(beta * (chosen - rejected))


def ipo_loss(chosen: torch.Tensor, rejected: torch.Tensor, beta: float) -> torch.Tensor:
    """Return the losses (B,) of identity preference optimization from log-ratios per token (B,).

    Azar et al. 2023, equation 17.
    """
    return (chosen - rejected - 1 / (2 * beta)) ** 2


def kto_loss(ratios: torch.Tensor, preference: torch.Tensor, kl: torch.Tensor, beta: float) -> torch.Tensor:
    """Return the losses (B,) of Kahneman-Tversky optimization from log-ratios (B,).

    Ethayarajh et al. 2024, equation 8.

    Args:
        preference: (B,) True if the answer is desirable.
        kl: 0-d, distance of the model from the reference: the mean log-ratio of answers to other prompts, at least 0.
    """
    return 1 - torch.sigmoid(beta * torch.where(preference, ratios - kl, kl - ratios))


def orpo_loss(chosen: torch.Tensor, rejected: torch.Tensor, beta: float) -> torch.Tensor:
    """Return the losses (B,) of odds ratio preference optimization from log-probabilities per token (B,).

    Hong et al. 2024, equation 7. Add them to the chosen rows' cross-entropy (equation 6, where beta is called lambda).
    """
    return -beta * F.logsigmoid(log_odds(chosen) - log_odds(rejected))


def simpo_loss(chosen: torch.Tensor, rejected: torch.Tensor, beta: float, gamma: float) -> torch.Tensor:
    """Return the losses (B,) of simple preference optimization from log-probabilities per token (B,).

    Meng et al. 2024, equation 6.
    """
    return -F.logsigmoid(beta * (chosen - rejected) - gamma)


def log_odds(logps: torch.Tensor) -> torch.Tensor:
    """Return log(p / (1 - p)) from log p; it is finite even if p is 1."""
    logps = logps.clamp(max=-1e-6)
    return logps - torch.log(-torch.expm1(logps))


# --- The objective -------------------------------------------------------------------------------------------------


class Answers(NamedTuple):
    """The model's log-probabilities of a batch's answers."""

    logps: torch.Tensor  # (N,) log P(answer | prompt), summed over the answer's tokens
    lengths: torch.Tensor  # (N,) tokens of the answer
    whole: torch.Tensor  # 0-d, the summed cross-entropy of the chosen rows with their prompts (for ORPO; else 0)


def read_answers(model: nn.Module, batch: Batch, with_prompts: bool = False) -> Answers:
    """Compute the log-probabilities of a batch's answers in one forward pass."""
    labels = batch["shift_labels"]
    answer = labels != -100  # (N, T)
    targets = _add_prompt_targets(batch) if with_prompts else labels
    losses = model(batch["input_ids"], shift_labels=targets, token_losses=True, use_cache=False).loss  # (N, T)
    whole = losses[: len(losses) // 2].sum() if with_prompts else losses.new_zeros(())
    return Answers(-(losses * answer).sum(-1), answer.sum(-1), whole)


def _add_prompt_targets(batch: Batch) -> torch.Tensor:
    # In the prompt of a chosen row, make the next token of the row the target.
    labels = batch["shift_labels"]
    is_prompt = (labels != -100).cumsum(-1) == 0
    is_prompt[len(labels) // 2 :] = False
    return torch.where(is_prompt, batch["input_ids"].roll(-1, dims=-1), labels)


LOSSES = {"dpo": dpo_loss, "ipo": ipo_loss, "kto": kto_loss, "orpo": orpo_loss, "simpo": simpo_loss}
PER_TOKEN = {"ipo", "orpo", "simpo"}  # their scores are divided by the answer's length
WITHOUT_REFERENCE = {"orpo", "simpo"}


@dataclass(frozen=True)
class Preference:
    """An objective (objectives.py) over preference batches (data/rows/collate.py).

    Args:
        loss_type: a key of LOSSES.
        beta: strength of the pull to the reference; for ORPO the weight of its term, for SimPO the scale.
        gamma: SimPO's margin.
    """

    loss_type: str
    beta: float
    gamma: float = 0.5

    @property
    def needs_reference(self) -> bool:
        """Return whether batches need `reference_logps`."""
        return self.loss_type not in WITHOUT_REFERENCE

    def counts(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Count pairs (or labeled answers) as "loss"; ORPO's cross-entropy is a separate term, counted in tokens."""
        labels = batch["shift_labels"]
        B = len(labels) // 2
        read = labels[:B] if self.loss_type == "kto" else labels
        counts = {"loss": torch.tensor(B), "tokens": (read != -100).sum()}
        if self.loss_type == "kto":
            counts["kl"] = torch.tensor(B)
        if self.loss_type == "orpo":
            counts["nll"] = (_add_prompt_targets(batch)[:B] != -100).sum()
        return counts

    def baselines(self, model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """Return the sum of KTO's "kl", which is a mean over the global batch and has no gradient."""
        if self.loss_type != "kto":
            return {}
        others = _half(batch, 1)
        return {"kl": (read_answers(model, others).logps - others["reference_logps"]).sum()}

    def sums(self, model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """Return the summed terms; a batch for KTO has the mean of its `baselines` as "kl"."""
        batch = _half(batch, 0) if self.loss_type == "kto" else batch
        return self.terms(read_answers(model, batch, with_prompts=self.loss_type == "orpo"), batch)

    def terms(self, answers: Answers, batch: Batch) -> dict[str, torch.Tensor]:
        """Return the summed terms of the loss, from the output of `read_answers`."""
        scores, loss = self.scores(answers, batch), LOSSES[self.loss_type]
        if self.loss_type == "kto":
            return {"loss": loss(scores, batch["preference"], batch["kl"].clamp(min=0), self.beta).sum()}
        gamma = (self.gamma,) if self.loss_type == "simpo" else ()
        terms = {"loss": loss(*scores.chunk(2), self.beta, *gamma).sum()}
        return terms | ({"nll": answers.whole} if self.loss_type == "orpo" else {})

    def scores(self, answers: Answers, batch: Batch) -> torch.Tensor:
        """Return the scores (N,) that the losses compare: log-ratios or log-probabilities, summed or per token."""
        scores = answers.logps - batch["reference_logps"] if self.needs_reference else answers.logps
        return scores / answers.lengths if self.loss_type in PER_TOKEN else scores

    def rewards(self, answers: Answers, batch: Batch) -> torch.Tensor:
        """Return the rewards (N,): beta times the log-ratio, or the log-probability per token without a reference."""
        values = answers.logps - batch["reference_logps"] if self.needs_reference else answers.logps / answers.lengths
        return self.beta * values


def _half(batch: Batch, n: int) -> Batch:
    return {**batch, **{key: batch[key].chunk(2)[n] for key in ("input_ids", "shift_labels", "reference_logps")}}


__all__ = [
    "LOSSES",
    "Answers",
    "Preference",
    "dpo_loss",
    "ipo_loss",
    "kto_loss",
    "log_odds",
    "orpo_loss",
    "read_answers",
    "simpo_loss",
]
