"""Record the data of a run as JSON (sources, counts, hashes), and verify data against a manifest.

format_version, task, tokenizer (fingerprint, vocab_size), max_length, stride, pack
split_by   how documents were split, by share of the text; absent: by count
sources    [{name, dataset, config, split, revision, rows, files: [{name, bytes, sha256}]}]
filters    {name: {in, removed}}                  in the order in which they ran
mixture    {asked, actual, alpha, ...} or null    shares of tokens
splits     {train: {documents, bytes, rows, tokens, asked, sha256}, ...}
rows, tokens, bytes, sha256                       of all splits; sha256 covers the exact rows
files      [{name, bytes, sha256}]                prepared folders only
manifest_sha256                                   prepared folders only: covers all other keys; absent in older ones
"""

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ..utils.foreign import read_json
from ..utils.local_files import local_path


MANIFEST_FORMAT = 1
MANIFEST_FILE, DIGEST = "manifest.json", "manifest_sha256"


def place(name: str) -> str:
    """Return the name to record for a file, folder or dataset.

    A Hub dataset or a relative path without ".." is returned unchanged, a path in the working folder relative to it,
    and any other path as its last component.
    """
    path = str(local_path(name))
    if not os.path.isabs(path) and ".." not in Path(path).parts:
        return name
    path, working_folder = Path(os.path.abspath(path)), Path.cwd()
    return str(path.relative_to(working_folder)) if path.is_relative_to(working_folder) else path.name


def file_record(path: Path, name: str) -> dict[str, Any]:
    """Return {"name", "bytes", "sha256"} of a file."""
    with path.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    return {"name": name, "bytes": path.stat().st_size, "sha256": digest}


def hash_of(hashes: list[str]) -> str:
    """Return the SHA-256 of a list of hashes, in order."""
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def make_manifest(
    task: str,
    sources: list[dict[str, Any]],
    splits: dict[str, dict[str, Any]],
    filters: dict[str, dict[str, int]] | None = None,
    mixture: dict[str, Any] | None = None,
    files: list[dict[str, Any]] | None = None,
    **fields: Any,
) -> dict[str, Any]:
    """Return the manifest of these splits, with totals and a hash of the splits' hashes."""
    totals = {name: sum(split.get(name, 0) for split in splits.values()) for name in ("rows", "tokens", "bytes")}
    return {
        "format_version": MANIFEST_FORMAT,
        "task": task,
        **fields,
        "sources": sources,
        "filters": filters or {},
        "mixture": mixture,
        "splits": splits,
        **totals,
        "sha256": hash_of([split["sha256"] for split in splits.values()]),
        **({} if files is None else {"files": files}),
    }


def manifest_text(manifest: dict[str, Any]) -> str:
    """Return the content of a prepared folder's `manifest.json`: the manifest and its hash."""
    return json.dumps({**manifest, DIGEST: _digest(manifest)}, indent=2) + "\n"


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def is_prepared(dataset: str) -> bool:
    """Return whether a dataset is a folder written by training/prepare.py."""
    return (local_path(dataset) / MANIFEST_FILE).is_file()


def read_manifest(path: str | Path) -> dict[str, Any]:
    """Read the manifest of a prepared folder or a run, or a manifest file; its hash is checked and removed.

    Raises:
        ValueError: the file is missing, not a manifest, of another format version, or changed since it was written.
    """
    path = local_path(str(path))
    path = path / MANIFEST_FILE if path.is_dir() else path
    try:
        manifest = read_json(path)
        parts = DIGEST.split("_")  # recognize the key even if one of its two parts is damaged
        names = [
            name for name in manifest if name.startswith(parts[0]) or (name.endswith(parts[1]) and name != parts[1])
        ]
        digests = {name: manifest.pop(name) for name in names}
        version = manifest["format_version"]
        _check_keys(manifest)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} cannot be read as a data manifest ({type(error).__name__}: {error}).") from error
    if version != MANIFEST_FORMAT:
        raise ValueError(f"{path} has format version {version}; only version {MANIFEST_FORMAT} can be read.")
    if digests and digests != {DIGEST: _digest(manifest)}:
        raise ValueError(f"{path} was changed after it was written: its hash differs. Prepare the data again.")
    return manifest


