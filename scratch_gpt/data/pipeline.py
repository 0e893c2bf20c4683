"""Corpora -> a prepared folder, in stages that each leave parts behind: a run that was killed goes on from them.

    clean      rows of a corpus -> the same rows, changed or marked as removed (filter, why), and what identifies them
    select     keys, signatures -> which rows are duplicates; what is left -> splits
    encode     texts that are kept -> token ids
    order      corpora -> one sequence of documents (mixture.py), or each as it lies
    write      documents -> rows (windows.py, packing.py) -> Arrow files (prepared.py)

A part is a file that is whole or not there, and a function of its stage's input: whatever is there is used again. What
stays in memory is a few numbers a document; texts, tokens and rows are mapped from disk.
"""

import hashlib
import json
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
MARKS = (
    "_removed",
    "_why",
    "_changed",
    "_key",
    "_signature",
    "_emptied",
    "_shortened",
)  # columns of ours beside a row's own


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
    key: Callable[[str], bytes] | None = None,
    signatures: Callable[[list[str]], np.ndarray] | None = None,
) -> pa.Table:
    """The rows with each filter applied in turn, and columns of ours beside their own (MARKS).

    A removed row stays in the table as it was found, so that it can be counted, shown and written out.
    """
    cleaned, removed, why, changed, texts = [], [], [], [], []
    for found in rows.to_pylist():
        row, text, name, reason, changes = found, "\n".join(texts_of(found)), None, None, []
        for item in filters:
            reason = item.problem(text) if item.problem is not None else None
            if reason is not None:
                name = item.name
                break
            if item.change is not None:
                row = with_texts(row, item.change)
                before, text = text, "\n".join(texts_of(row))
                changes += [item.name] if text != before else []
        cleaned.append(found if name else row)
        removed.append(name)
        why.append(reason)
        changed.append(changes)
        texts.append("" if name else text)
    columns = {
        column: pa.array([row[column] for row in cleaned], rows.schema.field(column).type)
        for column in rows.column_names
    }
    columns["_removed"] = pa.array(removed, pa.string())
    columns["_why"] = pa.array(why, pa.string())
    columns["_changed"] = pa.array(changed, pa.list_(pa.string()))
    if key is not None:
        columns["_key"] = pa.array([key(text) for text in texts], pa.binary(16))
    if signatures is not None:
        made = np.ascontiguousarray(signatures(texts))
        kind = pa.binary(made.shape[1] * made.itemsize)
        columns["_signature"] = pa.FixedSizeBinaryArray.from_buffers(kind, len(made), [None, pa.py_buffer(made)])
    return pa.table(columns)


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


def texts_of_table(table: pa.Table, alive: np.ndarray | None = None) -> list[str]:
    """The column "text" of a table; "" for what is not alive."""
    texts = table.column("text").to_pylist()
    return texts if alive is None else [text if here else "" for text, here in zip(texts, alive.tolist(), strict=True)]


def texts_at(tables: Sequence[pa.Table], numbers: np.ndarray) -> Iterator[str]:
    """The texts of the rows with these numbers, counted through the tables, a table at a time."""
    start = 0
    for table in tables:
        inside = numbers[(numbers >= start) & (numbers < start + len(table))] - start
        yield from table.column("text").take(pa.array(inside)).to_pylist()
        start += len(table)


def change_part(table: pa.Table, alive: np.ndarray, change: Callable[[str], str]) -> pa.Table:
    """Rows with each text changed; "_emptied" and "_shortened" say of which ones nothing or less is left."""
    rows, shortened, emptied = table.to_pylist(), [], []
    for n, row in enumerate(rows):
        own = {name: value for name, value in row.items() if name not in MARKS}
        changed = with_texts(own, change) if alive[n] else own
        shortened.append(changed != own)
        emptied.append(shortened[-1] and not any(text.strip() for text in texts_of(changed)))
        row.update(changed)
    changed = pa.Table.from_pylist(rows, table.schema)
    return changed.append_column("_emptied", pa.array(emptied)).append_column("_shortened", pa.array(shortened))


