"""Write files and folders completely or not at all, and remove them without following links."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path


DRAFT, OLD = ".writing-", ".old-"  # prefixes of the names of files and folders being written, or being replaced


# --- Files -------------------------------------------------------------------------------------------------------


def remove(path: Path) -> None:
    """Remove a file, a folder with its content, or a link without its target. Errors are ignored."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def remove_files(folder: Path, is_ours: Callable[[str], bool] = lambda name: True) -> None:
    """Remove files below a folder if `is_ours` accepts their relative names, then remove empty folders."""
    for path in sorted(files_below(folder), reverse=True):
        if is_ours(path.relative_to(folder).as_posix()):
            remove(path)
    remove_empty(folder)


def remove_empty(folder: Path) -> None:
    """Remove a folder and the folders below it if they are empty. A link is kept."""
    if folder.is_symlink():
        return
    for place, _, _ in os.walk(folder, topdown=False):
        with suppress(OSError):
            os.rmdir(place)


def files_below(folder: Path) -> Iterator[Path]:
    # Yield all files and links below a folder; links are not followed.
    for place, folders, files in os.walk(folder):
        yield from (Path(place, name) for name in files)
        yield from (path for name in folders if (path := Path(place, name)).is_symlink())


def write_text(file: Path, text: str) -> None:
    """Replace a file's text in one step: a reader finds the old text or the new text, never a part."""
    draft = file.with_name(DRAFT + file.name)
    try:
        draft.write_text(text, encoding="utf-8")
        flush(draft)
        os.replace(draft, file)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def flush(path: Path) -> None:
    """Flush a file or folder to the disk."""
    if path.is_dir() and os.name == "nt":  # Windows needs no flush of a folder
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


__all__ = ["DRAFT", "OLD", "remove", "remove_empty", "remove_files", "write_text"]
