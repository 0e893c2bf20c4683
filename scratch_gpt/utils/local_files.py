"""Find and open local files: which of them are read, their exact bytes, and their text.

    find_files       a path or a pattern -> the files to read, and notices about the others
    open_file        a file -> its bytes, decompressed, checked against its record
    text_lines       bytes -> (line number, line)
    read_text_file   a path -> its text

A path that exists is never read as a pattern, even if its name has the characters of one. A byte order mark is never
part of a text.
"""

import bz2
import codecs
import gzip
import hashlib
import io
import lzma
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from glob import glob, has_magic
from itertools import chain, takewhile
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, NoReturn

from .foreign import check_regular, shown


FILE_KINDS = {  # file ending -> kind of content
    ".txt": "text",
    ".md": "text",
    ".json": "json",
    ".jsonl": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")  # may follow any of these endings
BYTE_ORDER_MARKS = {  # byte order mark -> encoding; the longer ones first
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
NAMED = 5  # number of files that a notice names; the others are counted


class LocalFile(NamedTuple):
    """A file with its size and hash."""

    path: Path
    name: str  # relative to the given folder, safe to print
    bytes: int
    sha256: str
    state: tuple[int, ...]  # of the file when it was hashed

    @property
    def kind(self) -> str:
        """Return the kind, one of the values of FILE_KINDS."""
        return FILE_KINDS[kind_ending(self.path)]

    @property
    def record(self) -> dict[str, Any]:
        """Return {"name", "bytes", "sha256"} for a manifest."""
        return {"name": self.name, "bytes": self.bytes, "sha256": self.sha256}


# --- Finding -----------------------------------------------------------------------------------------------------


def local_path(name: str) -> Path:
    """Return the path as given if it exists, otherwise with ~ expanded."""
    path = Path(name)
    if os.path.lexists(path) or not name.startswith("~"):
        return path
    return Path(os.path.expanduser(name))


def kind_ending(path: Path) -> str:
    """Return the ending that determines a file's kind, in lower case: `.csv` for a.csv and for a.csv.gz."""
    name = Path(path.name.lower())
    return Path(name.stem).suffix if name.suffix in COMPRESSED else name.suffix


def looks_local(name: str) -> bool:
    """Return whether a name is a local file, folder or pattern, and not a dataset on the Hub."""
    path = local_path(name)
    return os.path.lexists(path) or has_magic(name) or path.is_absolute() or kind_ending(path) in FILE_KINDS


def find_files(name: str) -> tuple[list[LocalFile], list[str]]:
    """Return the files of a path, folder or pattern in order, and notices about the files that are not read.

    Hidden files and folders in a folder are not read, and unknown kinds are skipped. Links are followed; a folder is
    read once even if several links lead to it.

    Raises:
        ValueError: no file matches, the file is not a regular file, or no file has a known kind.
    """
    path, hidden = local_path(name), 0
    root = path
    if path.is_dir():
        paths, hidden = _walk(path)
    elif os.path.lexists(path):
        check_regular(path)
        if kind_ending(path) not in FILE_KINDS:
            raise ValueError(f"The ending of {name} is not one of {_endings()}. Convert or rename the file.")
        paths, root = [path], path.parent
    else:
        paths = _expand(path)
        root = Path(*takewhile(lambda part: not has_magic(part), path.parts))
    readable = [file for file in paths if kind_ending(file) in FILE_KINDS and file.is_file()]
    readable_paths = {*readable}
    notices = [f"{name}: hidden files and folders are not read ({hidden:,})."] if hidden else []
    if unread := [str(_below(root, file)) for file in paths if file not in readable_paths]:
        notices.append(f"{name}: files of an unknown kind are not read: {count_names(unread)}.")
    if not readable:
        problem = "the folder has no file" if path.is_dir() else "no such file, or no file"
        content = f" It has {count_names(unread)}." if unread else ""
        raise ValueError(f"{name!r}: {problem} that ends in {_endings()}.{content}")
    return [_describe(file, shown(str(_below(root, file)))) for file in readable], notices


def count_names(names: list[str]) -> str:
    """Return `a, b and 7 more`."""
    remaining = len(names) - NAMED
    return ", ".join(map(shown, names[:NAMED])) + (f" and {remaining:,} more" if remaining > 0 else "")


def _expand(pattern: Path) -> list[Path]:
    # Return the files of a pattern, in order. Below `**`, `glob` could follow links in a circle.
    parts = pattern.parts
    if "**" in parts:
        k = parts.index("**")
        heads = glob(str(Path(*parts[:k]))) if k else ["."]
        roots = [Path(head) for head in heads if Path(head).is_dir()]
        matches = [path for root in roots for path in _walk(root)[0] if _fits(path.relative_to(root).parts, parts[k:])]
    else:
        matches = [path for path in map(Path, glob(str(pattern))) if not path.is_dir()]
    places = {(os.path.realpath(path.parent), path.name): path for path in sorted(matches, reverse=True)}
    return sorted(places.values())


def _fits(parts: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    if not pattern or not parts:
        return not parts and all(part == "**" for part in pattern)
    if pattern[0] == "**":
        return _fits(parts, pattern[1:]) or _fits(parts[1:], pattern)
    return fnmatchcase(parts[0], pattern[0]) and _fits(parts[1:], pattern[1:])


def _walk(root: Path) -> tuple[list[Path], int]:
    # Return all files below a folder except hidden ones, and the number of hidden files and folders.
    def fail(error: OSError) -> NoReturn:
        raise ValueError(f"{error.filename} cannot be read: {error.strerror}.") from error

    files, hidden, visited, pending = [], 0, set(), [str(root)]
    while pending:  # links come last, so that a folder is read under its own name
        for folder, folders, names in os.walk(pending.pop(0), onerror=fail):
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in visited:
                folders.clear()
                continue
            visited.add((status.st_dev, status.st_ino))
            hidden += sum(name.startswith(".") for name in (*folders, *names))
            inside = [os.path.join(folder, name) for name in sorted(folders) if not name.startswith(".")]
            pending += filter(os.path.islink, inside)
            folders[:] = [os.path.basename(path) for path in inside if not os.path.islink(path)]
            files += [Path(folder, name) for name in names if not name.startswith(".")]
    return sorted(files), hidden


def _below(root: Path, path: Path) -> Path:
    return path.relative_to(root) if path.is_relative_to(root) else Path(path.name)


def _endings() -> str:
    return f"{', '.join(FILE_KINDS)} (or one of these with {', '.join(COMPRESSED)})"


def _describe(path: Path, name: str) -> LocalFile:
    with _opened(path) as content:
        state = _state(content)
        digest = hashlib.file_digest(content, "sha256").hexdigest()
        if _state(content) != state:
            raise ValueError(f"{name} changed while it was read. Try again when it is complete.")
    return LocalFile(path, name, state[0], digest, state)


def _state(content: BinaryIO) -> tuple[int, ...]:
    status = os.fstat(content.fileno())
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_dev, status.st_ino


# --- Opening -----------------------------------------------------------------------------------------------------


@contextmanager
def open_file(file: LocalFile) -> Iterator[BinaryIO]:
    """Open a file as decompressed bytes.

    Raises:
        ValueError: it has changed since it was hashed, changes while it is read, or is damaged.
    """
    with _opened(file.path) as content:
        if _state(content) != file.state:
            raise ValueError(f"{file.name} has changed since the start. Start again.")
        with _decompressed(content, file.path, file.name) as plain:
            yield plain
        if _state(content) != file.state:
            raise ValueError(f"{file.name} changed while it was read. Try again when it is complete.")


@contextmanager
def _opened(path: Path) -> Iterator[io.BufferedReader]:
    check_regular(path)
    try:
        content = path.open("rb")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from error
    with content:
        yield content


@contextmanager
def _decompressed(content: BinaryIO, path: Path, name: str) -> Iterator[BinaryIO]:
    ending = path.suffix.lower()
    try:
        if ending not in COMPRESSED:
            yield content
        elif ending == ".zst":
            import pyarrow

            yield io.BufferedReader(pyarrow.CompressedInputStream(content, "zstd"))
        else:
            module = {".gz": gzip, ".bz2": bz2, ".xz": lzma}[ending]
            yield module.open(content)
    except (EOFError, OSError, lzma.LZMAError, zlib.error) as error:
        raise ValueError(f"{name} cannot be decompressed: {one_line(error)}.") from error


# --- Text --------------------------------------------------------------------------------------------------------


def text_lines(content: BinaryIO, name: str) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, line with its end) of UTF-8, or of UTF-16 or UTF-32 with a byte order mark.

    Raises:
        ValueError: a line is not valid; the message names the file and the line.
    """
    first = content.readline()
    mark, encoding = _mark_of(first)
    if encoding in ("utf-16", "utf-32"):
        lines = io.BytesIO(_decode(first + content.read(), encoding, name).encode())
    else:
        lines = chain([first[len(mark) :]], content)
    for number, line in enumerate(lines, 1):
        yield number, _decode(line, "utf-8", name, number)


def read_text(content: BinaryIO, name: str) -> str:
    """Return the full text with line ends as \\n; encodings and errors as in `text_lines`."""
    raw = content.read()
    text = _decode(raw, _mark_of(raw)[1], name)
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def read_text_file(path: str | Path) -> str:
    """Return the text of a file.

    Raises:
        ValueError: the file is missing, not a regular file, or not UTF-8 (UTF-16 or UTF-32 with a byte order mark).
    """
    path = local_path(str(path))
    with _opened(path) as content:
        return read_text(content, str(path))


def _mark_of(raw: bytes) -> tuple[bytes, str]:
    return next(
        ((mark, encoding) for mark, encoding in BYTE_ORDER_MARKS.items() if raw.startswith(mark)), (b"", "utf-8")
    )


def _decode(raw: bytes, encoding: str, name: str, line: int | None = None) -> str:
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding in ("utf-16", "utf-32"):
            raise ValueError(
                f"{name} cannot be read: it has the mark of {encoding.upper()}, but is not valid ({error.reason})."
            ) from error
        line = line or 1 + raw[: error.start].count(b"\n")
        raise ValueError(
            f"{name} cannot be read: line {line} is not UTF-8 (byte 0x{raw[error.start]:02x}). Save the file as UTF-8."
        ) from error


def one_line(error: BaseException) -> str:
    """Return an error's kind and message in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


__all__ = [
    "COMPRESSED",
    "FILE_KINDS",
    "LocalFile",
    "count_names",
    "find_files",
    "kind_ending",
    "local_path",
    "looks_local",
    "one_line",
    "open_file",
    "read_text",
    "read_text_file",
    "text_lines",
]
