"""Rows <-> a folder of Arrow files, mapped and not read: the first row is there at once, whatever their size.

    part-00000.arrow   input_ids        list of uint16 (uint32 for a large vocabulary), the row's positions
                       next_token       what the last position asks; null where it asks nothing
                       document_starts  packed rows: where documents begin
                       asked            bits, one a position, where not all that could be asked are; else null

Everything a batch needs follows from these; -100 arises only in `_labels`. `datasets` and any Arrow reader open the
same files.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from .windows import IGNORED


ROWS_PER_PART = 4096


class Part(NamedTuple):
    """What a file of rows holds."""

    rows: int
    tokens: int  # positions
    asked: int  # targets
    sha256: str  # of the rows themselves, whatever file holds them


def write_part(rows: Iterable[dict[str, np.ndarray]], path: Path, vocab_size: int) -> Part:
    """Write rows of {"input_ids", "shift_labels"} and, packed, "position_ids", as one file."""
    kind = np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)
    ids, lengths, following, starts, starts_of, masks = [], [], [], [], [], []
    content, asked = hashlib.sha256(), 0
    for row in rows:
        inputs, labels = row["input_ids"], row["shift_labels"]
        ids.append(inputs.astype(kind))
        lengths.append(len(inputs))
        following.append(None if labels[-1] == IGNORED else int(labels[-1]))
        begins = np.flatnonzero(row["position_ids"] == 0) if "position_ids" in row else np.empty(0, dtype=np.int64)
        starts.append(begins.astype(np.int32))
        starts_of.append(len(begins))
        told = _labels(inputs, following[-1], begins)
        is_told = bool((told == labels).all())
        masks.append(None if is_told else np.packbits(labels != IGNORED, bitorder="little").tobytes())
        asked += int((labels != IGNORED).sum())
        for values in (np.array([len(inputs)]), inputs, labels, begins):
            content.update(values.astype("<i4").tobytes())
    packed = any(starts_of)
    columns = {
        "input_ids": pa.ListArray.from_arrays(np.cumsum([0, *lengths], dtype=np.int32), np.concatenate(ids)),
        "next_token": pa.array(following, pa.int32()),
    }
    if packed:
        offsets = np.cumsum([0, *starts_of], dtype=np.int32)
        columns["document_starts"] = pa.ListArray.from_arrays(offsets, np.concatenate(starts))
    columns["asked"] = pa.array(masks, pa.binary())
    write_table(pa.table(columns), path)
    return Part(len(lengths), int(sum(lengths)), asked, content.hexdigest())


def write_table(table: pa.Table, path: Path) -> None:
    """One Arrow file, whole or not there."""
    draft = path.with_name(f".writing-{path.name}")
    draft.parent.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(draft), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    draft.replace(path)


def read_table(path: Path) -> pa.Table:
    """The file, mapped into memory: what is not looked at is not read."""
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_stream(source).read_all()


def column_of(table: pa.Table, name: str) -> pa.Array:
    """A column of a mapped file as one array, where it lies (`combine_chunks` would copy it into memory)."""
    column = table.column(name)
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


class PreparedRows(Sequence):
    """`rows[k]` -> {"input_ids", "shift_labels"} and, packed, "position_ids", as `write_part` was given them.

    Args:
        asked: targets of all rows together, which the manifest knows.

    Raises:
        ValueError: no such files, or a damaged one.
    """

    def __init__(self, folder: Path, asked: int = 0):
        self.folder, self.asked = Path(folder), asked
        paths = sorted(self.folder.glob("part-*.arrow"))
        if not paths:
            raise ValueError(f"{folder} holds no prepared rows (part-*.arrow).")
        try:
            self._parts = [_Columns(read_table(path)) for path in paths]
        except (pa.ArrowInvalid, OSError, KeyError) as error:
            raise ValueError(f"{folder} cannot be read: {error}") from error
        self._ends = np.cumsum([len(part.lengths) for part in self._parts]).tolist()

    def __reduce__(self):  # a data worker maps the files itself
        return PreparedRows, (self.folder, self.asked)

    @property
    def lengths(self) -> np.ndarray:
        """Positions of each row."""
        return np.concatenate([part.lengths for part in self._parts])

    @property
    def asked_per_row(self) -> float:
        """Targets of a row, on average."""
        return self.asked / len(self)

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, k: int) -> dict[str, np.ndarray]:
        if not 0 <= k < len(self):
            raise IndexError(k)
        number = bisect_right(self._ends, k)
        return self._parts[number].row(k - (self._ends[number - 1] if number else 0))


class _Columns:
    # One file's columns as numpy views into the mapped memory.
    def __init__(self, table: pa.Table):
        ids = column_of(table, "input_ids")
        self.ids, self.offsets = ids.values.to_numpy(), ids.offsets.to_numpy()
        self.lengths = np.diff(self.offsets)
        self.following = column_of(table, "next_token").fill_null(IGNORED).to_numpy()
        masks = column_of(table, "asked")
        self.masks = None if masks.null_count == len(masks) else masks
        self.starts = None
        if "document_starts" in table.column_names:
            starts = column_of(table, "document_starts")
            self.starts, self.starts_offsets = starts.values.to_numpy(), starts.offsets.to_numpy()

    def row(self, k: int) -> dict[str, np.ndarray]:
        ids = self.ids[self.offsets[k] : self.offsets[k + 1]].astype(np.int64)
        starts = np.empty(0, dtype=np.int64)
        if self.starts is not None:
            starts = self.starts[self.starts_offsets[k] : self.starts_offsets[k + 1]]
        labels = _labels(ids, self.following[k], starts)
        if self.masks is not None and self.masks[k].is_valid:
            bits = np.frombuffer(self.masks[k].as_buffer(), dtype=np.uint8)
            labels[~np.unpackbits(bits, count=len(ids), bitorder="little").astype(bool)] = IGNORED
        row = {"input_ids": ids, "shift_labels": labels}
        if self.starts is not None:
            begins = np.zeros(len(ids), dtype=np.int64)
            begins[starts] = starts
            row["position_ids"] = np.arange(len(ids)) - np.maximum.accumulate(begins)
        return row


def _labels(ids: np.ndarray, following: int | None, starts: np.ndarray) -> np.ndarray:
    # The next token at each position; a document's last one asks nothing.
    labels = np.empty(len(ids), dtype=np.int64)
    labels[:-1] = ids[1:]
    labels[-1] = IGNORED if following is None else following
    labels[starts[starts > 0] - 1] = IGNORED
    return labels


__all__ = ["ROWS_PER_PART", "Part", "PreparedRows", "column_of", "read_table", "write_part", "write_table"]