class Selection:
    """Which rows of all corpora are left, and what each filter has taken: {name: {"in", "removed"}}.

    Rows are numbered through all tables of all corpora, in order.
    """

    def __init__(self, tables: Sequence[pa.Table], filters: Sequence[Filter]):
        removed = [table.column("_removed").combine_chunks().dictionary_encode() for table in tables]
        names = [item.name for item in filters]
        self.by = np.concatenate([np.full(0, -1, np.int8), *(_numbers(column, names) for column in removed)])
        self.names, self.counts = names, {}
        left = len(self.by)
        for number, item in enumerate(filters):
            taken = int((self.by == number).sum())
            self.counts[item.name] = {"in": left, "removed": taken}
            left -= taken
            if item.change is not None:
                changed = [table.column("_changed").combine_chunks().flatten() for table in tables]
                self.counts[item.name]["changed"] = sum(
                    pc.sum(pc.equal(names, item.name)).as_py() or 0 for names in changed
                )

    @property
    def alive(self) -> np.ndarray:
        """(rows,) bool."""
        return self.by < 0

    def remove(self, name: str, rows: np.ndarray) -> None:
        """Take out these rows (bool) of those that are left, in the name of a filter."""
        alive = self.alive
        self.counts[name] = {"in": int(alive.sum()), "removed": int((alive & rows).sum())}
        self.names.append(name)
        self.by[alive & rows] = len(self.names) - 1


def _numbers(column: pa.DictionaryArray, names: list[str]) -> np.ndarray:
    own = np.array([names.index(name) for name in column.dictionary.to_pylist()], dtype=np.int8)
    indices = pc.fill_null(column.indices, -1).to_numpy(zero_copy_only=False)
    return np.where(indices < 0, -1, own[indices] if len(own) else -1).astype(np.int8)


# --- Encode ------------------------------------------------------------------------------------------------------


def encode_part(
    texts: Sequence[str], encode_batch: Callable[[list[str]], list[list[int]]], eos_token_id: int, vocab_size: int
) -> pa.Table:
    """Texts -> {"input_ids", "bytes"}: their ids, each ended by EOS, and the length of the text in UTF-8."""
    kind = np.uint16 if vocab_size <= 2**16 else np.uint32
    sizes = [len(text.encode()) for text in texts]
    ids, lengths = [np.empty(0, dtype=kind)], []
    for some in _calls(texts, sizes):
        for of_text in encode_batch(some):
            ids.append(np.array([*of_text, eos_token_id], dtype=kind))
            lengths.append(len(of_text) + 1)
    offsets = np.cumsum([0, *lengths], dtype=np.int64)
    tokens = pa.LargeListArray.from_arrays(offsets, np.concatenate(ids))
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


def write_texts(
    corpora: Sequence[Sequence[pa.Table]], source: np.ndarray, document: np.ndarray, folder: Path, progress: Callable
) -> list[tuple[int, str]]:
    """Rows as they are after cleaning, in an order, with the columns that all corpora have; (rows, SHA-256) a file."""
    wholes = [pa.concat_tables(tables) for tables in corpora]
    names = [name for name in wholes[0].column_names if name not in MARKS]
    names = [name for name in names if all(name in whole.column_names for whole in wholes)]
    parts = []
    for n, start in enumerate(progress(range(0, len(source), PART_ROWS))):
        of, which = source[start : start + PART_ROWS], document[start : start + PART_ROWS]
        found = [wholes[i].select(names).take(pa.array(which[of == i])) for i in np.unique(of)]
        back = np.argsort(np.concatenate([np.flatnonzero(of == i) for i in np.unique(of)]))
        table = pa.concat_tables(found, promote_options="permissive").take(pa.array(back))
        write_table(table, folder / f"part-{n:05d}.arrow")
        content = json.dumps(table.to_pylist(), sort_keys=True, ensure_ascii=False, default=str)
        parts.append((len(table), hashlib.sha256(content.encode()).hexdigest()))
    return parts


def _write(rows: Iterable[dict[str, np.ndarray]], folder: Path, n: int, vocab_size: int) -> Part:
    path = folder / f"part-{n:05d}.arrow"
    return write_part(rows, path, vocab_size)


__all__ = [
    "MARKS",
    "Filter",
    "Joined",
    "Selection",
    "Tokens",
    "binary_column",
    "change_part",
    "clean_part",
    "encode_part",
    "first_of_its_kind",
    "in_parts",
    "part_bounds",
    "sizes_of_texts",
    "texts_at",
    "texts_of",
    "texts_of_table",
    "with_texts",
    "write_documents",
    "write_texts",
    "write_windows",
]
