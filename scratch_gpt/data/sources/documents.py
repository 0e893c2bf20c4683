"""Open documents as `datasets` rows of {"text": str}: the embedded default, local files or a Hub dataset."""

import hashlib
import json
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, overload

import datasets
import datasets.config
import datasets.table
import numpy as np
import pyarrow as pa
from filelock import FileLock

from ...utils.local_files import LocalFile, count_names, find_files, kind_ending, local_path, looks_local, one_line
from ...utils.wording import plural
from ..columns import Columns, one_column
from ..manifest import is_prepared, read_manifest, verify_files
from ..prepared.pipeline import sizes_of_texts
from ..splits import split_texts
from .location import EMBEDDED, Location, locate
from .python_docs import python_documentation
from .tables import NoRows, columns_of, first_fields, read_tables, write_tables


CACHE_FORMAT = 1  # version of the Arrow files that cache rows between runs
RowsT = TypeVar("RowsT")


class Source(NamedTuple):
    """Rows, a record of their origin, and notices."""

    rows: datasets.Dataset
    record: dict[str, Any]  # for the manifest: each file with its SHA-256, a Hub dataset with its commit
    notices: list[str]  # for the user, such as the files that were not read


def open_documents(dataset: str | Location = EMBEDDED, text_column: str = "text") -> Source:
    """Open documents as rows of {"text": str}, without empty ones.

    Raises:
        ValueError: the dataset, column or split is missing, nothing can be read, or all documents are empty.
    """
    source = open_column(dataset, text_column)
    rows = source.rows.filter(has_text, batched=True, desc="Reading documents")
    if len(rows) == 0:
        raise ValueError(
            f"{locate(dataset).dataset} contains no text: every document of column {text_column!r} is empty."
        )
    return source._replace(rows=rows)


def open_rows(
    dataset: str | Location = EMBEDDED, columns: Columns | None = None, column_names: Sequence[str] | None = None
) -> Source:
    """Open a dataset with the columns in use. Errors as for `open_documents`.

    Args:
        columns: the columns in use; by default all.
        column_names: the names of the columns of .csv or .tsv files without a header.
    """
    where = locate(dataset)
    if column_names is not None and not looks_local(where.dataset):
        raise ValueError(
            f"column_names only works for local .csv and .tsv files without a header; {where.dataset} is not local."
        )
    read = partial(_read_files, where.dataset, columns=columns, column_names=column_names)
    rows, record, notices = open_either(where, columns, column_names, read, open_dataset)
    if columns is not None and not where.is_files:
        _check_columns(where.dataset, rows.column_names, columns)
        rows = rows.select_columns([name for name in rows.column_names if name in columns.names])
    if len(rows) == 0:
        raise ValueError(f"{where.dataset} contains no rows.")
    return Source(rows, record, notices)


def open_either(
    where: Location,
    columns: Columns | None,
    column_names: Sequence[str] | None,
    read_files: Callable[[list[LocalFile]], RowsT],
    read_dataset: Callable[[Location], RowsT],
) -> tuple[RowsT, dict[str, Any], list[str]]:
    """Open local files with `read_files` and anything else with `read_dataset`; return rows, record and notices.

    Args:
        columns, column_names: as for `open_rows`; they choose the files.
    """
    if where.is_files:
        files, notices = choose_files(where.dataset, columns, column_names)
        return read_files(files), source_record(where, files), notices
    return read_dataset(where), describe_source(where), []


def open_column(dataset: str | Location = EMBEDDED, text_column: str = "text") -> Source:
    """Open all rows as {"text": str or None}, including empty ones. Errors as for `open_documents`."""
    source = open_rows(dataset, one_column(text_column))
    return source._replace(rows=_text_only(locate(dataset).dataset, source.rows, text_column))


def _text_only(dataset: str, rows: datasets.Dataset, text_column: str) -> datasets.Dataset:
    check_text_column(dataset, rows.column_names, rows.features, text_column)
    rows = rows.select_columns(text_column)
    return rows if text_column == "text" else rows.rename_column(text_column, "text")


def describe_source(where: Location) -> dict[str, Any]:
    """Return the record of rows that are not local files: a Hub dataset with its commit, or prepared data."""
    record = source_record(where)
    if where.dataset == EMBEDDED:
        return {**record, "revision": f"Python {sysconfig.get_config_var('py_version')}"}
    if is_prepared(where.dataset):
        folder = Path(where.dataset)
        return {**record, "dataset": folder.name, "prepared": read_manifest(folder)["sha256"]}
    builder = datasets.load_dataset_builder(where.dataset, where.config, revision=where.revision)
    for url in (builder.config.data_files or {}).get(where.split, []):  # hf://datasets/NAME@COMMIT/FILE
        commit, _, name = url.partition("@")[2].partition("/")
        record["revision"] = commit or where.revision
        record["files"].append({"name": name or url})  # without a hash: the commit identifies the content
    return record


