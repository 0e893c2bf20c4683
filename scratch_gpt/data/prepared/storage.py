"""Write rows to a folder of Arrow files and read them back; files are checked once and mapped, not loaded.

    part-00000.arrow   input_ids        list of uint16 (uint32 for a large vocabulary), the row's tokens
                       next_token       the target of the last position; null if it has none
                       document_starts  packed rows: the first position of each document
                       asked            a bit for each position, whether it has a target; null if all possible ones do

A batch is computed from these columns. -100 is set when a row is read, never stored. `datasets` and any other reader
of Arrow files can open the same files.
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
from ..rows.block import RowBlock, ranges
from ..rows.windows import IGNORED


ROWS_PER_PART = 4096


class Part(NamedTuple):
    """Counts and hash of the rows in one file."""

    rows: int
    tokens: int  # positions
    targets: int
    sha256: str  # of the values of the rows, independent of the file format


def write_part(blocks: Iterable[RowBlock], path: Path, vocab_size: int) -> Part:
    """Write the rows of some blocks to one file."""
    kind = np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)
    ids, lengths, following, starts, starts_of, masks = [], [], [], [], [], []
    content, targets = hashlib.sha256(), 0
    for block in blocks:
        labels, row_starts = block.shift_labels, np.cumsum(block.lengths) - block.lengths
        row_of = np.repeat(np.arange(len(block.lengths)), block.lengths)
        begins = np.empty(0, dtype=np.int64)  # the first positions of documents
        if block.position_ids is not None:
            begins = np.flatnonzero(block.position_ids == 0)
        begin_rows = row_of[begins]
        in_row = begins - row_starts[begin_rows]
        ids.append(block.input_ids.astype(kind))
        lengths.append(block.lengths)
        following.append(labels[row_starts + block.lengths - 1])
        starts.append(in_row.astype(np.int32))
        starts_of.append(np.bincount(begin_rows, minlength=len(block.lengths)))
        default_labels = np.append(block.input_ids[1:], 0).astype(labels.dtype)
        default_labels[row_starts + block.lengths - 1] = following[-1]
        default_labels[begins[in_row > 0] - 1] = IGNORED
        is_default = np.logical_and.reduceat(default_labels == labels, row_starts)
        asked = labels != IGNORED
        masks += [
            None if default else np.packbits(asked[start : start + length], bitorder="little").tobytes()
            for default, start, length in zip(is_default, row_starts, block.lengths, strict=True)
        ]
        targets += int(asked.sum())
        content.update(_content(block, in_row, starts_of[-1]).tobytes())
    lengths, starts_of = np.concatenate(lengths), np.concatenate(starts_of)
    following = np.concatenate(following)
    columns = {
        "input_ids": pa.ListArray.from_arrays(_offsets(lengths), np.concatenate(ids)),
        "next_token": pa.array(np.maximum(following, 0), pa.int32(), mask=following == IGNORED),
    }
    if starts_of.any():
        columns["document_starts"] = pa.ListArray.from_arrays(_offsets(starts_of), np.concatenate(starts))
    columns["asked"] = pa.array(masks, pa.binary())
    write_table(pa.table(columns), path)
    return Part(len(lengths), int(lengths.sum()), targets, content.hexdigest())


def _offsets(lengths: np.ndarray) -> np.ndarray:
    return np.append(0, np.cumsum(lengths)).astype(np.int32)


def _content(block: RowBlock, begins: np.ndarray, begins_of: np.ndarray) -> np.ndarray:
    # Return the values that are hashed: for each row its length, input_ids, shift_labels and document starts.
    lengths = block.lengths
    sizes = 1 + 2 * lengths + begins_of
    start = np.cumsum(sizes) - sizes
    values = np.empty(int(sizes.sum()), dtype="<i4")
    values[start] = lengths
    places = ranges(start + 1, lengths)
    values[places] = block.input_ids
    values[places + np.repeat(lengths, lengths)] = block.shift_labels
    values[ranges(start + 1 + 2 * lengths, begins_of)] = begins
    return values


def write_table(table: pa.Table, path: Path) -> None:
    """Write one Arrow file atomically."""
    draft = path.with_name(f".writing-{path.name}")
    draft.parent.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(draft), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    draft.replace(path)


def read_table(path: Path) -> pa.Table:
    """Return the table of a file mapped into memory: unused parts are not read."""
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_stream(source).read_all()


def column_of(table: pa.Table, name: str) -> pa.Array:
    """Return a column of a mapped file as one array, without a copy (`combine_chunks` would copy it into memory)."""
    column = table.column(name)
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


class PreparedRows(Sequence):
    """Rows of {"input_ids", "shift_labels"}, and "position_ids" if packed, as they were passed to `write_part`.

    Args:
        targets: the number of targets of all rows, from the manifest.
        vocab_size: token ids must be below it; without it the ids are not checked.
        max_length: rows must not have more positions.

    Raises:
        ValueError: the folder has no such files, or one is damaged or has other content.
        FileChanged: on access to a row, if its file was truncated in the meantime.
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
            raise ValueError(f"{folder} contains no prepared rows (part-*.arrow).")

    def __reduce__(
        self,
    ) -> tuple[
        type["PreparedRows"], tuple[Path, int]
    ]:  # a data worker maps the files again; the ids are already checked
        return PreparedRows, (self.folder, self.targets)

    @property
    def lengths(self) -> np.ndarray:
        """Return the number of positions of each row."""
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
        if not path.exists() or path.stat().st_size < size:  # reading past the end of a mapped file kills the process
            raise FileChanged(f"{path} became shorter while it was in use. Prepare the data again.")
        return self._parts[number].row(k - (self._ends[number - 1] if number else 0))


