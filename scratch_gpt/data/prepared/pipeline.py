"""Filter rows part by part, marking removed rows; an interrupted run resumes from the parts that are complete.

    clean      apply the filters in turn, and compute the keys that identify duplicates
    select     keep track of the remaining rows and of the number that each filter removed
    change     apply a stage in which a row depends on earlier rows

A part is a file that is either complete or missing. It depends only on the input of its stage, so an existing part is
reused. Memory holds a few numbers for each document; texts, tokens and rows are mapped from disk.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc  # its functions are generated on import, so their types are unknown

from ...utils.watchdog import beat
from .storage import column_of, read_table, write_table


PART_BYTES = 8 * 2**20  # of text
PART_ROWS = 2000
MARK_COLUMNS = (
    "_removed",
    "_why",
    "_changed",
    "_bytes",
    "_key",
    "_signature",
    "_emptied",
    "_shortened",
)  # columns that this module adds to the input's


# Columns of conversations, instructions and preferences that recipes learn from; the other columns are metadata.
LEARNED = ("messages", "instruction", "input", "output", "prompt", "completion", "chosen", "rejected")
ID = re.compile(r"(?:.*[_-])?(?:id|idx|index|uuid|guid)", re.IGNORECASE)  # names of columns that number the rows


ShowProgress = Callable[[Iterable[int]], Iterator[int]]  # iterate and show the progress


class Filter(NamedTuple):
    """A filter that removes rows, changes their texts, or both."""

    name: str
    # For each text, yield the reason to remove its row, or None.
    problems: Callable[[Sequence[str]], Iterable[str | None]] | None = None
    change: Callable[[str], str] | None = None  # return the new version of one text of a row


def texts_of(value: Any) -> Iterator[str]:
    """Yield all texts of a row, or of a part of it (messages, answers), in order. The role of a message is skipped."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if not _is_role(value, key):
                yield from texts_of(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from texts_of(inner)


def learned_text(row: Mapping[str, Any], text_column: str | None = None) -> str:
    """Return the text that identifies a row: its text column, or if that is empty the columns that recipes learn from.

    Those are LEARNED and the label of a preference. If a row has none of them, all its texts except ids are used.
    """
    text = None if text_column is None else row[text_column]
    if text and not text.isspace():
        return text
    names = [name for name in LEARNED if row.get(name) is not None]
    if names and isinstance(row.get("label"), bool):
        return " \0 ".join([*texts_of([row[name] for name in names]), str(row["label"])])
    names = names or [name for name in row if not ID.fullmatch(name)] or [*row]
    return " \0 ".join(texts_of([row[name] for name in names]))  # \0 distinguishes "a b", "c" from "a", "b c"


def with_texts(value: Any, change: Callable[[str], str]) -> Any:
    """Return the value with each of its texts changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: inner if _is_role(value, key) else with_texts(inner, change) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [with_texts(inner, change) for inner in value]
    return value


def _is_role(value: Mapping, key: str) -> bool:
    return key == "role" and "content" in value


# --- Parts -------------------------------------------------------------------------------------------------------


def sizes_of_texts(table: pa.Table) -> np.ndarray:
    """Return the bytes of text in each row's text columns, not counting texts inside messages: (rows,)."""
    sizes = np.zeros(table.num_rows, dtype=np.int64)
    for field in table.schema:
        if field.name not in MARK_COLUMNS and (pa.types.is_string(field.type) or pa.types.is_large_string(field.type)):
            lengths = pc.binary_length(table.column(field.name))  # pyright: ignore[reportAttributeAccessIssue]
            sizes += pc.fill_null(lengths, 0).to_numpy()
    return sizes


def part_bounds(table: pa.Table) -> list[int]:
    """Return the starts of parts of about PART_BYTES of text and at most PART_ROWS rows, and the end of the last."""
    bounds, start, reached = [0], 0, np.cumsum(sizes_of_texts(table))
    while start < table.num_rows:
        before = reached[start - 1] if start else 0
        end = int(np.searchsorted(reached, before + PART_BYTES, side="right"))
        start = min(max(end, start + 1), start + PART_ROWS, table.num_rows)
        bounds.append(start)
    return bounds


def in_parts(folder: Path, count: int, make: Callable[[int], pa.Table], progress: ShowProgress) -> list[pa.Table]:
    """Return the mapped tables of a stage: part n is `make(n)`, written if its file does not exist yet."""
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
    text_column: str | None = None,
) -> pa.Table:
    """Return the rows after each filter in turn, with our own columns (MARK_COLUMNS) added.

    A removed row stays in the table unchanged, so that it can be counted, shown and written out.

    Args:
        key, signatures: functions of the row's `learned_text`, used to find duplicates.
        text_column: the column that holds the text.
    """
    originals = rows.to_pylist()
    cleaned, texts = [*originals], ["\n".join(texts_of(row)) for row in originals]
    removed: list[str | None] = [None] * len(rows)
    reasons, changed = [*removed], [[] for _ in originals]
    for item in filters:
        left = [k for k, name in enumerate(removed) if name is None]
        if item.problems is not None:
            for k, reason in zip(left, item.problems([texts[k] for k in left]), strict=True):
                if reason is not None:
                    removed[k], reasons[k], cleaned[k], texts[k] = item.name, reason, originals[k], ""
        if item.change is not None:
            for k in (k for k in left if removed[k] is None):
                cleaned[k] = with_texts(cleaned[k], item.change)
                before, texts[k] = texts[k], "\n".join(texts_of(cleaned[k]))
                changed[k] += [item.name] if texts[k] != before else []
    sizes = [len(text.encode()) for text in texts]
    if key is not None or signatures is not None:
        texts = ["" if name else learned_text(row, text_column) for name, row in zip(removed, cleaned, strict=True)]
    columns = {column: rows.column(column) for column in rows.column_names}
    if any(changed):
        columns = {
            column: pa.array([row[column] for row in cleaned], values.type) for column, values in columns.items()
        }
    columns["_removed"] = pa.array(removed, pa.string())
    columns["_why"] = pa.array(reasons, pa.string())
    columns["_bytes"] = pa.array(sizes, pa.int64())
    columns["_changed"] = pa.array(changed, pa.list_(pa.string()))
    if key is not None:
        columns["_key"] = pa.array([key(text) for text in texts], pa.binary(16))
    if signatures is not None:
        matrix = np.ascontiguousarray(signatures(texts))
        kind = pa.binary(matrix.shape[1] * matrix.itemsize)
        columns["_signature"] = pa.FixedSizeBinaryArray.from_buffers(kind, len(matrix), [None, pa.py_buffer(matrix)])
    return pa.table(columns, metadata=rows.schema.metadata)  # the metadata contain the names of classes


