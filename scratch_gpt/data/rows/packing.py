"""Pack documents into rows of at most max_length positions, or put one document in each row.

    documents      a1 a2 a3 <e>   b1 <e>   c1 c2 c3 c4 c5 c6 <e>         max_length 6
    rows           [c1 c2 c3 c4 c5 c6]   [a1 a2 a3 <e> b1 <e>]   [<e>]
    position_ids   [0  1  2  3  4  5 ]   [0  1  2  3   0  1  ]   [0  ]
    shift_labels   [c2 c3 c4 c5 c6 <e>]  [a2 a3 <e> -  <e> - ]   [-  ]   (- no target: -100)

Documents in a row do not see each other. Nothing is dropped. Every token except the first of each document is a target
exactly once: if a long document is cut, the target of a piece's last position is the first token of the next piece.
The next piece does not see the tokens before the cut.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from .block import RowBlock, ranges
from .windows import IGNORED


GROUP = 4096  # documents packed together, which limits memory for a large corpus


class PackedRows:
    """Rows of {"input_ids", "shift_labels"}, and "position_ids" if packed, each (n,), n <= max_length.

    Args:
        ids: (N,) all documents joined, each followed by EOS.
        ends: (documents,) the end of each document in `ids`.
        max_length: positions in a row.
        pack: put several documents in a row (best-fit); without it each row has one document or a piece of a long one.

    Raises:
        ValueError: max_length is below 1, or `ends` is empty.
    """

    asked_per_row: float  # mean number of targets in a row

    def __init__(self, ids: np.ndarray, ends: Sequence[int] | np.ndarray, max_length: int, pack: bool = True):
        if max_length < 1:
            raise ValueError(f"max_length must be at least 1, not {max_length}.")
        if len(ends) == 0:
            raise ValueError("No documents: at least one is needed to make rows.")
        self.ids, self.max_length, self.pack = ids, max_length, pack
        ends = np.asarray(ends, dtype=np.int64)
        lengths = np.diff(ends, prepend=0)
        pieces = -(-lengths // max_length)  # number of pieces of each document
        of = np.repeat(np.arange(len(ends)), pieces)
        number = np.arange(len(of)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        self._start = (ends - lengths)[of] + number * max_length
        self._length = np.minimum(max_length, ends[of] - self._start)
        self._ends_document = number == pieces[of] - 1
        if pack:
            rows = []
            for first in range(0, len(ends), GROUP):
                inside = (
                    np.flatnonzero((of >= first) & (of < first + GROUP)) if len(ends) > GROUP else np.arange(len(of))
                )
                rows += [[int(inside[i]) for i in row] for row in best_fit(self._length[inside], max_length)]
        else:
            rows = [[i] for i in range(len(of))]
        self._pieces = np.array([i for row in rows for i in row])
        self._first = np.cumsum([0, *map(len, rows)])
        self.lengths = np.add.reduceat(self._length[self._pieces], self._first[:-1])  # positions of each row
        self.asked_per_row = (len(ids) - len(ends)) / len(self)
        self.cut_share = float(lengths[pieces > 1].sum() / len(ids))

    @property
    def padding_share(self) -> float:
        """Return the share of padding, 0 to 1, if every row is padded to max_length."""
        return 1 - len(self.ids) / (len(self) * self.max_length)

    def __len__(self) -> int:
        return len(self._first) - 1

    def __getitem__(self, k: int) -> dict[str, np.ndarray]:
        if not 0 <= k < len(self):
            raise IndexError(k)
        rows = self.block(k, k + 1)
        row = {"input_ids": rows.input_ids, "shift_labels": rows.shift_labels}
        row |= {} if rows.position_ids is None else {"position_ids": rows.position_ids}
        return {name: values.astype(np.int64) for name, values in row.items()}

    def block(self, first: int, stop: int) -> RowBlock:
        """Return rows number first ... stop - 1, joined."""
        pieces = self._pieces[self._first[first] : self._first[stop]]
        lengths = self._length[pieces]
        places = ranges(self._start[pieces], lengths)
        labels = self.ids[np.minimum(places + 1, len(self.ids) - 1)].astype(np.int32)
        labels[(np.cumsum(lengths) - 1)[self._ends_document[pieces]]] = IGNORED
        positions = ranges(np.zeros_like(lengths), lengths) if self.pack else None
        return RowBlock(self.ids[places], labels, self.lengths[first:stop], positions)


def best_fit(lengths: Sequence[int] | np.ndarray, capacity: int) -> list[list[int]]:
    """Group item numbers into rows with a total length of at most `capacity`: best-fit decreasing.

    The longest item comes first, and each goes into the fullest row with enough room. (Johnson et al. 1974: at most
    11/9 of the optimal number of rows, plus 4. For documents see Ding et al. 2024, "Fewer Truncations Improve Language
    Modeling".)

    Example:
        >>> best_fit([5, 3, 4, 2, 6], capacity=8)  # lengths 6 + 2, 5 + 3, 4
        [[4, 3], [0, 1], [2]]
    """
    rows: list[list[int]] = []
    with_room = defaultdict(list)  # rows by their number of free positions
    rooms = 0  # bit n is set if a row has n free positions
    for item in np.argsort(-np.asarray(lengths), kind="stable").tolist():
        length = int(lengths[item])
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1  # the smallest sufficient room
            row = with_room[room].pop()
            if not with_room[room]:
                rooms &= ~(1 << room)
            rows[row].append(item)
        else:
            room, row = capacity, len(rows)
            rows.append([item])
        if room > length:
            with_room[room - length].append(row)
            rooms |= 1 << (room - length)
    return rows


__all__ = ["GROUP", "PackedRows", "best_fit"]
