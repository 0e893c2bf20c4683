"""Collate rows to batches of int64 tensors (B, T), padding short rows on the right.

Padding has no targets (-100) and needs no attention_mask, because with causal attention no token sees later ones. In
packed rows the positions of the padding restart at 0, like another document. Classified rows (labels.py) are read at
their last token, so their batches have an attention_mask.
"""

from typing import Any

import numpy as np
import torch

from .windows import IGNORED


LENGTH_STEP = 8  # tokens


def collate_rows(
    rows: list[dict[str, np.ndarray]],
    pad_token_id: int = 0,
    length: int | None = None,
    max_length: int | None = None,
) -> dict[str, torch.Tensor]:
    """Return a batch {"input_ids", "shift_labels"} of rows, with "position_ids" if they are packed.

    Each tensor is (B, T) int64. T is `length`, or the longest row, rounded up to a multiple of 8 (at most
    `max_length`) if `max_length` is given. Rounding limits the number of shapes: on a CPU, bf16 matrix products keep
    memory for every new shape (torch 2.13: 0.6 MB each).
    """
    T = length or max(len(row["input_ids"]) for row in rows)
    if length is None and max_length is not None:
        T = max(T, min(-(-T // LENGTH_STEP) * LENGTH_STEP, max_length))
    batch = {}
    for key in rows[0]:
        filled = np.empty((len(rows), T), dtype=np.int64)
        for b, row in enumerate(rows):
            n = len(row[key])
            filled[b, :n] = row[key]
            filled[b, n:] = {"input_ids": pad_token_id, "shift_labels": IGNORED, "position_ids": np.arange(T - n)}[key]
        batch[key] = torch.from_numpy(filled)
    return batch


def collate_labeled(
    rows: list[dict[str, np.ndarray]], pad_token_id: int = 0, max_length: int | None = None
) -> dict[str, torch.Tensor]:
    """Return a batch {"input_ids", "attention_mask": (B, T) int64, "labels": (B,) int64 or (B, C) float32}.

    The batch has no labels if the rows have none.
    """
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    bare = [{"input_ids": row["input_ids"]} for row in rows]
    ids = collate_rows(bare, pad_token_id, max_length=max_length)["input_ids"]
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    batch = {"input_ids": ids, "attention_mask": mask}
    if "labels" in rows[0]:
        batch["labels"] = torch.from_numpy(np.stack([row["labels"] for row in rows]))
    return batch


def collate_preferences(
    rows: list[dict[str, Any]], pad_token_id: int = 0, max_length: int | None = None
) -> dict[str, torch.Tensor]:
    """Return a batch {"input_ids", "shift_labels": (2B, T) int64} of B rows: all first answers, then all second ones.

    It also has "reference_logps" (2B,) float32 and "preference" (B,) bool if the rows have them.
    """
    batch = collate_rows([row["answers"][n] for n in (0, 1) for row in rows], pad_token_id, max_length=max_length)
    if "reference_logps" in rows[0]:
        batch["reference_logps"] = torch.from_numpy(np.stack([row["reference_logps"] for row in rows], 1).reshape(-1))
    if "preference" in rows[0]:
        batch["preference"] = torch.tensor([row["preference"] for row in rows])
    return batch


__all__ = ["collate_labeled", "collate_preferences", "collate_rows"]
