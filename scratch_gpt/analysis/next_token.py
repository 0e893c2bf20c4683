"""Compute the next token's logits after prompts of token ids, and the losses of a given answer.

Prompts are padded on the left. If they are longer than the model's context, they lose their beginning.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import nn
from transformers import PreTrainedConfig

from ..generation.generate import PaddedRows, pad_left


def fit_context(rows: Sequence[list[int]], model: nn.Module, reserved: int = 0) -> PaddedRows:
    """Cut rows to the ends that fit into the model's context without `reserved` tokens, and pad them on its device."""
    limit = cast(PreTrainedConfig, model.config).max_position_embeddings - reserved
    return pad_left([row[-limit:] for row in rows], next(model.parameters()).device)


@torch.no_grad()
def next_token_logits(model: nn.Module, rows: Sequence[list[int]], batch_size: int = 128) -> torch.Tensor:
    """Return the logits after each row of ids: (rows, V) float32, on the CPU."""
    logits = torch.empty(len(rows), cast(PreTrainedConfig, model.config).vocab_size)
    order = sorted(range(len(rows)), key=lambda k: len(rows[k]))  # batches of similar lengths
    for start in range(0, len(rows), batch_size):
        indices = order[start : start + batch_size]
        batch = fit_context([rows[k] for k in indices], model)
        logits[indices] = model(**batch, use_cache=False, logits_to_keep=1).logits[:, -1].float().cpu()
    return logits


@torch.no_grad()
def answer_losses(model: nn.Module, rows: Sequence[list[int]], answer: Sequence[int]) -> torch.Tensor:
    """Return the loss of each token of one answer after each row of ids: (rows, tokens) float32, in nats."""
    batch = fit_context([[*row, *answer] for row in rows], model)
    n = len(answer)
    logits = model(**batch, use_cache=False, logits_to_keep=n + 1).logits[:, :-1].float()  # (B, n, V)
    return -logits.log_softmax(-1).gather(-1, batch["input_ids"][:, -n:, None])[..., 0].cpu()


__all__ = ["answer_losses", "fit_context", "next_token_logits"]
