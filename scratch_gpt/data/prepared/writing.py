"""Encode the remaining texts, put them in one order, and write the Arrow files of a prepared folder.

encode    encode texts as token ids, mapped from disk
join      join the documents of several corpora in a given order to one stream, without loading it into memory
write     write the stream as rows (windows.py, packing.py) to files (storage.py), or cleaned text rows unchanged
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ...tokenization.documents import EncodeBatch, encode_documents, join_encoded
from ..rows.block import RowBlock
from ..rows.packing import GROUP, PackedRows
from ..rows.windows import Windows
from .pipeline import MARK_COLUMNS, PART_ROWS, ShowProgress
from .storage import ROWS_PER_PART, Part, column_of, write_part, write_table


BLOCK_TOKENS = 2**18  # positions of the rows that are computed at once


# --- Encode ------------------------------------------------------------------------------------------------------


def encode_part(texts: Sequence[str], encode_batch: EncodeBatch, eos_token_id: int, vocab_size: int) -> pa.Table:
    """Return {"input_ids", "bytes"}: the ids of each text followed by EOS, and its length in UTF-8."""
    encoded = join_encoded(encode_documents(texts, encode_batch, eos_token_id))
    offsets = np.append(0, np.cumsum(encoded.lengths))
    ids = encoded.ids.astype(np.uint16 if vocab_size <= 2**16 else np.uint32)
    return pa.table({"input_ids": pa.LargeListArray.from_arrays(offsets, ids), "bytes": pa.array(encoded.bytes)})


class Tokens:
    """The token ids of a corpus' documents, mapped from the parts written by `encode_part`."""

    def __init__(self, tables: Sequence[pa.Table]):
        columns = [column_of(table, "input_ids") for table in tables]
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
    """Documents of several corpora in one order, as one stream that can be sliced; only a slice is ever in memory.

    Args:
        corpora: the Tokens of each corpus.
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
        parts = self._parts(first, last + 1)
        if parts:  # cut the last document first, because it can also be the first
            parts[-1] = parts[-1][: len(parts[-1]) - max(0, int(self.ends[min(last, len(self.ends) - 1)]) - stop)]
            parts[0] = parts[0][start - before :]
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.uint16)

    def documents(self, first: int, stop: int) -> np.ndarray:
        """Return documents number first ... stop - 1, joined."""
        return np.concatenate(self._parts(first, stop))

    def _parts(self, first: int, stop: int) -> list[np.ndarray]:
        pairs = zip(self.source[first:stop].tolist(), self.document[first:stop].tolist(), strict=True)
        return [self.corpora[i][d] for i, d in pairs]


def write_windows(stream: Joined, folder: Path, vocab_size: int, progress: ShowProgress, **options: Any) -> list[Part]:
    """Write the windows of a stream, ROWS_PER_PART in each file; the options are those of `Windows`."""
    windows = Windows(stream, **options)
    starts = range(0, len(windows), ROWS_PER_PART)
    parts = []
    for n, start in enumerate(progress(starts)):
        blocks = _blocks(windows, start, min(start + ROWS_PER_PART, len(windows)))
        parts.append(write_part(blocks, folder / f"part-{n:05d}.arrow", vocab_size))
    return parts


def _blocks(rows: Windows | PackedRows, start: int, stop: int) -> Iterator[RowBlock]:
    step = max(1, BLOCK_TOKENS // rows.max_length)
    return (rows.block(first, min(first + step, stop)) for first in range(start, stop, step))


def write_documents(
    stream: Joined, folder: Path, vocab_size: int, progress: ShowProgress, max_length: int, pack: bool
) -> tuple[list[Part], float, float]:
    """Write rows of complete documents, GROUP documents in each file.

    Returns:
        The parts, the share of padding, and the share of tokens in documents longer than a row.
    """
    parts, cut_tokens = [], 0.0
    for n, first in enumerate(progress(range(0, len(stream.ends), GROUP))):
        stop = min(first + GROUP, len(stream.ends))
        before = stream.ends[first - 1] if first else 0
        rows = PackedRows(stream.documents(first, stop), stream.ends[first:stop] - before, max_length, pack=pack)
        parts.append(write_part(_blocks(rows, 0, len(rows)), folder / f"part-{n:05d}.arrow", vocab_size))
        cut_tokens += rows.cut_share * len(rows.ids)
    filled = sum(part.tokens for part in parts)
    return parts, 1 - filled / (sum(part.rows for part in parts) * max_length), cut_tokens / filled


def shared_schema(schemas: Sequence[pa.Schema]) -> pa.Schema:
    """Return the columns shared by all corpora, each with a common type and the names of its classes.

    Raises:
        ValueError: the corpora share no column, or a shared one has incompatible types or different classes.
    """
    described, fields, features = [_feature_descriptions(schema) for schema in schemas], [], {}
    names = [name for name in schemas[0].names if name not in MARK_COLUMNS]
    for name in [name for name in names if all(name in schema.names for schema in schemas)]:
        fields.append(_unify_column(name, [schema.field(name) for schema in schemas]))
        descriptions = [columns.get(name) for columns in described]
        if all(description == descriptions[0] for description in descriptions):
            features |= {name: descriptions[0]} if descriptions[0] else {}
        elif "ClassLabel" in str(descriptions):
            raise ValueError(f"The column {name!r} has different classes in two corpora. Rename it in one of them.")
    if not fields:
        raise ValueError(f"The corpora have no column in common. The first corpus has {', '.join(names)}.")
    return pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": features}})})


def _feature_descriptions(schema: pa.Schema) -> dict[str, Any]:
    # The description that `datasets` stores for each column in addition to its type, mainly the names of classes.
    return json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features") or {}


def _unify_column(name: str, columns: list[pa.Field]) -> pa.Field:
    try:
        return pa.unify_schemas([pa.schema([column]) for column in columns], promote_options="permissive").field(0)
    except (pa.ArrowTypeError, pa.ArrowInvalid) as error:
        kinds = " and ".join(dict.fromkeys(str(column.type) for column in columns))
        raise ValueError(
            f"The column {name!r} has the types {kinds}, which cannot be combined. Convert or rename it in one corpus."
        ) from error


def write_texts(
    corpora: Sequence[Sequence[pa.Table]],
    source: np.ndarray,
    document: np.ndarray,
    folder: Path,
    progress: ShowProgress,
) -> list[tuple[int, str]]:
    """Write cleaned rows in the given order, with the columns shared by all corpora.

    Returns:
        (rows, SHA-256 of their content) of each file.
    """
    corpus_tables = [pa.concat_tables(tables) for tables in corpora]
    schema = shared_schema([table.schema for table in corpus_tables])
    parts = []
    for n, start in enumerate(progress(range(0, len(source), PART_ROWS))):
        corpus_numbers, document_numbers = source[start : start + PART_ROWS], document[start : start + PART_ROWS]
        selections = [
            corpus_tables[i].select(schema.names).take(pa.array(document_numbers[corpus_numbers == i]))
            for i in np.unique(corpus_numbers)
        ]
        order = np.argsort(np.concatenate([np.flatnonzero(corpus_numbers == i) for i in np.unique(corpus_numbers)]))
        table = pa.concat_tables([schema.empty_table(), *selections], promote_options="permissive").take(
            pa.array(order)
        )
        table = table.replace_schema_metadata(schema.metadata)
        write_table(table, folder / f"part-{n:05d}.arrow")
        content = json.dumps(table.to_pylist(), sort_keys=True, ensure_ascii=False, default=str)
        parts.append((len(table), hashlib.sha256(content.encode()).hexdigest()))
    return parts


__all__ = ["Joined", "Tokens", "encode_part", "shared_schema", "write_documents", "write_texts", "write_windows"]
