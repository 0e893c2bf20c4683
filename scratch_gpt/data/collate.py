"""Rows -> the one batch contract: int64 tensors (B, T), short rows filled on the right.

The filling asks nothing (-100), and no attention_mask is needed: under a causal mask no token sees what is behind it.
"""

import numpy as np
import torch

from .windows import IGNORED


def collate_windows(
    rows: list[dict[str, np.ndarray]], pad_token_id: int = 0, length: int | None = None
) -> dict[str, torch.Tensor]:
    """Rows of `windows` -> {"input_ids", "shift_labels"}, each (B, T) int64, T = `length` or the longest row."""
    T = length or max(len(row["input_ids"]) for row in rows)
    fill = {"input_ids": pad_token_id, "shift_labels": IGNORED}
    batch = {}
    for key, value in fill.items():
        filled = np.full((len(rows), T), value, dtype=np.int64)
        for b, row in enumerate(rows):
            filled[b, : len(row[key])] = row[key]
        batch[key] = torch.from_numpy(filled)
    return batch


__all__ = ["collate_windows"]