def _check_keys(manifest: dict[str, Any]) -> None:
    # Raise a KeyError or TypeError if a manifest lacks a key that its readers need.
    _ = manifest["sources"], manifest["splits"], manifest["sha256"]
    _ = [(file["name"], file["bytes"], file["sha256"]) for file in manifest.get("files", [])]
    if manifest["task"] == "pretrain":
        _ = [manifest[name] for name in ("max_length", "stride", "pack", "pad")], manifest["tokenizer"]["fingerprint"]
        _ = [facts["asked"] for facts in manifest["splits"].values() if "files" in manifest]


def verify_files(folder: Path, manifest: dict[str, Any]) -> None:
    """Raise a ValueError that names the first file of a prepared folder that differs from its manifest.

    Every file is hashed, on all cores, so that a new manifest may copy the recorded hashes.
    """
    folder = local_path(str(folder))
    if "files" not in manifest:
        raise ValueError(f"{folder} is not prepared data: its {MANIFEST_FILE} lists no files.")

    def find_problem(record: dict[str, Any]) -> str | None:
        path = folder / record["name"]
        if not path.is_file():
            return "is missing"
        is_same = path.stat().st_size == record["bytes"] and file_record(path, record["name"]) == record
        return None if is_same else "is not the file that was prepared"

    with ThreadPoolExecutor() as pool:
        for record, problem in zip(manifest["files"], pool.map(find_problem, manifest["files"]), strict=True):
            if problem is not None:
                raise ValueError(f"{folder}: {record['name']} {problem}. Prepare the data again.")
    listed = {record["name"] for record in manifest["files"]}
    parts = (path for split in manifest["splits"] for path in (folder / split).glob("part-*.arrow"))
    if spare := sorted({path.relative_to(folder).as_posix() for path in parts} - listed):
        raise ValueError(f"{folder}: {spare[0]} is not in its {MANIFEST_FILE}. Remove the file.")


def changed_file(recorded: list[dict[str, Any]], now: list[dict[str, Any]]) -> str | None:
    """Return the first file that differs between two lists of sources, and how it differs; None if all are equal."""
    before, after = _files(recorded, now), _files(now, recorded)
    for key in sorted({*before, *after}):
        if before.get(key) != after.get(key):
            change = "is missing" if key not in after else "has changed" if key in before else "is new"
            return f"{key[1]} {change}"
    return None


def _files(sources: list[dict[str, Any]], other_sources: list[dict[str, Any]]) -> dict[tuple, dict[str, Any]]:
    # {(source, file name): file}; a source is identified by its name, or by its number if the lists have other names
    names, other_names = (
        [str(source.get("name", source["dataset"])) for source in records] for records in (sources, other_sources)
    )
    source_keys = names if sorted(names) == sorted(other_names) and len({*names}) == len(names) else range(len(names))
    pairs = zip(source_keys, sources, strict=True)
    return {(source, file["name"]): file for source, record in pairs for file in record.get("files", [])}


def verify_same(recorded: dict[str, Any], now: dict[str, Any], name: str) -> None:
    """Raise a ValueError if these data differ from the manifest `name`; files are compared first.

    Names and locations of sources may differ, their contents may not.
    """
    if changed := changed_file(recorded["sources"], now["sources"]):
        raise ValueError(f"The data differ from {name}: {changed}.")
    for key in ("tokenizer", "max_length", "stride", "pack", "splits", "sha256"):
        if recorded.get(key) != now.get(key):
            raise ValueError(
                f"The data differ from {name}: {key} is {_short(recorded.get(key))} there and "
                f"{_short(now.get(key))} here."
            )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


__all__ = [
    "MANIFEST_FILE",
    "MANIFEST_FORMAT",
    "changed_file",
    "file_record",
    "hash_of",
    "is_prepared",
    "make_manifest",
    "manifest_text",
    "place",
    "read_manifest",
    "verify_files",
    "verify_same",
]
