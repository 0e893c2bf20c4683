"""Rows <-> a folder of Arrow files, which are checked once and then mapped: memory holds only the rows in use.

    part-00000.arrow   input_ids        list of uint16 (uint32 for a large vocabulary), the row's positions
                       next_token       the target of the last position; null if it has none
                       document_starts  packed rows: where documents begin
                       asked            bits, one a position, if some possible targets are left out; else null

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
import pyarrow.compute as pc  # its functions are generated on import, so their types are unknown

from ...utils.foreign import FileChanged
from ..rows.windows import IGNORED


ROWS_PER_PART = 4096


class Part(NamedTuple):
    """What a file of rows holds."""

    rows: int
    tokens: int  # positions
    targets: int
    sha256: str  # of the rows themselves, whatever file holds them


def write_part(rows: Iterable[dict[str, np.ndarray]], path: Path, vocab_size: int) -> Part:
    """Write rows of {"input_ids", "shift_labels"} and, packed, "position_ids", as one file."""
    kind = np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)
    ids, lengths, following, starts, starts_of, masks = [], [], [], [], [], []
    content, targets = hashlib.sha256(), 0
    for row in rows:
        inputs, labels = row["input_ids"], row["shift_labels"]
        ids.append(inputs.astype(kind))
        lengths.append(len(inputs))
        following.append(None if labels[-1] == IGNORED else int(labels[-1]))
        begins = np.flatnonzero(row["position_ids"] == 0) if "position_ids" in row else np.empty(0, dtype=np.int64)
        starts.append(begins.astype(np.int32))
        starts_of.append(len(begins))
        default_labels = _labels(inputs, following[-1], begins)
        is_default = bool((default_labels == labels).all())
        masks.append(None if is_default else np.packbits(labels != IGNORED, bitorder="little").tobytes())
        targets += int((labels != IGNORED).sum())
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
    return Part(len(lengths), int(sum(lengths)), targets, content.hexdigest())


def write_table(table: pa.Table, path: Path) -> None:
    """Write one Arrow file, completely or not at all."""
    draft = path.with_name(f".writing-{path.name}")
    draft.parent.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(draft), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    draft.replace(path)


def read_table(path: Path) -> pa.Table:
    """Return the file mapped into memory: unused parts are not read."""
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_stream(source).read_all()


def column_of(table: pa.Table, name: str) -> pa.Array:
    """Return a column of a mapped file as one array, without a copy (`combine_chunks` would copy it into memory)."""
    column = table.column(name)
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


class PreparedRows(Sequence):
    """`rows[k]` -> {"input_ids", "shift_labels"} and, packed, "position_ids", as `write_part` was given them.

    Args:
        targets: the number of targets of all rows, from the manifest.
        vocab_size: no token id may reach it; without it the ids are not looked at.
        max_length: no row may have more positions.

    Raises:
        ValueError: no such files, a damaged one, or one that holds something else.
        FileChanged: on access to a row, a file that was truncated meanwhile.
    """

    def __init__(self, folder: Path, targets: int = 0, vocab_size: int | None = None, max_length: int | None = None):
        self.folder, self.targets = Path(folder), targets
        self._parts, self._files = [], []
        for path in sorted(self.folder.glob("part-*.arrow")):
            try:
                self._files.append((path, path.stat().st_size))
                self._parts.append(_Columns(read_table(path), vocab_size, max_length))
            except (pa.ArrowException, OSError, ValueError, KeyError) as error:
                reason = " ".join(str(error).split())[:300]
                raise ValueError(f"{path} cannot be read: {reason} Prepare the data again.") from error
        self._ends = np.cumsum([len(part.lengths) for part in self._parts]).tolist()
        if not self._ends or not len(self):
            raise ValueError(f"{folder} holds no prepared rows (part-*.arrow).")

    def __reduce__(
        self,
    ) -> tuple[
        type["PreparedRows"], tuple[Path, int]
    ]:  # a data worker maps the files itself; their ids have been looked at
        return PreparedRows, (self.folder, self.targets)

    @property
    def lengths(self) -> np.ndarray:
        """Return the positions of each row."""
        return np.concatenate([part.lengths for part in self._parts])

    @property
    def asked_per_row(self) -> float:
        """Return the mean number of targets in a row."""
        return self.targets / len(self)

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, k: int) -> dict[str, np.ndarray]:
        if not 0 <= k < len(self):
            raise IndexError(k)
        number = bisect_right(self._ends, k)
        path, size = self._files[number]
        if not path.exists() or path.stat().st_size < size:  # reading it where it ends kills the process
            raise FileChanged(f"{path} has become shorter while it was read. Prepare the data again.")
        return self._parts[number].row(k - (self._ends[number - 1] if number else 0))


class _Columns:
    # One file's columns as numpy views into the mapped memory.
    def __init__(self, table: pa.Table, vocab_size: int | None = None, max_length: int | None = None):
        table.validate(full=True)  # each offset lies within its values: nothing outside the file is read
        _check_types(table)
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
        self._check(vocab_size, max_length)

    def _check(self, vocab_size: int | None, max_length: int | None) -> None:
        # Raise a ValueError for the first value that no row of ours has.
        if vocab_size is not None:
            largest = max(int(self.ids.max(initial=0)), int(self.following.max(initial=0)))
            if largest >= vocab_size:
                raise ValueError(f"it holds the token id {largest}, and the vocabulary has {vocab_size} tokens.")
        if not ((self.following >= 0) | (self.following == IGNORED)).all():
            raise ValueError("it holds a negative token id.")
        if self.lengths.min(initial=1) < 1:
            raise ValueError("it has a row without tokens.")
        if (longest := self.lengths.max(initial=1)) > (max_length or longest):
            raise ValueError(f"it has a row of {longest} tokens, and {max_length} are allowed.")
        if self.starts is not None:
            starts = self.starts[self.starts_offsets[0] : self.starts_offsets[-1]]
            if ((starts < 0) | (starts >= np.repeat(self.lengths, np.diff(self.starts_offsets)))).any():
                raise ValueError("a document in it begins outside its row.")
        if self.masks is not None:
            lengths = pc.binary_length(self.masks)  # pyright: ignore[reportAttributeAccessIssue]
            sizes = lengths.fill_null(-1).to_numpy(zero_copy_only=False)
            if ((sizes >= 0) & (sizes != (self.lengths + 7) // 8)).any():
                raise ValueError("a mask in it is not as long as its row.")

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


def _check_types(table: pa.Table) -> None:
    # Raise a ValueError where these are not the columns that `write_part` has written.
    kinds = {
        "input_ids": [pa.list_(pa.uint16()), pa.list_(pa.uint32())],
        "next_token": [pa.int32()],
        "asked": [pa.binary()],
        "document_starts": [pa.list_(pa.int32())],
    }
    for name, allowed in kinds.items():
        if name not in table.column_names and name == "document_starts":
            continue
        column = column_of(table, name)
        if column.type not in allowed:
            raise ValueError(f"its column {name} holds {column.type}.")
        if pa.types.is_list(column.type) and (column.null_count or column.values.null_count):
            raise ValueError(f"its column {name} has gaps.")


def _labels(ids: np.ndarray, following: int | None, starts: np.ndarray) -> np.ndarray:
    # The next token at each position; a document's last one has no target.
    labels = np.empty(len(ids), dtype=np.int64)
    labels[:-1] = ids[1:]
    labels[-1] = IGNORED if following is None else following
    labels[starts[starts > 0] - 1] = IGNORED
    return labels


__all__ = ["ROWS_PER_PART", "Part", "PreparedRows", "column_of", "read_table", "write_part", "write_table"]
