"""Documents -> full rows of at most max_length positions that see nothing of each other; or one document a row.

    documents      a1 a2 a3 <e>   b1 <e>   c1 c2 c3 c4 c5 c6 <e>         max_length 6
    rows           [c1 c2 c3 c4 c5 c6]   [a1 a2 a3 <e> b1 <e>]   [<e>]
    position_ids   [0  1  2  3  4  5 ]   [0  1  2  3   0  1  ]   [0  ]
    shift_labels   [c2 c3 c4 c5 c6 <e>]  [a2 a3 <e> -  <e> - ]   [-  ]   (- no target: -100)

Nothing is dropped. Every token except each document's first is a target exactly once: if a long document is cut, the
last position of a piece has the first token of the next as its target. A cut costs context: the next piece begins
without it.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from .windows import IGNORED


GROUP = 4096  # documents that are packed together: memory does not grow with the corpus


class PackedRows:
    """`rows[k]` -> {"input_ids", "shift_labels"} and, packed, "position_ids", each (n,), n <= max_length.

    Args:
        ids: (N,) all documents joined, each ended by EOS.
        ends: (documents,) where each one ends in `ids`.
        max_length: positions in a row.
        pack: several documents a row, best-fit; without it one document (or a piece of a long one) a row.

    Raises:
        ValueError: max_length below 1, or no documents.
    """

    asked_per_row: float  # targets of a row, on average

    def __init__(self, ids: np.ndarray, ends: Sequence[int] | np.ndarray, max_length: int, pack: bool = True):
        if max_length < 1:
            raise ValueError(f"max_length is {max_length}; it has to be at least 1.")
        if len(ends) == 0:
            raise ValueError("There are no documents to make rows of.")
        self.ids, self.max_length, self.pack = ids, max_length, pack
        ends = np.asarray(ends, dtype=np.int64)
        lengths = np.diff(ends, prepend=0)
        pieces = -(-lengths // max_length)  # of each document
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
        """Return the share of empty positions, 0 to 1, if every row is filled to max_length."""
        return 1 - len(self.ids) / (len(self) * self.max_length)

    def __len__(self) -> int:
        return len(self._first) - 1

    def __getitem__(self, k: int) -> dict[str, np.ndarray]:
        if not 0 <= k < len(self):
            raise IndexError(k)
        inputs, targets, positions = [], [], []
        for piece in self._pieces[self._first[k] : self._first[k + 1]]:
            start, length = self._start[piece], self._length[piece]
            inputs.append(self.ids[start : start + length])
            if self._ends_document[piece]:
                targets += [self.ids[start + 1 : start + length], [IGNORED]]
            else:
                targets.append(self.ids[start + 1 : start + length + 1])
            positions.append(np.arange(int(length)))
        row = {"input_ids": inputs, "shift_labels": targets, **({"position_ids": positions} if self.pack else {})}
        return {name: np.concatenate(parts).astype(np.int64) for name, parts in row.items()}


def best_fit(lengths: Sequence[int] | np.ndarray, capacity: int) -> list[list[int]]:
    """Gather the numbers of items into rows of at most `capacity` in sum: best-fit decreasing.

    The longest first, each into the fullest row that has room for it. (Johnson et al. 1974 bound its rows by 11/9 of
    the fewest possible, plus 4; for documents see Ding et al. 2024, "Fewer Truncations Improve Language Modeling".)

    Example:
        >>> best_fit([5, 3, 4, 2, 6], capacity=8)  # lengths 6 + 2, 5 + 3, 4
        [[4, 3], [0, 1], [2]]
    """
    rows: list[list[int]] = []
    with_room = defaultdict(list)  # free positions -> rows
    rooms = 0  # bit n is set where some row has n free positions
    for item in np.argsort(-np.asarray(lengths), kind="stable").tolist():
        length = int(lengths[item])
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1  # the least that is enough
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
