"""A name -> documents: the embedded default, local files or a Hub dataset, as `datasets` rows of {"text": str}.

The only file that imports `datasets`.
"""

import csv
import glob
import hashlib
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np

from .embedded import python_documentation
from .manifest import file_record, is_prepared, read_manifest, verify_files
from .splits import check_fractions, split_numbers


EMBEDDED = "python-docs"
LOADERS = {  # file ending -> the `datasets` loader that reads it
    ".txt": ("text", {"sample_by": "document"}),
    ".md": ("text", {"sample_by": "document"}),
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
    ".csv": ("csv", {"keep_default_na": False, "na_values": ""}),  # an empty field is no value; the text "None" is one
    ".tsv": ("csv", {"keep_default_na": False, "na_values": "", "sep": "\t", "quoting": csv.QUOTE_NONE}),
    ".parquet": ("parquet", {}),
}


def open_documents(
    dataset: str = EMBEDDED,
    config: str | None = None,
    split: str = "train",
    revision: str | None = None,
    text_column: str = "text",
) -> datasets.Dataset:
    """Documents as rows of {"text": str}; empty ones are left out.

    Args:
        dataset: `python-docs` (the documentation of the running Python, needs no download), a local file, folder or
            glob of .txt, .md, .json, .jsonl, .csv or .parquet, or a dataset id on the Hugging Face Hub.
        config, split, revision: of a Hub dataset; `split` of a folder of prepared text too, so that what was held
            out there stays so.

    Raises:
        ValueError: nothing there, nothing readable, no such column, no such split, no text.
    """
    rows = open_column(dataset, config, split, revision, text_column)
    rows = rows.filter(_has_text, batched=True, desc="Reading documents")
    if len(rows) == 0:
        raise ValueError(f"{dataset} holds no text: every document of column {text_column!r} is empty.")
    return rows


def open_rows(
    dataset: str = EMBEDDED,
    config: str | None = None,
    split: str = "train",
    revision: str | None = None,
    column_names: list[str] | None = None,
) -> datasets.Dataset:
    """A dataset with all its columns, nothing left out. Arguments and errors as for `open_documents`.

    Args:
        column_names: of .csv or .tsv files without a header. No word in them means an absent value, and in .tsv a
            quotation mark is one like any other character.
    """
    if column_names is None:
        rows = _open(dataset, config, split, revision)
    else:
        rows = _open_files(dataset, _local_files(dataset), column_names=column_names)
    if len(rows) == 0:
        raise ValueError(f"{dataset} holds no rows.")
    return rows


def open_column(
    dataset: str = EMBEDDED,
    config: str | None = None,
    split: str = "train",
    revision: str | None = None,
    text_column: str = "text",
) -> datasets.Dataset:
    """All rows as {"text": str or None}, empty ones too. Arguments and errors as for `open_documents`."""
    return _text_only(dataset, open_rows(dataset, config, split, revision), text_column)


def _text_only(dataset: str, rows: datasets.Dataset, text_column: str) -> datasets.Dataset:
    _check_text_column(dataset, rows.column_names, rows.features, text_column)
    rows = rows.select_columns(text_column)
    return rows if text_column == "text" else rows.rename_column(text_column, "text")


def describe_source(
    dataset: str, config: str | None = None, split: str = "train", revision: str | None = None
) -> dict[str, Any]:
    """Where rows come from, for the manifest: each file with its SHA-256, a Hub dataset with its commit."""
    record = {"dataset": dataset, "config": config, "split": split, "revision": revision, "files": []}
    if dataset == EMBEDDED:
        return {**record, "revision": f"Python {sysconfig.get_config_var('py_version')}"}
    if is_prepared(dataset):
        return {**record, "dataset": Path(dataset).name, "prepared": read_manifest(Path(dataset))["sha256"]}
    if _looks_local(dataset):
        root = Path(dataset).expanduser()
        names = [(path, str(path.relative_to(root)) if root.is_dir() else path.name) for path in _local_files(dataset)]
        return {**record, "dataset": root.name, "files": [file_record(path, name) for path, name in names]}
    builder = datasets.load_dataset_builder(dataset, config, revision=revision)
    for url in (builder.config.data_files or {}).get(split, []):  # hf://datasets/NAME@COMMIT/FILE
        commit, _, name = url.partition("@")[2].partition("/")
        record["revision"] = commit or revision
        record["files"].append({"name": name or url})  # its commit says what is in it
    return record


