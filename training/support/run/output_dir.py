"""Check and mark the output folder of a run."""

import glob
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, fields
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scratch_gpt_training.support.options import Run


if TYPE_CHECKING:
    from scratch_gpt_training.prepare import PrepareRun
    from scratch_gpt_training.train_tokenizer import TokenizerRun


# --- The run folder ----------------------------------------------------------------------------------------------


def check_output_dir(run: Run) -> Path:
    """Return the folder; ValueError if it is not empty and neither `resume` nor `overwrite` allows that."""
    from scratch_gpt.runs.folder import is_run

    folder = Path(run.output_dir)
    check_writable(folder)
    if is_filled(folder):
        if not is_run(folder):
            raise ValueError(f"--output-dir {run.output_dir} exists but is not a run folder. Choose another.")
        if run.overwrite:
            check_read_paths(run)
        if not run.overwrite and not run.resume:
            raise ValueError(
                f"--output-dir {run.output_dir} already holds a run. Give --resume latest to continue it, "
                "--overwrite true to replace it, or another --output-dir."
            )
    return folder


def is_filled(folder: Path) -> bool:
    """Return whether a folder holds more than a lock and drafts of a killed run, also in the folders of its parts.

    The first process locks the folders of all seeds or combinations before another process may have looked.
    """
    from scratch_gpt.runs.folder import RUN_PARTS
    from scratch_gpt.utils.files import DRAFT, OLD
    from scratch_gpt.utils.locks import LOCK

    prefixes = (DRAFT, OLD, LOCK)
    return folder.is_dir() and any(
        not path.name.startswith(prefixes)
        and (is_filled(path) or not path.is_dir() or not any(fnmatch(path.name, pattern) for pattern in RUN_PARTS))
        for path in folder.iterdir()
    )


def check_read_paths(run: "Run | PrepareRun | TokenizerRun") -> None:
    """Raise a ValueError if a file or folder that the run reads is inside output_dir, also through a link."""
    folder = Path(run.output_dir)
    homes = folder.absolute(), folder.resolve()
    for name, path in read_paths(run):
        if any(place.is_relative_to(home) for home in homes for place in (path.absolute(), path.resolve())):
            raise ValueError(
                f"--overwrite would remove the {name} {path}, which is inside --output-dir. Choose another."
            )


def read_paths(run: "Run | PrepareRun | TokenizerRun") -> Iterator[tuple[str, Path]]:
    """Yield (field, path) of each file and folder that a run's fields name, of links in them, of adapters' bases."""
    for item in fields(run):
        value = getattr(run, item.name)
        words = [word for word in (value if isinstance(value, list) else [value]) if isinstance(word, str)]
        if item.name in ("output_dir", "resume", "sample_prompt", "prompt"):
            continue
        for word in words:
            parts = {word, *re.split("[,=]", word)}
            inside = {str(Path(run.dataset) / part) for part in parts} if item.name == "mixture" else set()
            for text in sorted(parts | inside):
                matches = glob.glob(text, recursive=True) if glob.has_magic(text) and not _exists(text) else [text]
                for path in (Path(match) for match in matches if match and _exists(match)):
                    yield item.name, path
                    yield from ((item.name, link.resolve()) for link in _links(path))
                    yield from ((f"base of the {item.name}", base) for base in _bases(path))


def _exists(text: str) -> bool:
    try:
        return os.path.lexists(text)
    except (OSError, ValueError):  # not a possible file name
        return False


def _links(path: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(path):
        yield from (link for name in (*folders, *files) if (link := Path(place, name)).is_symlink())


def _bases(path: Path, visited: tuple[Path, ...] = ()) -> Iterator[Path]:
    # Yield the base of an adapter, and the bases of that base.
    from scratch_gpt.utils.foreign import read_json

    try:
        base = read_json(path / "adapter_config.json")["base_model_name_or_path"]
        folder = next(place for place in (Path(base), path / base) if place.is_dir())
    except (ValueError, KeyError, TypeError, StopIteration):
        return
    if folder.resolve() not in visited:
        yield folder
        yield from _bases(folder, (*visited, folder.resolve()))


def check_writable(folder: Path) -> None:
    """Raise a ValueError if a folder cannot be created or written to; it is not changed."""
    try:
        str(folder).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"--output-dir {folder} is not UTF-8, which safetensors needs. Choose another.") from error
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            raise ValueError(f"--output-dir {folder}: {path} is a file. Choose a folder.")
    parent = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryDirectory(prefix=".writing-", dir=parent):
            pass
    except OSError as error:
        raise ValueError(f"--output-dir {folder} cannot be written to ({error.strerror}). Choose another.") from error


def write_run_yaml(run: Run, folder: Path, facts: dict[str, Any]) -> None:
    """Write run.yaml: the resolved fields, and `facts` about the run."""
    from scratch_gpt.runs.record import write_run

    values = {name: relative(value) for name, value in asdict(run).items()}
    values.update(resume=None, overwrite=False, allow_changed=False)  # how a launch began does not define the run
    write_run(folder, values, facts)


def relative(value: Any) -> Any:
    """Return a path below the working folder as a relative one, so that a record does not identify this machine."""
    working_folder = Path.cwd()
    is_below = isinstance(value, str) and Path(value).is_absolute() and Path(value).is_relative_to(working_folder)
    return str(Path(value).relative_to(working_folder)) if is_below else value


def set_name(path: str) -> str:
    """Return the name of the results on a file, folder or Hub dataset."""
    return Path(path).stem