def first_of_its_kind(keys: np.ndarray, alive: np.ndarray) -> np.ndarray:
    """Return for each row the first remaining row with the same key, (n,) int64; a removed row maps to itself.

    Args:
        keys: (n, 16) uint8.
        alive: (n,) bool, whether a row remains.
    """
    numbers = np.flatnonzero(alive)
    halves = np.ascontiguousarray(keys[numbers]).view(np.uint64)
    order = np.lexsort((numbers, halves[:, 1], halves[:, 0]))
    ordered = halves[order]
    is_first = np.ones(len(order), dtype=bool)
    is_first[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    first = np.arange(len(alive))
    first[numbers[order]] = numbers[order[is_first]][np.cumsum(is_first) - 1]
    return first


def binary_column(tables: Sequence[pa.Table], name: str, kind: type) -> Iterator[np.ndarray]:
    """Yield a fixed-size binary column as a (rows, width) array for each table, without copying the mapped file."""
    for table in tables:
        column = column_of(table, name)
        width = column.type.byte_width
        bytes_ = np.frombuffer(column.buffers()[1], dtype=np.uint8)[column.offset * width :][: len(column) * width]
        yield bytes_.view(kind).reshape(len(column), -1)


def texts_of_table(table: pa.Table, alive: np.ndarray) -> list[str]:
    """Return the "text" column of a table, with "" for removed rows."""
    texts = table.column("text").to_pylist()
    return [text if is_alive else "" for text, is_alive in zip(texts, alive.tolist(), strict=True)]


def rows_at(tables: Sequence[pa.Table], numbers: np.ndarray) -> Iterator[dict[str, Any]]:
    """Yield the rows with these numbers, table by table; numbers count the rows of all tables."""
    start = 0
    for table in tables:
        inside = numbers[(numbers >= start) & (numbers < start + len(table))] - start
        yield from table.take(pa.array(inside)).to_pylist()
        start += len(table)
        beat()


def change_part(
    table: pa.Table, alive: np.ndarray, text_column: str, change: Callable[[list[str]], Iterable[str]]
) -> pa.Table:
    """Change the texts of one column; mark changed rows as "_shortened", and those with no text left as "_emptied"."""
    rows, shortened, emptied = table.to_pylist(), [], []
    texts = [row[text_column] or "" for row in rows]
    changed_texts = iter(change([text for text, is_alive in zip(texts, alive.tolist(), strict=True) if is_alive]))
    for row, text, is_alive in zip(rows, texts, alive.tolist(), strict=True):
        changed_text = next(changed_texts) if is_alive else text
        shortened.append(changed_text != text)
        emptied.append(changed_text != text and not changed_text.strip())
        if changed_text != text:
            row[text_column] = changed_text
            fields = {name: value for name, value in row.items() if name not in MARK_COLUMNS}
            row["_bytes"] = len("\n".join(texts_of(fields)).encode())
    changed = pa.Table.from_pylist(rows, table.schema)
    return changed.append_column("_emptied", pa.array(emptied)).append_column("_shortened", pa.array(shortened))


class Selection:
    """The remaining rows of all corpora, and the counts of each filter: {name: {"in", "removed"}}.

    Row numbers count the rows of all tables of all corpora, in order.
    """

    def __init__(self, tables: Sequence[pa.Table], filters: Sequence[Filter]):
        removed = [column_of(table, "_removed").dictionary_encode() for table in tables]
        names = [item.name for item in filters]
        self.by = np.concatenate([np.full(0, -1, np.int8), *(_numbers(column, names) for column in removed)])
        self.names, self.counts = names, {}
        self.copy_of: np.ndarray | None = None  # (rows,) the row that a removed duplicate copies, else the row itself
        remaining = len(self.by)
        for number, item in enumerate(filters):
            removed_count = int((self.by == number).sum())
            self.counts[item.name] = {"in": remaining, "removed": removed_count}
            remaining -= removed_count
            if item.change is not None:
                changed = [column_of(table, "_changed").flatten() for table in tables]
                self.counts[item.name]["changed"] = sum(
                    pc.sum(pc.equal(names, item.name)).as_py() or 0  # pyright: ignore[reportAttributeAccessIssue]
                    for names in changed
                )

    @property
    def alive(self) -> np.ndarray:
        """Return which rows remain: (rows,) bool."""
        return self.by < 0

    def remove_copies(self, name: str, first: np.ndarray) -> None:
        """Remove each row for which `first` (rows,) gives another row, and store that row in `copy_of`."""
        is_copy = self.alive & (first != np.arange(len(first)))
        self.remove(name, is_copy)
        before = np.arange(len(first)) if self.copy_of is None else self.copy_of
        self.copy_of = first[before]  # a row kept by an earlier call may be a copy in this one

    def remove(self, name: str, rows: np.ndarray) -> None:
        """Remove these rows (bool) and count them for the filter `name`; rows already removed do not count."""
        alive = self.alive
        self.counts[name] = {"in": int(alive.sum()), "removed": int((alive & rows).sum())}
        self.names.append(name)
        self.by[alive & rows] = len(self.names) - 1


def _numbers(column: pa.DictionaryArray, names: list[str]) -> np.ndarray:
    filter_numbers = np.array([names.index(name) for name in column.dictionary.to_pylist()], dtype=np.int8)
    indices = pc.fill_null(column.indices, -1).to_numpy(zero_copy_only=False)
    return np.where(indices < 0, -1, filter_numbers[indices] if len(filter_numbers) else -1).astype(np.int8)


COPIES = {"exact_duplicates": "the same text as", "near_duplicates": "nearly the same text as"}
REASONS = {"passages": "its complete text occurs earlier"}  # for filters that compare rows with each other


class Corpus(Protocol):
    """An opened source."""

    @property
    def rows(self) -> Sized: ...

    @property
    def record(self) -> dict[str, Any]: ...


def removed_rows(
    corpora: Sequence[Corpus], tables: Sequence[pa.Table], selection: Selection
) -> Iterator[dict[str, Any]]:
    """Yield every removed row with its filter and reason; pass the tables as they were before passages were cut."""
    starts, start = np.cumsum([0, *(len(corpus.rows) for corpus in corpora)]), 0

    def explain(name: str, number: int) -> str | None:
        if name not in COPIES:
            return REASONS.get(name)
        assert selection.copy_of is not None  # set by remove_copies
        first = int(selection.copy_of[number])
        corpus = int(np.searchsorted(starts, first, side="right")) - 1
        return f"{COPIES[name]} row {first - starts[corpus] + 1} of {corpora[corpus].record['name']}"

    for table in tables:
        for n in (selection.by[start : start + len(table)] >= 0).nonzero()[0].tolist():
            row = table.slice(n, 1).to_pylist()[0]
            fields = {name: value for name, value in row.items() if name not in MARK_COLUMNS}
            name = selection.names[selection.by[start + n]]
            yield {"filter": name, "why": row["_why"] or explain(name, start + n), "row": fields}
        start += len(table)


def write_removed(corpora: Sequence[Corpus], tables: Sequence[pa.Table], selection: Selection, path: Path) -> None:
    """Write removed.jsonl, one line for each removed row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as lines:
        for line in removed_rows(corpora, tables, selection):
            lines.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")


__all__ = [
    "MARK_COLUMNS",
    "PART_ROWS",
    "Filter",
    "Selection",
    "binary_column",
    "change_part",
    "clean_part",
    "first_of_its_kind",
    "in_parts",
    "learned_text",
    "part_bounds",
    "rows_at",
    "sizes_of_texts",
    "texts_of",
    "texts_of_table",
    "with_texts",
]