def open_prepared_text(folder: str) -> dict[str, datasets.Dataset]:
    """The splits of a folder of cleaned rows that training/prepare.py --task text has written, mapped.

    Raises:
        ValueError: it holds token rows, or a file is not what the manifest says.
    """
    manifest = read_manifest(Path(folder))
    if manifest["task"] != "text":
        raise ValueError(f"{folder} holds rows of token ids, and text is needed. Prepare it with --task text.")
    verify_files(Path(folder), manifest)
    parts = {name: sorted(Path(folder).expanduser().glob(f"{name}/part-*.arrow")) for name in manifest["splits"]}
    return {
        name: datasets.concatenate_datasets([datasets.Dataset.from_file(str(path)) for path in paths])
        for name, paths in parts.items()
    }


class DocumentStream(NamedTuple):
    """A corpus that is read as it is needed."""

    read: Callable[[int, int], Iterator[str]]  # (shard, start) -> the documents of a shard from number `start` on
    shards: int
    splits: dict[str, datasets.Dataset]  # "validation" and "test", and as "train" a sample of what is streamed


def open_stream(
    dataset: str = EMBEDDED,
    config: str | None = None,
    split: str = "train",
    revision: str | None = None,
    text_column: str = "text",
    validation_fraction: float = 0.1,
    test_fraction: float = 0.0,
    head: int = 10_000,
) -> DocumentStream:
    """The same documents, streamed. What is held out are the first ones: fractions of the first `head`.

    Raises:
        ValueError: as `open_documents` and `split_documents`; or files of several kinds.
    """
    fractions = check_fractions(validation_fraction, test_fraction)
    rows = _open(dataset, config, split, revision, streaming=True)
    shards = rows.num_shards

    def shard(number: int) -> datasets.IterableDataset:
        return rows.shard(num_shards=shards, index=number) if shards > 1 else rows

    sample, of = [], []  # the first documents, whichever files they lie in, and the shard of each
    try:
        for number in range(shards):
            found = list(shard(number).take(head - len(sample)))
            sample, of = sample + found, of + [number] * len(found)
            if len(sample) >= head:
                break
    except Exception as error:
        raise ValueError(f"{dataset} cannot be read: {_one_line(error.__cause__ or error)}") from error
    if not sample:
        raise ValueError(f"{dataset} holds no text.")
    _check_text_column(dataset, list(sample[0]), rows.features, text_column)
    texts = [row[text_column] for row in sample]
    held_out, start = {}, 0
    for name, fraction in fractions.items():
        end = start + max(1, round(fraction * len(texts)))
        held_out[name], start = texts[start:end], end
    held_out["train"] = texts[start:]
    for name, part in held_out.items():
        if not any(_has_text({"text": part})):
            raise ValueError(
                f"The first {len(texts)} documents of {dataset} leave nothing for {name}. Without --streaming a small "
                "corpus is split as a whole; --validation-fraction 0 holds nothing out."
            )

    def read(number: int, first: int) -> Iterator[str]:
        rows_of_shard = shard(number)
        skipped = first + of[:start].count(number)
        for row in rows_of_shard.skip(skipped) if skipped else rows_of_shard:
            yield row[text_column] or ""

    splits = {
        name: datasets.Dataset.from_dict({"text": [text for text in part if text and not text.isspace()]})
        for name, part in held_out.items()
    }
    return DocumentStream(read, shards, splits)


def open_splits(
    dataset: str = EMBEDDED,
    config: str | None = None,
    split: str = "train",
    revision: str | None = None,
    text_column: str = "text",
    validation_fraction: float = 0.1,
    test_fraction: float = 0.0,
    seed: int = 0,
) -> tuple[dict[str, datasets.Dataset], dict[str, Any]]:
    """The documents of each split, and where they are from; prepared text keeps the splits it was given.

    Raises:
        ValueError: as `open_documents` and `split_documents`.
    """
    if is_prepared(dataset):
        splits = open_prepared_text(dataset)
        splits = {name: _text_only(dataset, rows, text_column) for name, rows in splits.items()}
        return splits, describe_source(dataset)
    documents = open_documents(dataset, config, split, revision, text_column)
    splits = split_documents(documents, validation_fraction, test_fraction, seed)
    return splits, describe_source(dataset, config, split, revision)


def split_documents(
    documents: datasets.Dataset, validation_fraction: float = 0.1, test_fraction: float = 0.0, seed: int = 0
) -> dict[str, datasets.Dataset]:
    """Documents -> {"train", "validation", "test"}, whole documents each; a corpus of one is cut by position.

    Which documents go where is a function of the seed and their number. A fraction of 0 leaves that split out.

    Raises:
        ValueError: fractions outside [0, 1) or together 1 or more, or fewer documents than splits.
    """
    asked = check_fractions(validation_fraction, test_fraction)
    if len(documents) == 1:
        return _cut_by_position(documents[0]["text"], asked)
    numbers = split_numbers(len(documents), validation_fraction, test_fraction, seed)
    return {name: documents.select(chosen) for name, chosen in numbers.items()}


