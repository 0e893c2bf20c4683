"""Prompts of token ids -> what comes next: the next token's logits, and the nats that a given answer costs.

Prompts are padded on the left and cut at their beginning where they are longer than the model's context.
"""

from collections.abc import Sequence

import torch
from torch import nn

from ..generation.generate import pad_left


def fit_context(rows: Sequence[list[int]], model: nn.Module, room: int = 0) -> dict[str, torch.Tensor]:
    """`pad_left` of the ends that fit, where the model is; `room` of its context is left free."""
    limit = model.config.max_position_embeddings - room
    return pad_left([row[-limit:] for row in rows], next(model.parameters()).device)


@torch.no_grad()
def next_token_logits(model: nn.Module, rows: Sequence[list[int]], batch_size: int = 128) -> torch.Tensor:
    """After each row of ids: (rows, V) float32, on the CPU."""
    found = torch.empty(len(rows), model.config.vocab_size)
    order = sorted(range(len(rows)), key=lambda k: len(rows[k]))  # like lengths together
    for start in range(0, len(rows), batch_size):
        some = order[start : start + batch_size]
        batch = fit_context([rows[k] for k in some], model)
        found[some] = model(**batch, use_cache=False, logits_to_keep=1).logits[:, -1].float().cpu()
    return found


@torch.no_grad()
def answer_losses(model: nn.Module, rows: Sequence[list[int]], answer: Sequence[int]) -> torch.Tensor:
    """The nats that each token of one answer costs after each row of ids: (rows, tokens) float32, on the CPU."""
    batch = fit_context([[*row, *answer] for row in rows], model)
    n = len(answer)
    logits = model(**batch, use_cache=False, logits_to_keep=n + 1).logits[:, :-1].float()  # (B, n, V)
    return -logits.log_softmax(-1).gather(-1, batch["input_ids"][:, -n:, None])[..., 0].cpu()


__all__ = ["answer_losses", "fit_context", "next_token_logits"]
