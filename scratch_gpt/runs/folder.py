"""Recognize the files of a run in an output folder, remove them, and set an old run aside.

A folder belongs to a run if it has the run's run.yaml or the manifest of a checkpoint. Only files with the names and
places that a run writes are removed from it; all other files stay.
"""

import json
import os
import re
import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml

from ..utils.files import DRAFT, OLD, files_below, flush, remove, remove_empty, remove_files
from ..utils.foreign import parse_json, read_foreign_text
from ..utils.loading import ADAPTER_CONFIG


RUN_YAML, METRICS, EVALUATION = "run.yaml", "metrics.jsonl", "evaluation.json"
ASIDE = ".replaced"  # holds the previous run until the new one has its first checkpoint
STEP_FILE = "step.json"  # in a model folder: the step of its weights

MODEL_CODE = {
    file.name: file for file in sorted((Path(__file__).parents[1] / "modeling").glob("[!_]*.py"))
}  # name -> file
WEIGHT_PATTERNS = ("model.safetensors", "model-?????-of-?????.safetensors", "model.safetensors.index.json")
EVAL_RESULTS = ".eval_results/scratch_gpt.yaml"  # in published/: results of public tasks, in the Hub's format
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json")
TOKENIZER += ("vocab.txt", "merges.txt", "chat_template.jinja")
MODEL = ("config.json", "generation_config.json", *WEIGHT_PATTERNS)
# Files of a folder that is replaced as a whole: a model, a checkpoint, published/, an export, a tokenizer.
WHOLE = (*MODEL, *MODEL_CODE, *TOKENIZER, STEP_FILE, "additional_chat_templates/*.jinja", "report.json", "README.md")
WHOLE += (ADAPTER_CONFIG, "adapter_model.safetensors", "base.json")
WHOLE += ("optimizer.safetensors", "state.json", METRICS, "manifest.json", EVALUATION)
WHOLE += (EVAL_RESULTS, "assets/*.png", "tensorboard/events.out.tfevents.*")
WHOLE += ("model.onnx", "model.onnx.data", "model-f16.gguf", "model-f32.gguf")
TRACKED = ("events.out.tfevents.*", "hparams.yml")
RUN_FILES = (RUN_YAML, "sweep.json", "manifest.json", METRICS, "loss.png", "confusion.png", "hub.json")
RUN_FILES += ("predictions.jsonl", "responses.json", EVALUATION, "references.safetensors", "emissions.csv")
RUN_FILES += ("stacks-*.txt",)
RUN_FOLDERS = ("adapter", "model", "last", "checkpoints", "tracking", "published", "exports")
RUN_PARTS = ("seed-*", "rate-*", "sweep-*")  # runs of several seeds, or of a sweep


def is_whole_file(name: str) -> bool:
    """Return whether a file of this relative name belongs to a folder that is replaced as a whole."""
    return any(fnmatch(name, pattern) and name.count("/") == pattern.count("/") for pattern in WHOLE)


def keep_foreign(folder: Path, draft: Path) -> None:
    """Link (or copy) files that are not ours into a draft, from the folder that the draft will replace."""
    if folder.is_symlink() or not folder.is_dir():
        return
    for path in files_below(folder):
        name = path.relative_to(folder)
        if is_whole_file(name.as_posix()) or os.path.lexists(draft / name):
            continue
        (draft / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, draft / name, follow_symlinks=False)
        except (OSError, NotImplementedError):
            shutil.copy2(path, draft / name, follow_symlinks=False)


# --- Runs --------------------------------------------------------------------------------------------------------


def is_run(folder: Path) -> bool:
    """Return whether a folder belongs to a run, finished or not."""
    manifests = (path / "manifest.json" for path in folder.glob("checkpoints/step-*"))
    run_yamls = (folder / RUN_YAML, folder / ASIDE / RUN_YAML)
    return any(map(_is_run_yaml, run_yamls)) or any(map(_is_checkpoint_manifest, manifests))


def _is_run_yaml(file: Path) -> bool:
    # A run.yaml has the fields of a recipe, and notes about the run as comments below them.
    try:
        text = read_foreign_text(file)
        fields = yaml.safe_load(text)
        notes = yaml.safe_load("\n".join(line[2:] for line in text.splitlines() if line.startswith("# ")))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return False
    return (
        isinstance(fields, dict)
        and isinstance(notes, dict)
        and {"output_dir", "overwrite", "resume", "dataset", "seed"} <= fields.keys()
        and bool({"steps", "versions", "runs"} & notes.keys())
    )


def _is_checkpoint_manifest(file: Path) -> bool:
    try:
        return {"manifest_sha256", "files", "step"} <= json.loads(read_foreign_text(file)).keys()
    except (OSError, ValueError, RecursionError, AttributeError):
        return False


