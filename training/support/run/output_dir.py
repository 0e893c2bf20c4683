"""Check and mark the folder that a run writes."""

import glob
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scratch_gpt_training.support.options import Run


if TYPE_CHECKING:
    from scratch_gpt_training.prepare import PrepareRun
    from scratch_gpt_training.train_tokenizer import TokenizerRun


# --- The run folder ----------------------------------------------------------------------------------------------


def check_output_dir(run: Run) -> Path:
    """The folder, or a ValueError where it holds something that neither `resume` nor `overwrite` speaks for."""
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
    """Whether a folder holds more than a lock, and what a killed run was about to write."""
    from scratch_gpt.utils.files import DRAFT, OLD
    from scratch_gpt.utils.locks import LOCK

    prefixes = (DRAFT, OLD, LOCK)
    return folder.is_dir() and any(not path.name.startswith(prefixes) for path in folder.iterdir())


def check_read_paths(run: "Run | PrepareRun | TokenizerRun") -> None:
    """Raise a ValueError where something that the run reads lies in output_dir, also by way of a link."""
    folder = Path(run.output_dir)
    homes = folder.absolute(), folder.resolve()
    for name, path in read_paths(run):
        if any(place.is_relative_to(home) for home in homes for place in (path.absolute(), path.resolve())):
            raise ValueError(
                f"--overwrite would remove the {name} {path}, which is inside --output-dir. Give another."
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
    except (OSError, ValueError):  # no name that a file can have
        return False


def _links(path: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(path):
        yield from (link for name in (*folders, *files) if (link := Path(place, name)).is_symlink())


def _bases(path: Path, visited: tuple[Path, ...] = ()) -> Iterator[Path]:
    # What an adapter is loaded on, and what that is loaded on.
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
    """Raise a ValueError where nothing can be written into a folder, or it cannot be made; it is left as it is."""
    try:
        str(folder).encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"--output-dir {folder} is not UTF-8, and safetensors writes no other. Give another."
        ) from error
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            raise ValueError(f"--output-dir {folder}: {path} is a file. Give a folder.")
    parent = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryDirectory(prefix=".writing-", dir=parent):
            pass
    except OSError as error:
        raise ValueError(f"--output-dir {folder} cannot be written to ({error.strerror}). Give another.") from error


def write_run_yaml(run: Run, folder: Path, facts: dict[str, Any]) -> None:
    """run.yaml: the resolved fields, and what else decided the run."""
    from scratch_gpt.runs.record import write_run

    values = {name: relative(value) for name, value in asdict(run).items()}
    values.update(resume=None, overwrite=False, allow_changed=False)  # how this launch began is no part of the run
    write_run(folder, values, facts)


def relative(value: Any) -> Any:
    """A path below the working folder as seen from there: a record says nothing about this machine."""
    working_folder = Path.cwd()
    is_below = isinstance(value, str) and Path(value).is_absolute() and Path(value).is_relative_to(working_folder)
    return str(Path(value).relative_to(working_folder)) if is_below else value


def set_name(path: str) -> str:
    """What the results on a file, folder or Hub dataset are called."""
    return Path(path).stem
