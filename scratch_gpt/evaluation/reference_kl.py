"""Sample answers from a model before its first step, and later measure how far it has moved from them.

N answers, T positions.
"""

import numpy as np
import torch
from torch import nn

from ..data.rows.collate import collate_rows
from ..data.rows.windows import IGNORED
from ..generation.generate import generate, pad_left
from ..train.batches import Batch


@torch.no_grad()
def sample_answers(
    model: nn.Module, prompts: list[list[int]], eos_token_id: int, max_new_tokens: int = 32, seed: int = 0
) -> Batch:
    """Sample one answer to each prompt: {"input_ids", "shift_labels", "reference_losses"}.

    Each is (N, T); the last holds -log P of each sampled token, in nats, and 0 elsewhere.
    """
    device = next(model.parameters()).device
    batch = pad_left(prompts, device)
    ids = generate(model, **batch, max_new_tokens=max_new_tokens, eos_token_id=eos_token_id, seed=seed)
    answers = ids[:, batch["input_ids"].shape[1] :].tolist()
    rows = []
    for prompt, answer in zip(prompts, answers, strict=True):
        answer = answer[: answer.index(eos_token_id) + 1] if eos_token_id in answer else answer
        row, n = np.array([*prompt, *answer]), len(prompt) - 1
        rows.append({"input_ids": row[:-1], "shift_labels": np.array([IGNORED] * n + answer)})
    labeled = {name: tensor.to(device) for name, tensor in collate_rows(rows, eos_token_id).items()}
    return {**labeled, "reference_losses": _token_losses(model, labeled)}


@torch.no_grad()
def kl_from_reference(model: nn.Module, batch: Batch) -> float:
    """Estimate KL(reference || model) in nats per token on the reference's answers (`sample_answers`)."""
    log_ratios = batch["reference_losses"] - _token_losses(model, batch)
    return float(kl_estimate(log_ratios)[batch["shift_labels"] != IGNORED].mean())


def kl_estimate(log_ratios: torch.Tensor) -> torch.Tensor:
    """Return (q/p - 1) - log(q/p) of tokens drawn from p: at least 0, with mean KL(p || q) (Schulman 2020, "k3")."""
    return torch.expm1(log_ratios) - log_ratios


def _token_losses(model: nn.Module, batch: Batch) -> torch.Tensor:
    was_training = model.training
    model.eval()
    output = model(batch["input_ids"], shift_labels=batch["shift_labels"], token_losses=True, use_cache=False)
    losses = output.loss.float()
    model.train(was_training)
    return losses


__all__ = ["kl_estimate", "kl_from_reference", "sample_answers"]