def source_record(where: Location, files: Sequence[LocalFile] = ()) -> dict[str, Any]:
    """Return a location in the form of the manifest, with its local files."""
    name = local_path(where.dataset).name if files else where.dataset
    return {**where._asdict(), "dataset": name, "files": [file.record for file in files]}


def open_prepared_text(folder: str) -> dict[str, datasets.Dataset]:
    """Return the mapped splits of a folder of cleaned text rows (task "text" of training/prepare.py).

    Raises:
        ValueError: the folder contains token rows, or a file differs from the manifest.
    """
    manifest = read_manifest(Path(folder))
    if manifest["task"] != "text":
        raise ValueError(f"{folder} contains token ids, but text is needed. Prepare the data with task='text'.")
    verify_files(Path(folder), manifest)
    files = [(Path(file["name"]), file["sha256"]) for file in manifest["files"]]
    return {
        split: datasets.concatenate_datasets(
            [_mapped(local_path(folder) / path, sha256) for path, sha256 in files if path.parts[0] == split]
        )
        for split in manifest["splits"]
    }


def open_splits(
    dataset: str | Location = EMBEDDED,
    text_column: str = "text",
    validation_fraction: float = 0.1,
    test_fraction: float = 0.0,
    seed: int = 0,
    by_number: bool = False,
) -> tuple[dict[str, datasets.Dataset], dict[str, Any], list[str]]:
    """Open the documents of each split, with their record and notices; prepared text keeps its splits.

    Args:
        by_number: as in `split_documents`.

    Raises:
        ValueError: as `open_documents` and `split_documents`.
    """
    name = locate(dataset).dataset
    if is_prepared(name):
        splits = {split: _text_only(name, rows, text_column) for split, rows in open_prepared_text(name).items()}
        return splits, describe_source(Location(name)), []
    documents, record, notices = open_documents(dataset, text_column)
    return split_documents(documents, validation_fraction, test_fraction, seed, by_number), record, notices


def split_documents(
    documents: datasets.Dataset,
    validation_fraction: float = 0.1,
    test_fraction: float = 0.0,
    seed: int = 0,
    by_number: bool = False,
) -> dict[str, datasets.Dataset]:
    """Split documents into {"train", "validation", "test"}; documents are cut only if the shares require it.

    `split_texts` assigns the documents and cuts them. A split with a fraction of 0 is missing from the result.

    Args:
        by_number: split by count, as older versions did; only a single document is cut.

    Raises:
        ValueError: a fraction is outside [0, 1), their sum is 1 or more, or there is too little text.
    """
    batches = documents.with_format("arrow").iter(1000)
    sizes = np.concatenate([np.empty(0, np.int64), *map(sizes_of_texts, batches)])
    numbers, pieces = split_texts(
        sizes, lambda n: documents[n]["text"], validation_fraction, test_fraction, seed, by_number
    )
    if pieces:
        piece_rows = datasets.Dataset.from_dict({"text": [piece for _, piece in pieces]}, documents.features)
        documents = datasets.concatenate_datasets([documents, piece_rows])
    return {name: documents.select(indices) for name, indices in numbers.items()}


def is_text(feature: Any) -> bool:
    """Return whether a column with this feature of `datasets` contains text."""
    return getattr(feature, "dtype", None) in ("string", "large_string")


def check_text_column(dataset: str, columns: list[str], features: datasets.Features | None, text_column: str) -> None:
    if text_column not in columns:
        raise ValueError(
            f"{dataset} has no column {text_column!r}, only {', '.join(columns)}. Choose another text_column."
        )
    kind = (features or {}).get(text_column)
    if kind is not None and not is_text(kind):
        raise ValueError(
            f"Column {text_column!r} of {dataset} has the type {kind}, not text. Choose another text_column."
        )


# --- Datasets ----------------------------------------------------------------------------------------------------


@overload
def open_dataset(where: Location, streaming: Literal[False] = False) -> datasets.Dataset: ...


@overload
def open_dataset(where: Location, streaming: Literal[True]) -> datasets.IterableDataset: ...


def open_dataset(where: Location, streaming: bool = False) -> datasets.Dataset | datasets.IterableDataset:
    """Open the embedded documentation, a split of prepared text or a dataset of the Hub.

    Raises:
        ValueError: the dataset or split is missing.
    """
    dataset, config, split, revision = where
    if dataset == EMBEDDED:
        rows = _python_documentation()
        return rows.to_iterable_dataset() if streaming else rows
    if is_prepared(dataset):
        splits = open_prepared_text(dataset)
        if split not in splits:
            names = ", ".join(splits)
            raise ValueError(f"{dataset} has no split {split!r}, only {names}. Choose another split.")
        return splits[split].to_iterable_dataset() if streaming else splits[split]
    try:
        return datasets.load_dataset(dataset, config, split=split, revision=revision, streaming=streaming)
    except Exception as error:  # the Hub client raises many types of exceptions with the same meaning for the user
        raise ValueError(
            f"{dataset!r} is not a local file or folder, and as a Hub dataset it could not be opened "
            f"({one_line(error)}). Give an existing path, an id on the Hub, or {EMBEDDED}."
        ) from error


