"""What data a run used -> JSON: sources, counts, hashes; and whether data are still what a manifest says.

format_version, task, tokenizer (fingerprint, vocab_size), max_length, stride, pack
split_by   how documents were split, by share of the text; absent: by their number
sources    [{name, dataset, config, split, revision, rows, files: [{name, bytes, sha256}]}]
filters    {name: {in, removed}}                  in the order in which they ran
mixture    {asked, actual, alpha, ...} or null    shares of tokens
splits     {train: {documents, bytes, rows, tokens, asked, sha256}, ...}
rows, tokens, bytes, sha256                       over all splits; sha256 is of the exact rows
files      [{name, bytes, sha256}]                of a prepared folder
manifest_sha256                                   of a prepared folder: of all the rest; absent in older ones
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
    """Return the recorded name of a file, folder or dataset: its path from the working folder, else its last part."""
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
    """Return one SHA-256 over several, in their order."""
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
    """Return the manifest of these splits, with their sums and one hash over theirs."""
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
    """Return what `manifest.json` of a prepared folder holds: the manifest, and a hash of it."""
    return json.dumps({**manifest, DIGEST: _digest(manifest)}, indent=2) + "\n"


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def is_prepared(dataset: str) -> bool:
    """Return whether a dataset is a folder that training/prepare.py has written."""
    return (local_path(dataset) / MANIFEST_FILE).is_file()


def read_manifest(path: str | Path) -> dict[str, Any]:
    """Read the manifest of a prepared folder or of a run, or the file itself; its hash is checked and left out.

    Raises:
        ValueError: it is not there, is no manifest, of another format, or not what was written.
    """
    path = local_path(str(path))
    path = path / MANIFEST_FILE if path.is_dir() else path
    try:
        manifest = read_json(path)
        parts = DIGEST.split("_")  # a damaged name has one of them
        names = [
            name for name in manifest if name.startswith(parts[0]) or (name.endswith(parts[1]) and name != parts[1])
        ]
        digests = {name: manifest.pop(name) for name in names}
        version = manifest["format_version"]
        _check_keys(manifest)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} cannot be read as a data manifest ({type(error).__name__}: {error}).") from error
    if version != MANIFEST_FORMAT:
        raise ValueError(f"{path} has format version {version}, and this program reads {MANIFEST_FORMAT}.")
    if digests and digests != {DIGEST: _digest(manifest)}:
        raise ValueError(f"{path} is not what was written: its hash differs. Prepare the data again.")
    return manifest


def _check_keys(manifest: dict[str, Any]) -> None:
    # Raise a KeyError or TypeError where a manifest lacks what its readers look up.
    _ = manifest["sources"], manifest["splits"], manifest["sha256"]
    _ = [(file["name"], file["bytes"], file["sha256"]) for file in manifest.get("files", [])]
    if manifest["task"] == "pretrain":
        _ = [manifest[name] for name in ("max_length", "stride", "pack", "pad")], manifest["tokenizer"]["fingerprint"]
        _ = [facts["asked"] for facts in manifest["splits"].values() if "files" in manifest]


def verify_files(folder: Path, manifest: dict[str, Any]) -> None:
    """Raise a ValueError that names the first file of a prepared folder that is not what its manifest says.

    Each file is hashed, on all cores: what the manifest says of them may then go on record again.
    """
    folder = local_path(str(folder))
    if "files" not in manifest:
        raise ValueError(f"{folder} holds no prepared data: its {MANIFEST_FILE} lists no files.")

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
        raise ValueError(f"{folder}: {spare[0]} is no part of the data that were prepared. Take it away.")


def changed_file(recorded: list[dict[str, Any]], now: list[dict[str, Any]]) -> str | None:
    """Return which file is the first to differ between two lists of sources, and how; None if none does."""
    before, after = _files(recorded, now), _files(now, recorded)
    for key in sorted({*before, *after}):
        if before.get(key) != after.get(key):
            change = "is missing" if key not in after else "has changed" if key in before else "is new"
            return f"{key[1]} {change}"
    return None


def _files(sources: list[dict[str, Any]], other_sources: list[dict[str, Any]]) -> dict[tuple, dict[str, Any]]:
    # {(source, file name): file}; a source goes by its name, and by its place in the list where the others' differ
    names, other_names = (
        [str(source.get("name", source["dataset"])) for source in records] for records in (sources, other_sources)
    )
    source_keys = names if sorted(names) == sorted(other_names) and len({*names}) == len(names) else range(len(names))
    pairs = zip(source_keys, sources, strict=True)
    return {(source, file["name"]): file for source, record in pairs for file in record.get("files", [])}


def verify_same(recorded: dict[str, Any], now: dict[str, Any], name: str) -> None:
    """Raise a ValueError where these data are not those that the manifest `name` records; files come first.

    Sources' names and places may differ, their contents may not.
    """
    if changed := changed_file(recorded["sources"], now["sources"]):
        raise ValueError(f"The data are not those of {name}: {changed}.")
    for key in ("tokenizer", "max_length", "stride", "pack", "splits", "sha256"):
        if recorded.get(key) != now.get(key):
            raise ValueError(
                f"The data are not those of {name}: {key} differs ({_short(recorded.get(key))} there, "
                f"{_short(now.get(key))} here)."
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
