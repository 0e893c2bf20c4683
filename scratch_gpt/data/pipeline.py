"""Corpora -> a prepared folder, in stages that each leave parts behind: a run that was killed goes on from them.

    clean      rows of a corpus -> the same rows, changed or marked as removed (filter, why), and what identifies them
    select     keys, signatures -> which rows are duplicates; what is left -> splits
    encode     texts that are kept -> token ids
    order      corpora -> one sequence of documents (mixture.py), or each as it lies
    write      documents -> rows (windows.py, packing.py) -> Arrow files (prepared.py)

A part is a file that is whole or not there, and a function of its stage's input: whatever is there is used again. What
stays in memory is a few numbers a document; texts, tokens and rows are mapped from disk.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .packing import GROUP, PackedRows
from .prepared import ROWS_PER_PART, Part, read_table, write_part, write_table
from .windows import Windows


PART_BYTES = 8 * 2**20  # of text
PART_ROWS = 2000
CALL_BYTES = 2**20  # of text in one call of the tokenizer
MARKS = ("_removed", "_why", "_key", "_signature")  # columns of ours beside a row's own


class Filter(NamedTuple):
    """One thing a row is looked at for. Either takes rows out, or changes their texts, or both."""

    name: str
    problem: Callable[[str], str | None] | None = None  # a row's text -> why it goes
    change: Callable[[str], str] | None = None  # each text of a row -> what becomes of it


def texts_of(value: Any) -> Iterator[str]:
    """All texts of a row, or of what lies in it (messages, answers), in order."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from texts_of(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from texts_of(inner)


def with_texts(value: Any, change: Callable[[str], str]) -> Any:
    """The same value with each of its texts changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: with_texts(inner, change) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [with_texts(inner, change) for inner in value]
    return value


# --- Parts -------------------------------------------------------------------------------------------------------


def part_bounds(table: pa.Table) -> list[int]:
    """Where parts of about PART_BYTES of text and at most PART_ROWS rows begin, and the end."""
    size = np.zeros(table.num_rows, dtype=np.int64)
    for name in table.column_names:
        if pa.types.is_string(table.schema.field(name).type) or pa.types.is_large_string(
            table.schema.field(name).type
        ):
            size += pc.fill_null(pc.binary_length(table.column(name)), 0).to_numpy()
    bounds, start, reached = [0], 0, np.cumsum(size)
    while start < table.num_rows:
        before = reached[start - 1] if start else 0
        end = int(np.searchsorted(reached, before + PART_BYTES, side="right"))
        start = min(max(end, start + 1), start + PART_ROWS, table.num_rows)
        bounds.append(start)
    return bounds


def in_parts(folder: Path, count: int, make: Callable[[int], pa.Table], progress: Callable) -> list[pa.Table]:
    """The tables of a stage, mapped: part n is `make(n)`, made where its file is not there yet."""
    tables = []
    for n in progress(range(count)):
        path = folder / f"part-{n:05d}.arrow"
        if not path.exists():
            write_table(make(n), path)
        tables.append(read_table(path))
    return tables


# --- Clean -------------------------------------------------------------------------------------------------------


def clean_part(
    rows: pa.Table,
    filters: Sequence[Filter],
    key: Callable[[str], bytes],
    signatures: Callable[[list[str]], np.ndarray] | None = None,
) -> pa.Table:
    """The rows with each filter applied in turn, and four columns of ours (MARKS).

    A removed row stays in the table as it was found, so that it can be counted, shown and written out.
    """
    own = rows.column_names
    cleaned, removed, why, keys, texts = [], [], [], [], []
    for row in rows.to_pylist():
        found, name, reason = row, None, None
        text = "\n".join(texts_of(row))
        for item in filters:
            reason = item.problem(text) if item.problem is not None else None
            if reason is not None:
                name = item.name
                break
            if item.change is not None:
                row = with_texts(row, item.change)
                text = "\n".join(texts_of(row))
        cleaned.append(found if name else row)
        removed.append(name)
        why.append(reason)
        keys.append(key(text))
        texts.append("" if name else text)
    table = pa.table(
        {column: pa.array([row[column] for row in cleaned], rows.schema.field(column).type) for column in own}
    )
    marks = {"_removed": pa.array(removed, pa.string()), "_why": pa.array(why, pa.string())}
    marks["_key"] = pa.array(keys, pa.binary(16))
    if signatures is not None:
        made = np.ascontiguousarray(signatures(texts))
        width = made.shape[1] * made.itemsize
        marks["_signature"] = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(width), len(made), [None, pa.py_buffer(made)]
        )
    for column, values in marks.items():
        table = table.append_column(column, values)
    return table


def first_of_its_kind(keys: np.ndarray, alive: np.ndarray) -> np.ndarray:
    """(n, 16) uint8 keys -> (n,) whether a row is the first alive one with its key."""
    numbers = np.flatnonzero(alive)
    halves = np.ascontiguousarray(keys[numbers]).view(np.uint64)
    order = np.lexsort((numbers, halves[:, 1], halves[:, 0]))
    ordered = halves[order]
    first = np.ones(len(order), dtype=bool)
    first[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    kept = np.zeros(len(alive), dtype=bool)
    kept[numbers[order[first]]] = True
    return kept


def binary_column(tables: Sequence[pa.Table], name: str, kind: type) -> Iterator[np.ndarray]:
    """A fixed-size binary column, a (rows, width) array for each table, as it lies in the mapped file."""
    for table in tables:
        column = table.column(name).combine_chunks()
        width = column.type.byte_width
        bytes_ = np.frombuffer(column.buffers()[1], dtype=np.uint8)[column.offset * width :][: len(column) * width]
        yield bytes_.view(kind).reshape(len(column), -1)


# --- Encode ------------------------------------------------------------------------------------------------------


def encode_part(
    texts: Sequence[str], encode_batch: Callable[[list[str]], list[list[int]]], eos_token_id: int, vocab_size: int
) -> pa.Table:
    """Texts -> {"input_ids", "bytes"}: their ids, each ended by EOS, and the length of the text in UTF-8."""
    kind = np.uint16 if vocab_size <= 2**16 else np.uint32
    sizes = [len(text.encode()) for text in texts]
    ids, lengths = [], []
    for some in _calls(texts, sizes):
        for of_text in encode_batch(some):
            ids.append(np.array([*of_text, eos_token_id], dtype=kind))
            lengths.append(len(of_text) + 1)
    values = np.concatenate(ids) if ids else np.empty(0, dtype=kind)
    tokens = pa.LargeListArray.from_arrays(np.cumsum([0, *lengths], dtype=np.int64), values)
    return pa.table({"input_ids": tokens, "bytes": pa.array(sizes, pa.int64())})


def _calls(texts: Sequence[str], sizes: Sequence[int]) -> Iterator[list[str]]:
    some, size = [], 0
    for text, of_text in zip(texts, sizes, strict=True):
        if some and size + of_text > CALL_BYTES:
            yield some
            some, size = [], 0
        some.append(text)
        size += of_text
    if some:
        yield some


class Tokens:
    """The token ids of a corpus' documents, mapped from the parts that `encode_part` made."""

    def __init__(self, tables: Sequence[pa.Table]):
        columns = [table.column("input_ids").combine_chunks() for table in tables]
        self._ids = [column.values.to_numpy() for column in columns]
        self._offsets = [column.offsets.to_numpy() for column in columns]
        self._ends = np.cumsum([len(column) for column in columns])
        self.lengths = np.concatenate([np.diff(offsets) for offsets in self._offsets]).astype(np.int32)
        self.bytes = np.concatenate([table.column("bytes").to_numpy() for table in tables])

    def __getitem__(self, document: int) -> np.ndarray:
        part = int(np.searchsorted(self._ends, document, side="right"))
        k = document - (self._ends[part - 1] if part else 0)
        return self._ids[part][self._offsets[part][k] : self._offsets[part][k + 1]]