def is_run_file(name: str) -> bool:
    """Return whether a run writes a file or link of this name, relative to its folder."""
    parts = [part.removeprefix(DRAFT).removeprefix(OLD) for part in name.split("/")]
    if len(parts) > 1 and any(fnmatch(parts[0], pattern) for pattern in RUN_PARTS):
        parts = parts[1:]
    if len(parts) == 1:
        return parts[0] in RUN_FOLDERS or any(fnmatch(parts[0], pattern) for pattern in RUN_FILES)
    top, *inside = parts
    if top == "tracking":
        return any(fnmatch(inside[-1], pattern) for pattern in TRACKED)
    if top == "checkpoints":
        if re.fullmatch(r"step-\d+", inside[0]) is None:
            return False
    elif top == "exports":
        if inside[0] not in ("onnx", "gguf", "gguf-f16"):
            return False
    elif top in RUN_FOLDERS:
        inside = [top, *inside]
    else:
        return False
    return len(inside) == 1 or is_whole_file("/".join(inside[1:]))


def run_files(folder: Path) -> list[Path]:
    """Return the files and links in a folder that a run has written, run.yaml last."""
    files = []
    for path in files_below(folder):
        name = path.relative_to(folder)
        part = folder / name.parts[0]
        is_part = len(name.parts) > 1 and any(fnmatch(part.name, pattern) for pattern in RUN_PARTS)
        is_own_kind = path.is_symlink() or "." in path.name  # a run's folder may be a link, but not a file
        if is_run_file(name.as_posix()) and is_own_kind and (not is_part or is_run(part)):
            files.append(path)
    return sorted(files, key=lambda path: (path == folder / RUN_YAML, path))


def has_checkpoint(folder: Path) -> bool:
    """Return whether a run, or one of its seeds or of a sweep, has a checkpoint."""
    return any(any(folder.glob(f"{part}checkpoints/step-*/*")) for part in ("", *(f"{part}/" for part in RUN_PARTS)))


def set_aside(folder: Path) -> bool:
    """Move the run in a folder to `folder/.replaced`; return whether there is one now.

    If this run has no checkpoint yet, but an older run is set aside, this run is removed and the older one stays.

    Raises:
        OSError: a file could not be moved; all files are in their old places.
    """
    aside, files = folder / ASIDE, run_files(folder)
    if _is_run_yaml(aside / RUN_YAML):
        if not has_checkpoint(folder):
            for path in files:
                remove(path)
            _remove_empty_parts(folder)
            return True
        remove_replaced(folder)
    moved: list[tuple[Path, Path]] = []
    try:
        for path in files:
            if path == files[-1]:  # run.yaml is the last sign of the old run, so remove empty folders before
                _remove_empty_parts(folder)
            target = aside / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)
            moved.append((path, target))
    except OSError:
        for path, target in reversed(moved):
            os.replace(target, path)
        remove_empty(aside)
        raise
    _remove_empty_parts(folder)
    return bool(files)


def _remove_empty_parts(folder: Path) -> None:
    for path in folder.iterdir():
        name = path.name.removeprefix(DRAFT).removeprefix(OLD)
        if path.is_dir() and (name in RUN_FOLDERS or any(fnmatch(name, pattern) for pattern in RUN_PARTS)):
            remove_empty(path)


def remove_replaced(folder: Path) -> None:
    """Remove the run that was set aside in a folder, or in its parent if the folder is one of several."""
    is_part = any(fnmatch(folder.name, pattern) for pattern in RUN_PARTS)
    for home in (folder, folder.parent) if is_part else (folder,):
        if (home / ASIDE).is_dir():
            remove_files(home / ASIDE, is_run_file)


def find_folder(folder: Path) -> Path:
    """Return the folder, or its old copy if a kill came between the two renames of `replace_folder`."""
    old = folder.with_name(OLD + folder.name)
    return old if old.is_dir() and not os.path.lexists(folder) else folder


def replace_folder(draft: Path, folder: Path) -> None:
    """Flush a finished draft to the disk and rename it to `folder`; files that are not ours are kept in it."""
    for path in draft.iterdir():
        flush(path)
    keep_foreign(find_folder(folder), draft)
    flush(draft)
    old = folder.with_name(OLD + folder.name)
    if os.path.lexists(folder):
        remove(old)
        os.replace(folder, old)
    os.replace(draft, folder)
    flush(folder.parent)
    remove(old)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the lines of a metrics file; skip incomplete lines and lines without a step."""
    lines = []
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    for line in text.splitlines():
        try:
            measurement = parse_json(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(measurement.get("step"), int):
            lines.append(measurement)
    return lines


__all__ = [
    "ASIDE",
    "MODEL",
    "MODEL_CODE",
    "STEP_FILE",
    "TOKENIZER",
    "find_folder",
    "has_checkpoint",
    "is_run",
    "is_run_file",
    "is_whole_file",
    "keep_foreign",
    "read_metrics",
    "remove_replaced",
    "replace_folder",
    "run_files",
    "set_aside",
]