def cut_single(
    rows: datasets.Dataset, validation_fraction: float = 0.1, test_fraction: float = 0.0
) -> tuple[datasets.Dataset, dict[str, np.ndarray] | None]:
    """A corpus of one text -> a row for each split, cut by position, and which is which; others as they are, None."""
    if len(rows) != 1 or not rows[0]["text"]:
        return rows, None
    cuts = split_documents(rows, validation_fraction, test_fraction)
    return datasets.concatenate_datasets([*cuts.values()]), {name: np.array([n]) for n, name in enumerate(cuts)}


class TokenStream(NamedTuple):
    """All documents of a split as one row of token ids, each ended by EOS."""

    ids: np.ndarray  # (N,) uint16 or uint32
    ends: np.ndarray  # (documents,) where each one ends
    bytes: int  # of UTF-8 text

    @property
    def sha256(self) -> str:
        """Of the ids, whatever type they are held in."""
        return hashlib.sha256(self.ids.astype("<u4").tobytes()).hexdigest()


def token_stream(
    documents: datasets.Dataset, encode_batch: Callable[[list[str]], list[list[int]]], eos_token_id: int, desc: str
) -> TokenStream:
    """Tokenise each document, end it with EOS and join them in order.

    Args:
        encode_batch: texts -> ids, adding nothing.
        desc: what the progress bar says.
    """

    def tokenize(batch: dict) -> dict:
        return {
            "input_ids": [[*ids, eos_token_id] for ids in encode_batch(batch["text"])],
            "bytes": [len(text.encode()) for text in batch["text"]],
        }

    rows = documents.map(tokenize, batched=True, batch_size=100, remove_columns="text", desc=desc)
    rows = rows.with_format("numpy")
    chunks = [ids for batch in rows.iter(1000) for ids in batch["input_ids"]]
    largest = max(int(ids.max()) for ids in chunks)
    ids = np.concatenate(chunks).astype(np.uint16 if largest < 2**16 else np.uint32)
    return TokenStream(ids, np.cumsum([len(chunk) for chunk in chunks]), int(np.sum(rows["bytes"][:])))


def joined_stream(
    documents: datasets.Dataset, encode_batch: Callable[[list[str]], list[list[int]]], joiner: str
) -> TokenStream:
    """All documents as one text, `joiner` between them, tokenised as a whole; no EOS anywhere."""
    text = joiner.join(documents["text"])
    ids = np.array(encode_batch([text])[0], dtype=np.uint32)
    return TokenStream(ids, np.array([len(ids)]), len(text.encode()))


def is_text(feature: Any) -> bool:
    """Whether a column of this feature, as `datasets` describes it, holds text."""
    return getattr(feature, "dtype", None) in ("string", "large_string")


def _check_text_column(dataset: str, columns: list[str], features: Any, text_column: str) -> None:
    if text_column not in columns:
        raise ValueError(
            f"{dataset} has no column {text_column!r}, only {', '.join(columns)}. Choose with --text-column."
        )
    kind = (features or {}).get(text_column)
    if kind is not None and not is_text(kind):
        raise ValueError(f"Column {text_column!r} of {dataset} holds {kind}, not text. Choose with --text-column.")


# --- Where documents come from -----------------------------------------------------------------------------------


def _open(dataset: str, config: str | None, split: str, revision: str | None, streaming: bool = False):
    if dataset == EMBEDDED:
        rows = _python_documentation()
        return rows.to_iterable_dataset() if streaming else rows
    if is_prepared(dataset):
        splits = open_prepared_text(dataset)
        if split not in splits:
            there = ", ".join(splits)
            raise ValueError(f"{dataset} has no split {split!r}, only {there}. Choose with --dataset-split.")
        return splits[split].to_iterable_dataset() if streaming else splits[split]
    if _looks_local(dataset):
        return _open_files(dataset, _local_files(dataset), streaming)
    try:
        return datasets.load_dataset(dataset, config, split=split, revision=revision, streaming=streaming)
    except Exception as error:  # the Hub client raises many kinds, all of which mean the same to the user
        raise ValueError(
            f"{dataset!r} is no local file or folder, and as a Hub dataset it could not be opened "
            f"({_one_line(error)}). Give a path that exists, an id on the Hub, or {EMBEDDED}."
        ) from error