# --- Order and write ---------------------------------------------------------------------------------------------


class Joined:
    """Documents of several corpora in one order, as one stream that is sliced like an array and never joined.

    Args:
        corpora: their Tokens.
        source, document: (N,) the n-th document is corpora[source[n]][document[n]].
    """

    def __init__(self, corpora: Sequence[Tokens], source: np.ndarray, document: np.ndarray):
        self.corpora, self.source, self.document = corpora, source, document
        lengths = np.zeros(len(source), dtype=np.int64)
        for i, corpus in enumerate(corpora):
            lengths[source == i] = corpus.lengths[document[source == i]]
        self.ends = np.cumsum(lengths)

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __getitem__(self, where: slice) -> np.ndarray:
        start, stop, _ = where.indices(len(self))
        first = int(np.searchsorted(self.ends, start, side="right"))
        last = int(np.searchsorted(self.ends, stop, side="left"))
        before = int(self.ends[first - 1]) if first else 0
        return self.documents(first, last + 1)[start - before : stop - before]

    def documents(self, first: int, stop: int) -> np.ndarray:
        """Documents number first ... stop - 1, joined."""
        pairs = zip(self.source[first:stop], self.document[first:stop], strict=True)
        found = [self.corpora[i][int(d)] for i, d in pairs]
        return np.concatenate(found) if found else np.empty(0, dtype=np.uint16)


def write_windows(stream: Joined, folder: Path, vocab_size: int, progress: Callable, **options: Any) -> list[Part]:
    """The windows of a stream (options as for `Windows`), ROWS_PER_PART to a file; [] where it is too short."""
    if len(stream) < 2:
        return []
    windows = Windows(stream, **options)
    starts = range(0, len(windows), ROWS_PER_PART)

    def rows(start: int) -> Iterator[dict[str, np.ndarray]]:
        return (windows[k] for k in range(start, min(start + ROWS_PER_PART, len(windows))))

    return [_write(rows(start), folder, n, vocab_size) for n, start in enumerate(progress(starts))]


def write_documents(
    stream: Joined, folder: Path, vocab_size: int, progress: Callable, max_length: int, pack: bool
) -> tuple[list[Part], float, float]:
    """Rows of whole documents, a GROUP of them to a file; also the shares of padding and of cut tokens."""
    parts, cut = [], 0.0
    for n, first in enumerate(progress(range(0, len(stream.ends), GROUP))):
        stop = min(first + GROUP, len(stream.ends))
        before = stream.ends[first - 1] if first else 0
        rows = PackedRows(stream.documents(first, stop), stream.ends[first:stop] - before, max_length, pack=pack)
        parts.append(_write((rows[k] for k in range(len(rows))), folder, n, vocab_size))
        cut += rows.cut_share * len(rows.ids)
    filled = sum(part.tokens for part in parts)
    return parts, 1 - filled / (sum(part.rows for part in parts) * max_length), cut / filled


def _write(rows: Iterable[dict[str, np.ndarray]], folder: Path, n: int, vocab_size: int) -> Part:
    path = folder / f"part-{n:05d}.arrow"
    return write_part(rows, path, vocab_size)


__all__ = [
    "MARKS",
    "Filter",
    "Joined",
    "Tokens",
    "binary_column",
    "clean_part",
    "encode_part",
    "first_of_its_kind",
    "in_parts",
    "part_bounds",
    "texts_of",
    "with_texts",
    "write_documents",
    "write_windows",
]
