"""Cut a token stream into windows of `max_length` tokens; the target of each position is the next token.

    stream             I  HAD always thought Jack Gis burn rather ...
    window 0           input_ids [I, HAD, always, thought] -> shift_labels [HAD, always, thought, Jack]
    window 1, stride 4 input_ids [Jack, Gis, burn, rather] -> shift_labels [Gis, burn, rather, ...]

With stride = max_length every token except the first of the stream is a target exactly once.
"""

from collections.abc import Sequence, Sized
from typing import Literal, Protocol

import numpy as np

from ...utils.wording import plural
from .block import RowBlock, ranges


IGNORED = -100  # the label of a position without a target


class Stream(Protocol):
    """Token ids that can be sliced like an array."""

    def __len__(self) -> int: ...

    def __getitem__(self, where: slice, /) -> np.ndarray: ...


class Windows(Sequence):
    """The windows of one stream, created on access: `windows[k]` is {"input_ids": (T,), "shift_labels": (T,)}.

    Args:
        ids: (N,) the stream.
        max_length: positions in a window.
        stride: distance between the starts of two windows. Below max_length tokens are repeated, above it some are
            skipped.
        overlap: use of tokens that were targets in an earlier window: "ask" makes them targets again (as in the book,
            the default); "context" uses them only as input, so that each token is a target once.
        drop_tail: drop the last window if it is shorter than max_length.

    Raises:
        ValueError: max_length or stride is below 1, overlap is unknown, or the stream is too short for one window.
    """

    def __init__(
        self,
        ids: Stream,
        max_length: int,
        stride: int | None = None,
        overlap: Literal["ask", "context"] = "ask",
        drop_tail: bool = False,
    ):
        stride = max_length if stride is None else stride
        if max_length < 1 or stride < 1:
            raise ValueError(f"max_length and stride must be at least 1, not {max_length} and {stride}.")
        if overlap not in ("ask", "context"):
            raise ValueError(f"overlap must be 'ask' or 'context', not {overlap!r}.")
        target_count = len(ids) - 1  # every token except the first
        needed = max_length if drop_tail else 1
        if target_count < needed:
            raise ValueError(f"The text has {plural(len(ids), 'token')}, but one window needs {needed + 1}.")
        self.ids, self.max_length, self.stride, self.overlap = ids, max_length, stride, overlap
        full_windows = max(0, (target_count - max_length) // stride + 1)
        # Add a shorter window at the end if full windows miss some targets and it starts before the last token.
        reached = (full_windows - 1) * stride + max_length if full_windows else 0
        tail = not drop_tail and reached < target_count and full_windows * stride < target_count
        self._count = full_windows + tail

    @property
    def asked_per_row(self) -> int:
        """Return the number of targets of a full window (with overlap "context", the first window has more)."""
        return min(self.stride, self.max_length) if self.overlap == "context" else self.max_length

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, k: int) -> dict[str, np.ndarray]:
        if not 0 <= k < self._count:
            raise IndexError(k)
        start = k * self.stride
        row = self.ids[start : start + self.max_length + 1].astype(np.int64)
        inputs, targets = row[:-1], row[1:].copy()
        if self.overlap == "context" and k > 0:
            targets[: max(0, self.max_length - self.stride)] = IGNORED
        return {"input_ids": inputs, "shift_labels": targets}

    def block(self, first: int, stop: int) -> RowBlock:
        """Return windows number first ... stop - 1, joined."""
        starts = np.arange(first, stop) * self.stride
        lengths = np.minimum(self.max_length, len(self.ids) - 1 - starts)
        origin = first * self.stride
        ids = self.ids[origin : int(starts[-1] + lengths[-1]) + 1]
        places = ranges(starts - origin, lengths)
        labels = ids[places + 1].astype(np.int32)
        if self.overlap == "context":
            repeated = np.minimum(lengths, max(0, self.max_length - self.stride))
            repeated[starts == 0] = 0
            labels[ranges(np.cumsum(lengths) - lengths, repeated)] = IGNORED
        return RowBlock(ids[places], labels, lengths)


def mask_inputs(
    row: dict[str, np.ndarray], place: int, *, mask_token_id: int, most: int = 3, seed: int = 0
) -> dict[str, np.ndarray]:
    """Replace 1 to `most` of a row's input tokens, chosen by (seed, place); the targets do not change.

    A row's place differs between epochs, so it is masked differently in each. This makes memorization harder.
    """
    generator = np.random.default_rng([seed, place])
    ids = row["input_ids"].copy()
    count = min(int(generator.integers(1, most + 1)), len(ids))
    ids[generator.choice(len(ids), count, replace=False)] = mask_token_id
    return {**row, "input_ids": ids}


def require_full_window(ids: Sized, max_length: int, split: str) -> None:
    """Raise a ValueError if a split is too short for one window."""
    if len(ids) < max_length + 1:
        raise ValueError(
            f"The {split} split has {plural(len(ids), 'token')}, but one window of max_length {max_length} needs "
            f"{max_length + 1}. Give more text, a smaller max_length, or another validation_fraction."
        )


__all__ = ["IGNORED", "Windows", "mask_inputs", "require_full_window"]
