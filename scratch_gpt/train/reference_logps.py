"""Compute the reference log-probabilities of preference rows once, before training, and keep them in a file.

The reference is the model before its first step, so no second copy of the weights is needed.
"""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import nn

from ..utils import watchdog
from ..utils.files import DRAFT
from .accelerator import sum_over_processes
from .batches import Batch, BatchLayout, split_across_processes, to_device
from .preference_losses import read_answers


REFERENCES_FILE = "references.safetensors"


@torch.no_grad()
def reference_logps(
    accelerator: Accelerator, model: nn.Module, rows: Any, collate: Callable[[list], Batch], batch_size: int
) -> np.ndarray:
    """Return log P(answer | prompt) of both answers of each row, (rows, 2) float32, in nats.

    The rows are split over the processes.

    Args:
        rows: have `lengths`; rows of similar length share a batch.
    """
    was_training = model.training
    model.to(accelerator.device).eval()
    order = np.argsort(rows.lengths, kind="stable").tolist()
    layout = BatchLayout(batch_size, 1, accelerator.num_processes, accelerator.process_index)
    logps_of_rows = torch.zeros(len(rows), 2, device=accelerator.device)
    for numbers, is_counted in split_across_processes(order, layout.batch_size, layout.processes, layout.rank):
        watchdog.beat()
        batch = to_device(collate([rows[k] for k in numbers]), accelerator.device)
        with accelerator.autocast():
            logps = read_answers(model, batch).logps
        if is_counted:
            logps_of_rows[numbers] = logps.view(2, -1).T.float()
    model.train(was_training)
    return sum_over_processes(accelerator, logps_of_rows).cpu().numpy()


def reference_key(model: nn.Module, hashes: Mapping[str, str]) -> str:
    """Return a hash of all that a reference depends on: the weights, and `hashes` ({name: text}) of the rows."""
    digest = hashlib.sha256(repr(sorted(hashes.items())).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def write_references(file: Path, arrays: Mapping[str, np.ndarray], key: str) -> None:
    """Write arrays to a file, completely or not at all."""
    draft = file.with_name(DRAFT + file.name)
    save_file(dict(arrays), draft, metadata={"key": key})
    draft.replace(file)


def read_references(file: Path, key: str) -> dict[str, np.ndarray] | None:
    """Return the arrays of `write_references`; None if the file is missing, cannot be read or has another key."""
    try:
        with safe_open(file, framework="np") as content:
            if content.metadata() != {"key": key}:
                return None
            return {name: content.get_tensor(name) for name in content.keys()}
    except (OSError, SafetensorError):
        return None


__all__ = ["REFERENCES_FILE", "read_references", "reference_key", "reference_logps", "write_references"]