class _Columns:
    # The columns of one file as numpy views into the mapped memory.
    def __init__(self, table: pa.Table, vocab_size: int | None = None, max_length: int | None = None):
        table.validate(full=True)  # checks that offsets are in range, so that nothing outside the file is read
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
        # Raise a ValueError for the first value that `write_part` never writes.
        if vocab_size is not None:
            largest = max(int(self.ids.max(initial=0)), int(self.following.max(initial=0)))
            if largest >= vocab_size:
                raise ValueError(f"it contains the token id {largest}, but the vocabulary has {vocab_size} tokens.")
        if not ((self.following >= 0) | (self.following == IGNORED)).all():
            raise ValueError("it contains a negative token id.")
        if self.lengths.min(initial=1) < 1:
            raise ValueError("it has a row without tokens.")
        if (longest := self.lengths.max(initial=1)) > (max_length or longest):
            raise ValueError(f"it has a row of {longest} tokens; at most {max_length} are allowed.")
        if self.starts is not None:
            starts = self.starts[self.starts_offsets[0] : self.starts_offsets[-1]]
            if ((starts < 0) | (starts >= np.repeat(self.lengths, np.diff(self.starts_offsets)))).any():
                raise ValueError("the start of a document is outside its row.")
        if self.masks is not None:
            lengths = pc.binary_length(self.masks)  # pyright: ignore[reportAttributeAccessIssue]
            sizes = lengths.fill_null(-1).to_numpy(zero_copy_only=False)
            if ((sizes >= 0) & (sizes != (self.lengths + 7) // 8)).any():
                raise ValueError("a mask and its row differ in length.")

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
    # Raise a ValueError if these are not the columns that `write_part` writes.
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
            raise ValueError(f"its column {name} has the type {column.type}.")
        if pa.types.is_list(column.type) and (column.null_count or column.values.null_count):
            raise ValueError(f"its column {name} has missing values.")


def _labels(ids: np.ndarray, following: int | None, starts: np.ndarray) -> np.ndarray:
    # The target of a position is the next token; the last position of a document has none.
    labels = np.empty(len(ids), dtype=np.int64)
    labels[:-1] = ids[1:]
    labels[-1] = IGNORED if following is None else following
    labels[starts[starts > 0] - 1] = IGNORED
    return labels


__all__ = ["ROWS_PER_PART", "Part", "PreparedRows", "column_of", "read_table", "write_part", "write_table"]
