"""Compute the cross-entropy of target tokens and its gradient from hidden states and the head's weights, in chunks.

N positions, D width, V vocabulary, n positions with a target in a chunk.

The plain form, `F.cross_entropy(F.linear(hidden, weight).float(), targets)`, keeps several (N, V) tensors at once:
with GPT-2's vocabulary they take most of a step's memory. Here only positions with a target are scored, all chunks
share one table (n, V), and the gradient overwrites the logits in it.

This file travels inside every checkpoint, so it imports only torch.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable


IGNORE_INDEX = -100
CHUNK_BYTES = 2**26  # of the logits of one chunk
# Chunks are padded to a multiple of CHUNK_STEP positions: for each new shape a bf16 product on a CPU keeps memory
# (torch 2.13: 0.6 MB), and the number of targets differs from batch to batch.
CHUNK_STEP = 32
ROW_ALIGNMENT = (
    64  # the rows of the table begin at multiples of 64 logits: fp32 products of odd widths are a third slower
)
# On a CPU a part of the table is processed at a time, so that the fp32 values stay in the cache: for the losses
# max(ROWS, LOGITS // V) rows, for the gradient of the weight COLUMNS columns.
ROWS, LOGITS, COLUMNS = 8, 2**16, 2048
# With AMX, oneDNN 3.12 computes (512, V) times (V, 384 to 640) on one thread, and (256, V) on all threads. If the
# hidden size is below NARROW, the product is therefore computed in pieces of PIECE rows.
NARROW, PIECE = 768, 256


def _walk(
    hidden: torch.Tensor,  # (N, D)
    weight: torch.Tensor,  # (V, D)
    targets: torch.Tensor,  # (N,)
    dtype: torch.dtype,  # of the matrix products; everything else is in fp32, or in fp64 if dtype is fp64
    needs_grad: tuple[bool, bool] = (False, False),  # of hidden, of weight
    upstream: torch.Tensor | None = None,  # (N,)
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Return each position's loss, (N,), and the needed gradients of their sum, weighted by `upstream` (or 1)."""
    V, wide = len(weight), torch.promote_types(dtype, torch.float32)
    losses = hidden.new_zeros(len(hidden), dtype=wide)
    d_hidden = torch.zeros_like(hidden) if needs_grad[0] else None
    d_weight = torch.empty_like(weight, dtype=wide) if needs_grad[1] else None  # the first chunk writes, others add

    positions = (targets != IGNORE_INDEX).nonzero().squeeze(1)
    chunks = math.ceil(len(positions) * V * dtype.itemsize / CHUNK_BYTES)
    n = CHUNK_STEP * max(1, math.ceil(len(positions) / max(1, chunks) / CHUNK_STEP))
    on_cpu = hidden.device.type == "cpu"
    rows_at_once, columns_at_once = (max(ROWS, LOGITS // V), COLUMNS) if on_cpu else (n, V)
    piece = PIECE if on_cpu and weight.shape[1] < NARROW else n
    table, weight = hidden.new_empty(n, ROW_ALIGNMENT * math.ceil(V / ROW_ALIGNMENT), dtype=dtype), weight.to(dtype)
    table[:, V:] = 0  # oneDNN 3.12 reads these with AMX (its issue 5717), and a NaN there times 0 is NaN
    for number, rows in enumerate(positions.split(n)):  # at least one chunk, even if it has no rows
        count, n = len(rows), CHUNK_STEP * math.ceil(len(rows) / CHUNK_STEP)  # the padding is zeros, with the target 0
        x = F.pad(hidden.index_select(0, rows), (0, 0, 0, n - count)).to(dtype)  # (n, D)
        target = F.pad(targets[rows], (0, n - count))  # (n,)
        logits = torch.mm(x, weight.T, out=table[:n, :V])
        parts = zip(logits.split(rows_at_once), target.split(rows_at_once), strict=True)
        loss = torch.cat(
            [_losses(part, part_target, overwrite=any(needs_grad)) for part, part_target in parts]
        )  # (n,)
        losses[rows] = loss[:count]
        if not any(needs_grad):
            continue
        # 1 - p without cancellation. (An index put, because scatter_ would copy the complete table twice.)
        logits[torch.arange(n, device=target.device), target] = torch.expm1(-loss).to(dtype)
        factor = None if upstream is None else F.pad(upstream[rows].to(wide), (0, n - count)).unsqueeze(1)  # (n, 1)
        if d_hidden is not None:
            d_x = torch.cat([part @ weight for part in logits.split(piece)])
            d_x = d_x if factor is None else d_x.to(wide) * factor
            d_hidden.index_copy_(0, rows, d_x[:count].to(hidden.dtype))
        if d_weight is not None:
            x = x if factor is None else (x.to(wide) * factor).to(dtype)
            for block, part in zip(logits.split(columns_at_once, 1), d_weight.split(columns_at_once), strict=True):
                part.add_(block.T @ x) if number else part.copy_(block.T @ x)
    return losses, d_hidden, d_weight


def _losses(logits: torch.Tensor, targets: torch.Tensor, *, overwrite: bool) -> torch.Tensor:
    """Return the losses (n,) of rows of logits (n, V); the logits are lost, `overwrite` stores probabilities there."""
    z = logits.to(torch.promote_types(logits.dtype, torch.float32))  # no copy if they are in fp32 already
    largest, z_target = z.amax(1, keepdim=True), z.gather(1, targets.unsqueeze(1))  # (n, 1)
    p = z.sub_(largest).exp_()
    total = p.sum(1, keepdim=True)
    if overwrite:
        logits.copy_(p.mul_(1 / total))
    return (largest - z_target + total.log()).squeeze(1)


class _LinearCrossEntropy(torch.autograd.Function):
    """Compute the gradient of a summed loss in the forward pass, and the gradient of single losses in the backward."""

    @staticmethod
    def forward(ctx, hidden, weight, targets, dtype, summed):
        needs_grad = ctx.needs_input_grad[:2] if summed else (False, False)
        losses, *gradients = _walk(hidden, weight, targets, dtype, needs_grad)
        ctx.save_for_backward(hidden, weight, targets)
        ctx.dtype, ctx.gradients = dtype, gradients if summed else None
        return losses.sum() if summed else losses

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):
        hidden, weight, targets = ctx.saved_tensors
        if ctx.gradients is not None:  # release them: a tensor without other owners becomes `.grad` uncopied
            gradients, ctx.gradients = ctx.gradients, None
            gradients = [None if gradient is None else gradient.mul_(upstream) for gradient in gradients]
        else:
            upstream = upstream.expand(len(targets))
            _, *gradients = _walk(hidden, weight, targets, ctx.dtype, ctx.needs_input_grad[:2], upstream)
        d_hidden, d_weight = gradients
        return d_hidden, None if d_weight is None else d_weight.to(weight.dtype), None, None, None


@torch.compiler.disable  # the number of targets changes with the batch, so the compiled graph breaks here
def linear_cross_entropy(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, *, summed: bool = True
) -> torch.Tensor:
    """Compute the cross-entropy in nats of softmax(hidden @ weight.T), hidden (..., D), weight (V, D), targets (...).

    It equals the plain form up to rounding. Under autocast the matrix products are in its type and the rest in fp32.

    Returns:
        The sum over the targets; with `summed=False` each loss, shaped as `targets`, 0 at -100.
    """
    device, dtype = hidden.device.type, hidden.dtype
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    flat = (hidden.reshape(-1, hidden.shape[-1]), weight, targets.reshape(-1).to(hidden.device), dtype)
    if torch.is_grad_enabled():
        losses = _LinearCrossEntropy.apply(*flat, summed)
    else:
        losses = _walk(*flat)[0]
        losses = losses.sum() if summed else losses
    return losses if summed else losses.view(targets.shape)


def head_losses(head: nn.Module, hidden: torch.Tensor, targets: torch.Tensor, *, summed: bool = True) -> torch.Tensor:
    """Compute the cross-entropy of any head: `linear_cross_entropy` for a plain nn.Linear.

    A head that is adapted, quantized, sharded or hooked computes its logits instead, at positions with a target only.
    """
    hooks = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
    is_plain = type(head) is nn.Linear and head.bias is None and type(head.weight.data) is torch.Tensor
    if is_plain and "forward" not in vars(head) and not any(getattr(head, name) for name in hooks):
        return linear_cross_entropy(hidden, head.weight, targets, summed=summed)  # pyright: ignore[reportCallIssue]
    is_target = targets.to(hidden.device) != IGNORE_INDEX
    logits = head(hidden[is_target])
    losses = F.cross_entropy(logits.float(), targets.to(logits.device)[is_target.to(logits.device)], reduction="none")
    if summed:
        return losses.sum()
    return losses.new_zeros(targets.shape).masked_scatter(is_target.to(losses.device), losses)


__all__ = ["head_losses", "linear_cross_entropy"]
