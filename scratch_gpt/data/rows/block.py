"""Hold several rows joined in flat arrays, so that they are computed and written without a Python loop."""

from typing import NamedTuple

import numpy as np


class RowBlock(NamedTuple):
    """Consecutive rows of token ids, joined; the rows may differ in length."""

    input_ids: np.ndarray  # (tokens,)
    shift_labels: np.ndarray  # (tokens,), -100 where a position has no target
    lengths: np.ndarray  # (rows,) positions of each row
    position_ids: np.ndarray | None = None  # (tokens,) for packed rows


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return the integers of several ranges, joined.

    Example:
        >>> ranges(np.array([7, 2]), np.array([3, 2])).tolist()
        [7, 8, 9, 2, 3]
    """
    offsets = np.cumsum(lengths) - lengths
    return np.repeat(starts - offsets, lengths) + np.arange(int(lengths.sum()))


__all__ = ["RowBlock", "ranges"]
