"""Log-probabilities of answers -> how much better the preferred ones should be: DPO, IPO, KTO, ORPO and SimPO.

B pairs, or answers with a label; N = 2B rows of a batch, T positions. Rows [0, B) are chosen and [B, 2B) rejected. Of
KTO, rows [0, B) have a `preference` each (True is desirable), and row B + b is the prompt of row b with the answer to
another, which only KTO's baseline reads.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from .batches import Batch


# --- One line of maths each ----------------------------------------------------------------------------------------


def dpo_loss(chosen: torch.Tensor, rejected: torch.Tensor, beta: float) -> torch.Tensor:
    """Direct preference optimization (Rafailov et al. 2023, equation 7), (B,) of log-ratios (B,).

    A log-ratio is log P(answer | prompt) under the model less the same under the reference.
    """
    return -F.logsigmoid(beta * (chosen - rejected))


def ipo_loss(chosen: torch.Tensor, rejected: torch.Tensor, beta: float) -> torch.Tensor:
    """Identity preference optimization (Azar et al. 2023, equation 17), (B,) of log-ratios per token (B,)."""
    return (chosen - rejected - 1 / (2 * beta)) ** 2


def kto_loss(ratios: torch.Tensor, preference: torch.Tensor, kl: torch.Tensor, beta: float) -> torch.Tensor:
    """Kahneman-Tversky optimization (Ethayarajh et al. 2024, equation 8), (B,) of log-ratios (B,).

    Args:
        preference: (B,) True where the answer is desirable.
        kl: 0-d, how far the model is from the reference: the mean log-ratio of answers to other prompts, at least 0.
    """
    return 1 - torch.sigmoid(beta * torch.where(preference, ratios - kl, kl - ratios))


def orpo_loss(chosen: torch.Tensor, rejected: torch.Tensor, beta: float) -> torch.Tensor:
    """Odds ratio preference optimization (Hong et al. 2024, equation 7), (B,) of log-probabilities per token (B,).

    To be added to the chosen rows' cross-entropy (equation 6, where beta is called lambda).
    """
    return -beta * F.logsigmoid(log_odds(chosen) - log_odds(rejected))


def simpo_loss(chosen: torch.Tensor, rejected: torch.Tensor, beta: float, gamma: float) -> torch.Tensor:
    """Simple preference optimization (Meng et al. 2024, equation 6), (B,) of log-probabilities per token (B,)."""
    return -F.logsigmoid(beta * (chosen - rejected) - gamma)


def log_odds(logps: torch.Tensor) -> torch.Tensor:
    """log(p / (1 - p)) of log p; finite for a model that is certain."""
    logps = logps.clamp(max=-1e-6)
    return logps - torch.log(-torch.expm1(logps))


# --- The objective -------------------------------------------------------------------------------------------------


class Answers(NamedTuple):
    """What the model says of a batch's answers."""

    logps: torch.Tensor  # (N,) log P(answer | prompt), summed over the answer's tokens
    lengths: torch.Tensor  # (N,) its tokens
    whole: torch.Tensor  # 0-d, the summed cross-entropy of the chosen rows, prompts and all (ORPO's; else 0)


def read_answers(model: nn.Module, batch: Batch, with_prompts: bool = False) -> Answers:
    """One forward pass over all rows of a batch."""
    labels = batch["shift_labels"]
    answer = labels != -100  # (N, T)
    targets = _ask_prompts(batch) if with_prompts else labels
    losses = model(batch["input_ids"], shift_labels=targets, token_losses=True, use_cache=False).loss  # (N, T)
    whole = losses[: len(losses) // 2].sum() if with_prompts else losses.new_zeros(())
    return Answers(-(losses * answer).sum(-1), answer.sum(-1), whole)


def _ask_prompts(batch: Batch) -> torch.Tensor:
    # Before an answer comes its prompt: there, of a chosen row, the next token is the row's own.
    labels = batch["shift_labels"]
    is_prompt = (labels != -100).cumsum(-1) == 0
    is_prompt[len(labels) // 2 :] = False
    return torch.where(is_prompt, batch["input_ids"].roll(-1, dims=-1), labels)


LOSSES = {"dpo": dpo_loss, "ipo": ipo_loss, "kto": kto_loss, "orpo": orpo_loss, "simpo": simpo_loss}
PER_TOKEN = {"ipo", "orpo", "simpo"}  # their scores are divided by the answer's length
WITHOUT_REFERENCE = {"orpo", "simpo"}


@dataclass(frozen=True)
class Preference:
    """An objective (objectives.py) over preference batches (data/collate.py).

    Args:
        loss_type: a key of LOSSES.
        beta: how strongly the model is held to its reference; ORPO's weight beside the cross-entropy; SimPO's scale.
        gamma: SimPO's margin.
    """

    loss_type: str
    beta: float
    gamma: float = 0.5

    @property
    def needs_reference(self) -> bool:
        """Whether batches have to have `reference_logps`."""
        return self.loss_type not in WITHOUT_REFERENCE

    def counts(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Pairs (or labeled answers) as "loss"; ORPO's cross-entropy is over tokens, so it is a term of its own."""
        labels = batch["shift_labels"]
        B = len(labels) // 2
        read = labels[:B] if self.loss_type == "kto" else labels
        counts = {"loss": torch.tensor(B), "tokens": (read != -100).sum()}
        if self.loss_type == "kto":
            counts["kl"] = torch.tensor(B)
        if self.loss_type == "orpo":
            counts["nll"] = (_ask_prompts(batch)[:B] != -100).sum()
        return counts

    def baselines(self, model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """KTO's "kl", summed: it is the mean over the global batch, and no gradient goes through it."""
        if self.loss_type != "kto":
            return {}
        others = _half(batch, 1)
        return {"kl": (read_answers(model, others).logps - others["reference_logps"]).sum()}

    def sums(self, model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """The terms; a batch of KTO's has the mean of its `baselines` as "kl"."""
        batch = _half(batch, 0) if self.loss_type == "kto" else batch
        return self.terms(read_answers(model, batch, with_prompts=self.loss_type == "orpo"), batch)

    def terms(self, answers: Answers, batch: Batch) -> dict[str, torch.Tensor]:
        """What is lost on answers that were read."""
        scores, loss = self.scores(answers, batch), LOSSES[self.loss_type]
        if self.loss_type == "kto":
            return {"loss": loss(scores, batch["preference"], batch["kl"].clamp(min=0), self.beta).sum()}
        gamma = (self.gamma,) if self.loss_type == "simpo" else ()
        terms = {"loss": loss(*scores.chunk(2), self.beta, *gamma).sum()}
        return terms | ({"nll": answers.whole} if self.loss_type == "orpo" else {})

    def scores(self, answers: Answers, batch: Batch) -> torch.Tensor:
        """(N,) what the losses compare: log-ratios or log-probabilities, of whole answers or per token."""
        scores = answers.logps - batch["reference_logps"] if self.needs_reference else answers.logps
        return scores / answers.lengths if self.loss_type in PER_TOKEN else scores

    def rewards(self, answers: Answers, batch: Batch) -> torch.Tensor:
        """(N,) beta times the log-ratio to the reference, without one beta times the log-probability per token."""
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
