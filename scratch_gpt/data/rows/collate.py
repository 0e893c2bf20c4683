"""Rows -> the one batch contract: int64 tensors (B, T), short rows filled on the right.

Padding has no targets (-100) and needs no attention_mask: under a causal mask no token sees what follows it. In packed
rows the padding's positions start again at 0, like those of one more document. A row with one label (labels.py)
is classified at its last token, so its batch has an attention_mask.
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
    """Make a batch {"input_ids", "shift_labels"} of rows, with "position_ids" if they are packed.

    Each is (B, T) int64, T = `length` or the longest row; with `max_length` the next multiple of 8 up to it. For
    every new shape a matrix product in bf16 keeps memory on a CPU (torch 2.13: 0.6 MB each): so there are few.
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
    """Make a batch {"input_ids", "attention_mask": (B, T) int64, "labels": (B,) int64 or (B, C) float32}.

    Rows without labels give a batch without labels.
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
    """Make a batch {"input_ids", "shift_labels": (2B, T) int64} of B rows, first answers before second ones.

    It also has "reference_logps" (2B,) float32 and "preference" (B,) bool if the rows have them.
    """
    batch = collate_rows([row["answers"][n] for n in (0, 1) for row in rows], pad_token_id, max_length=max_length)
    if "reference_logps" in rows[0]:
        batch["reference_logps"] = torch.from_numpy(np.stack([row["reference_logps"] for row in rows], 1).reshape(-1))
    if "preference" in rows[0]:
        batch["preference"] = torch.tensor([row["preference"] for row in rows])
    return batch


__all__ = ["collate_labeled", "collate_preferences", "collate_rows"]