def _python_documentation() -> datasets.Dataset:
    stdlib = sysconfig.get_path("stdlib")
    rows = datasets.Dataset.from_generator(
        python_documentation, gen_kwargs={"stdlib": stdlib, "version": sysconfig.get_config_var("py_version") or ""}
    )
    if len(rows) < 100:
        raise ValueError(
            f"This Python was installed without its sources (only {len(rows)} documented modules found), so there is "
            "no embedded text. Give your own with --dataset FILE."
        )
    return rows


def _looks_local(dataset: str) -> bool:
    path = Path(dataset).expanduser()
    return path.exists() or glob.has_magic(dataset) or path.is_absolute() or path.suffix.lower() in LOADERS


def _local_files(dataset: str) -> list[Path]:
    path = Path(dataset).expanduser()
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.suffix.lower() in LOADERS and file.is_file())
    if path.exists():
        return [path]
    return sorted(Path(found) for found in glob.glob(str(path), recursive=True) if Path(found).is_file())


def _open_files(dataset: str, paths: list[Path], streaming: bool = False, column_names: list[str] | None = None):
    if not paths:
        raise ValueError(f"{dataset!r}: no such file, or none that ends in {', '.join(LOADERS)}.")
    unknown = [path.name for path in paths if path.suffix.lower() not in LOADERS]
    if unknown:
        raise ValueError(
            f"{dataset} holds {unknown[0]}, whose ending is none of {', '.join(LOADERS)}. Convert or rename it."
        )
    if not any(path.stat().st_size for path in paths):
        raise ValueError(f"{dataset} holds no text: {paths[0].name} is empty.")
    others = [path.name for path in paths if LOADERS[path.suffix.lower()][0] != "csv"]
    if column_names is not None and others:
        raise ValueError(f"column_names are for .csv and .tsv files without a header, and {others[0]} is none.")
    parts = []
    for loader, options in dict.fromkeys((name, tuple(options.items())) for name, options in LOADERS.values()):
        files = [str(path.resolve()) for path in paths if LOADERS[path.suffix.lower()] == (loader, dict(options))]
        if not files:
            continue
        headless = {} if column_names is None else _without_header(files, column_names, dict(options))
        try:
            options = {**dict(options), **headless, "data_files": files, "split": "train", "streaming": streaming}
            parts.append(datasets.load_dataset(loader, **options))
        except Exception as error:  # a loader wraps whatever went wrong in its own kinds
            cause = error.__cause__ or error
            names = ", ".join(Path(file).name for file in files[:3])
            raise ValueError(f"{names} cannot be read as {loader}: {_one_line(cause)}") from error
    if len(parts) > 1 and streaming:
        raise ValueError(f"{dataset} holds files of several kinds; with --streaming give one kind at a time.")
    if len(parts) > 1 and len({tuple(sorted(part.column_names)) for part in parts}) > 1:
        shared = set.intersection(*(set(part.column_names) for part in parts))
        parts = [part.select_columns(sorted(shared)) for part in parts]
    return datasets.concatenate_datasets(parts)


def _without_header(files: list[str], column_names: list[str], options: dict[str, Any]) -> dict[str, Any]:
    # How the csv loader reads files that have no header. It drops columns that it has no names for, without a word.
    how = {"delimiter": options.get("sep", ","), "quoting": options.get("quoting", csv.QUOTE_MINIMAL)}
    for name in files:
        with open(name, newline="", encoding="utf-8", errors="replace") as file:
            found = len(next(csv.reader(file, **how), []))
        if found != len(column_names):
            raise ValueError(
                f"{Path(name).name} has {found} column(s), and column_names names {len(column_names)}: "
                f"{','.join(column_names)}. Name every column."
            )
    return {"column_names": column_names, "na_values": None}


def _cut_by_position(text: str, fractions: dict[str, float]) -> dict[str, datasets.Dataset]:
    start = round(len(text) * (1 - sum(fractions.values())))
    cuts = {"train": text[:start]}
    for name, fraction in fractions.items():
        end = start + round(len(text) * fraction)
        cuts[name], start = text[start:end], end
    return {name: datasets.Dataset.from_dict({"text": [cut]}) for name, cut in cuts.items()}


def _has_text(batch: dict) -> list[bool]:
    return [bool(text) and not text.isspace() for text in batch["text"]]


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


__all__ = [
    "EMBEDDED",
    "DocumentStream",
    "TokenStream",
    "cut_single",
    "describe_source",
    "is_text",
    "joined_stream",
    "open_column",
    "open_documents",
    "open_prepared_text",
    "open_rows",
    "open_stream",
    "split_documents",
    "token_stream",
]