def _python_documentation() -> datasets.Dataset:
    stdlib = sysconfig.get_path("stdlib")
    rows = datasets.Dataset.from_generator(
        python_documentation, gen_kwargs={"stdlib": stdlib, "version": sysconfig.get_config_var("py_version") or ""}
    )
    if len(rows) < 100:
        raise ValueError(
            f"This Python was installed without its sources (only {len(rows)} documented modules found), so it cannot "
            "be used as the default dataset. Give another dataset."
        )
    return rows


# --- Local files -------------------------------------------------------------------------------------------------


def _read_files(
    dataset: str, files: list[LocalFile], *, columns: Columns | None, column_names: Sequence[str] | None
) -> datasets.Dataset:
    # Return the rows of files; they are cached between runs under a hash of the files and settings.
    content = [(kind_ending(file.path), file.path.suffix.lower(), file.sha256) for file in files]
    key = json.dumps([CACHE_FORMAT, content, columns and columns[:-1], column_names])
    key = hashlib.sha256(key.encode()).hexdigest()[:32]
    path = Path(datasets.config.HF_DATASETS_CACHE) / "scratch_gpt" / key / "rows.arrow"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name("lock")):  # only one process of a machine reads the files
        if not path.exists():
            size, label = sum(file.bytes for file in files), f"{len(files):,} files" if files[1:] else files[0].name
            with datasets.utils.tqdm(None, f"Reading {label}", size, unit="B", unit_scale=True, delay=1) as bar:
                try:
                    write_tables(_all_tables(files, columns, column_names, bar.update), path)
                except pa.ArrowException as error:
                    raise ValueError(f"{dataset} cannot be read as one table: {one_line(error)}") from error
    if not path.exists():
        raise ValueError(f"{dataset} contains no rows.")
    return _mapped(path, key)


def _mapped(path: Path, fingerprint: str) -> datasets.Dataset:
    # Map an Arrow file. Without the fingerprint `datasets` would cache results by the file's path and time.
    return datasets.Dataset(datasets.table.MemoryMappedTable.from_file(str(path)), fingerprint=fingerprint)


def _all_tables(
    files: list[LocalFile], columns: Columns | None, column_names: Sequence[str] | None, update: Callable[[int], Any]
) -> Iterator[pa.Table]:
    for file in files:
        yield from read_tables(file, columns, column_names)
        update(file.bytes)


def choose_files(
    dataset: str, columns: Columns | None, column_names: Sequence[str] | None = None
) -> tuple[list[LocalFile], list[str]]:
    # Return the files of a dataset that have the columns in use, and notices about the other files.
    local_files, notices = find_files(dataset)
    if not any(file.bytes for file in local_files):
        raise ValueError(f"{dataset} contains no text: {local_files[0].name} is empty.")
    if column_names is not None:
        _check_column_names(local_files, column_names)
    if columns is None:
        return local_files, notices
    names_of_files = [_read_columns(file, columns, column_names, is_alone=not local_files[1:]) for file in local_files]
    files = [file for file, names in zip(local_files, names_of_files, strict=True) if columns.fit(names)]
    if not files:
        _check_columns(dataset, list(dict.fromkeys(chain(*names_of_files))), columns)
    if skipped := [
        file.name for file, names in zip(local_files, names_of_files, strict=True) if not columns.fit(names)
    ]:
        notices.append(f"{dataset}: skipped files without {columns.lack()}: {count_names(skipped)}.")
    return files, notices


def _read_columns(file: LocalFile, columns: Columns, column_names: Sequence[str] | None, is_alone: bool) -> list[str]:
    # A .json file that does not contain rows is skipped like one without the columns, unless it is the only file.
    try:
        return columns_of(file, columns, column_names)
    except NoRows:
        if is_alone:
            raise
        return []


def _check_columns(dataset: str, present: list[str], columns: Columns) -> None:
    if not columns.fit(present):
        names = ", ".join(present) or "none"
        raise ValueError(f"{dataset} has no {columns.lack(present)}, only {names}. {columns.hint}".rstrip())


def _check_column_names(files: list[LocalFile], column_names: Sequence[str]) -> None:
    for file in files:
        if file.kind not in ("csv", "tsv"):
            raise ValueError(
                f"column_names only works for .csv and .tsv files without a header; {file.path.name} is not one."
            )
        first = first_fields(file)
        if len(first) < len(column_names) or any(first[len(column_names) :]):
            raise ValueError(
                f"{file.path.name} has {plural(len(first), 'column')}, but column_names gives {len(column_names)}: "
                f"{','.join(column_names)}. Name every column."
            )


def has_text(batch: dict[str, list[Any]]) -> list[bool]:
    return [bool(text) and not text.isspace() for text in batch["text"]]


__all__ = [
    "EMBEDDED",
    "is_text",
    "open_column",
    "open_documents",
    "open_prepared_text",
    "open_rows",
    "open_splits",
    "split_documents",
]
