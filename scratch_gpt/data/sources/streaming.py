"""Read documents as a stream, without a copy on disk."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import datasets
import pyarrow as pa

from ...utils.local_files import LocalFile, one_line
from ..columns import one_column
from ..splits import check_fractions
from .documents import check_text_column, has_text, open_dataset, open_either
from .location import EMBEDDED, Location, locate
from .tables import read_tables


class DocumentStream(NamedTuple):
    """A corpus that is read while it is used."""

    read: Callable[[int, int], Iterator[str]]  # read(shard, start) yields a shard's documents from number `start` on
    shards: int
    splits: dict[str, datasets.Dataset]  # "validation", "test", and a sample of the streamed documents as "train"
    record: dict[str, Any]
    notices: list[str]


def open_stream(
    dataset: str | Location = EMBEDDED,
    text_column: str = "text",
    validation_fraction: float = 0.1,
    test_fraction: float = 0.0,
    head: int = 10_000,
) -> DocumentStream:
    """Stream documents; fractions of the first `head` documents are held out.

    Raises:
        ValueError: as `open_documents` and `split_documents`.
    """
    fractions = check_fractions(validation_fraction, test_fraction)
    where = locate(dataset)
    name, columns = where.dataset, one_column(text_column)

    def read_files(files: list[LocalFile]) -> datasets.IterableDataset:
        return datasets.IterableDataset.from_generator(_stream_files, gen_kwargs={"files": files, "name": text_column})

    rows, record, notices = open_either(where, columns, None, read_files, partial(open_dataset, streaming=True))
    shards = rows.num_shards

    def shard(number: int) -> datasets.IterableDataset:
        return rows.shard(num_shards=shards, index=number) if shards > 1 else rows

    sample, shard_of = [], []  # the first documents, from one or more shards, and the shard of each
    try:
        for number in range(shards):
            documents = list(shard(number).take(head - len(sample)))
            sample, shard_of = sample + documents, shard_of + [number] * len(documents)
            if len(sample) >= head:
                break
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(f"{name} cannot be read: {one_line(error.__cause__ or error)}") from error
    if not sample:
        raise ValueError(f"{name} contains no text.")
    check_text_column(name, list(sample[0]), rows.features, text_column)
    texts = [row[text_column] for row in sample]
    held_out, start = {}, 0
    for split, fraction in fractions.items():
        end = start + max(1, round(fraction * len(texts)))
        held_out[split], start = texts[start:end], end
    held_out["train"] = texts[start:]
    for split, part in held_out.items():
        if not any(has_text({"text": part})):
            raise ValueError(
                f"The first {len(texts)} documents of {name} leave nothing for {split}. Turn streaming off to split a "
                "small corpus, or set validation_fraction to 0."
            )

    def read(number: int, first: int) -> Iterator[str]:
        rows_of_shard = shard(number)
        skipped = first + shard_of[:start].count(number)
        for row in rows_of_shard.skip(skipped) if skipped else rows_of_shard:
            yield row[text_column] or ""

    splits = {
        split: datasets.Dataset.from_dict({"text": [text for text in part if text and not text.isspace()]})
        for split, part in held_out.items()
    }
    return DocumentStream(read, shards, splits, record, notices)


def _stream_files(files: list[LocalFile], name: str) -> Iterator[dict[str, str | None]]:
    for file in files:
        for table in read_tables(file, one_column(name)):
            kind = table.schema.field(name).type
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)):
                raise ValueError(
                    f"Column {name!r} of {file.name} has the type {kind}, not text. Choose another text_column."
                )
            yield from table.to_pylist()


__all__ = ["DocumentStream", "open_stream"]
