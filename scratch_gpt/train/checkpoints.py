"""Write a training state to `checkpoints/step-N/` and read it: weights, optimizer, metrics and readable JSON.

If the caller gives the files of a model folder (config, code, tokenizer), the checkpoint is a model folder as well.
Tensors are safetensors and the rest is JSON, so reading a checkpoint cannot run code. A folder is written under
another name, its manifest last, flushed to the disk and renamed when it is complete. So a folder called step-N is a
complete checkpoint, whenever the process dies.
"""

import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import UnionType
from typing import Any, NamedTuple, Union, cast, get_args, get_origin, get_type_hints

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from ..runs.folder import METRICS, is_whole_file, remove_replaced, replace_folder
from ..utils.files import DRAFT, OLD, remove, remove_files
from ..utils.foreign import read_json


WEIGHTS, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"
CHECKPOINT_FILES, MANIFEST = (WEIGHTS, OPTIMIZER, STATE, METRICS), "manifest.json"
CHECKPOINT_FORMAT = 2
WRITE_ERRORS = (OSError, SafetensorError)  # a full disk, a missing or read-only folder


class CheckpointError(ValueError):
    """Raised for a checkpoint that cannot be written or resumed; the message says why."""


class Snapshot(NamedTuple):
    """The content of a checkpoint, in memory."""

    weights: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]
    state: dict[str, Any]  # JSON; has "progress" with step, tokens and position, and the "record" of the run
    metrics: str  # the text of metrics.jsonl so far
    shapes: dict[str, tuple[int, ...]]  # of the model itself; `weights` must have the same


# --- Snapshots of a model and its optimizer ----------------------------------------------------------------------

_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True, strict=False)  # a tied weight has one name


def take_snapshot(
    model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any], metrics: str, copy: bool = False
) -> Snapshot:
    """Return the full tensors of a model and its optimizer, sharded or not. Call it on every process.

    With `copy` training does not change the snapshot; without it tensors on the CPU are shared.
    """
    weights = whole_weights(model)
    content: dict[str, Any] = get_optimizer_state_dict(model, optimizer, options=_WHOLE)
    tensors = {
        f"{name}.{key}": value for name, slot in content.get("state", {}).items() for key, value in slot.items()
    }
    assert all(isinstance(value, torch.Tensor) for value in tensors.values()), "optimizer state that is not a tensor"
    if copy:
        weights = {name: value.clone() for name, value in weights.items()}
        tensors = {name: value.clone() for name, value in tensors.items()}
    state = {**state, "optimizer": content.get("param_groups", [])}
    return Snapshot(weights, tensors, state, metrics, tensor_shapes(model))


def whole_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return each tensor of a model once, unsharded. Call it on every process; the first gets a sharded model's."""
    return _distinct(model, cast(dict[str, torch.Tensor], get_model_state_dict(model, options=_WHOLE)))


def load_weights(model: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Load full tensors into a model, sharded or not. Call it on every process."""
    set_model_state_dict(model, cast(dict[str, Any], weights), options=_WHOLE)


def load_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Any], str]:
    """Restore weights and optimizer state; return the JSON state and the text of the metrics.

    Raises:
        CheckpointError: the folder is damaged, or belongs to another model.
    """
    if problem := find_damage(path):
        raise CheckpointError(f"{path.name} cannot be resumed from: {problem}.")
    check_shapes(path, model)
    state = read_state(path)
    with _no_pickle(path / WEIGHTS):
        weights = load_file(str(path / WEIGHTS))
    with _no_pickle(path / OPTIMIZER):
        moments = load_file(str(path / OPTIMIZER))
    load_weights(model, weights)
    slots: dict[str, dict[str, torch.Tensor]] = {}
    for name, value in moments.items():
        parameter, _, key = name.rpartition(".")
        slots.setdefault(parameter, {})[key] = value
    groups = _groups(path, state.pop("optimizer", None), slots, optimizer)
    content: dict[str, Any] = {"state": slots, "param_groups": groups}
    set_optimizer_state_dict(model, optimizer, content, options=_WHOLE)
    return state, (path / METRICS).read_text(encoding="utf-8")


def _groups(path: Path, saved: Any, slots: dict[str, Any], optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    # The checkpoint says which parameters are in which group; the run says how a group is optimized.
    options = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    try:
        names = [[*map(str, group["params"])] for group in saved]
        fits = [len(group_names) for group_names in names] == [
            len(group["params"]) for group in optimizer.param_groups
        ]
    except (TypeError, KeyError):
        fits, names = False, []
    if not fits or not slots.keys() <= {name for group_names in names for name in group_names}:
        raise CheckpointError(
            f"{path.name} belongs to another optimizer: its parameter groups differ from this run's. "
            "Start a new run in a new output_dir."
        )
    return [{**group, "params": group_names} for group, group_names in zip(options, names, strict=True)]


def check_shapes(path: Path, model: nn.Module) -> None:
    """Raise a CheckpointError if a checkpoint's weights belong to another model. No tensor is read."""
    saved, expected = _saved_shapes(path / WEIGHTS), tensor_shapes(model)
    if differing := _differing(saved, expected):
        name = differing[0]
        raise CheckpointError(
            f"{path.name} belongs to another model: {name} is {saved.get(name)} in the checkpoint and "
            f"{expected.get(name)} in the model. "
            "Start a new run in a new output_dir."
        )


def check_written(files: list[Path], shapes: dict[str, tuple[int, ...]]) -> None:
    """Raise a CheckpointError if the tensors in safetensors files are not exactly those of `shapes`."""
    written = {name: shape for file in files for name, shape in _saved_shapes(file).items()}
    if differing := _differing(written, shapes):
        name = differing[0]
        raise CheckpointError(
            f"The model cannot be saved: {name} is {written.get(name)} in the file and {shapes.get(name)} in the "
            f"model, and {len(differing)} of {len({*written, *shapes})} tensors differ. The last save is unchanged."
        )


def tensor_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return name -> shape of the tensors that a model saves, without the names that DDP, FSDP and compiling add."""
    saved = model.state_dict()
    buffers = ((name, buffer) for name, buffer in model.named_buffers() if name in saved)
    return {_own_name(name): tuple(tensor.shape) for name, tensor in (*model.named_parameters(), *buffers)}


def _saved_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    with _no_pickle(file), safe_open(str(file), "pt") as content:
        return {name: tuple(content.get_slice(name).get_shape()) for name in content.keys()}


def _differing(first: dict[str, tuple[int, ...]], second: dict[str, tuple[int, ...]]) -> list[str]:
    return sorted(name for name in {*first, *second} if first.get(name) != second.get(name))


@contextmanager
def _no_pickle(file: Path) -> Iterator[None]:
    try:
        yield
    except SafetensorError as error:
        raise CheckpointError(f"{file.parent.name}/{file.name} is not a valid safetensors file: {error}") from error


def _distinct(model: nn.Module, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    # Keep each tensor once; a tied one under the first of its names.
    names = {_own_name(name) for kind in (model.named_parameters(), model.named_buffers()) for name, _ in kind}
    bare = {_own_name(name): tensor for name, tensor in tensors.items()}
    return {name: tensor for name, tensor in bare.items() if name in names}


def _own_name(name: str) -> str:
    # Remove the parts that wrappers add: torch.compile and checkpoint_wrapper anywhere, DDP in front.
    return name.replace("_orig_mod.", "").replace("_checkpoint_wrapped_module.", "").removeprefix("module.")


# --- Writing -----------------------------------------------------------------------------------------------------


def write_checkpoint(
    folder: Path, snapshot: Snapshot, keep: int = 2, model_files: Mapping[str, bytes] | None = None
) -> Path:
    """Write `folder/step-N`, then prune to the newest `keep` and the best; return its path.

    Checkpoints with a later step belong to an abandoned continuation and are removed. A run that was set aside for
    this one is removed as well.

    Args:
        model_files: content of the other files of a model folder, by name.

    Raises:
        OSError, SafetensorError: the checkpoint could not be written; earlier files are unchanged.
        CheckpointError: the tensors are not exactly those of the model.
    """
    progress = snapshot.state["progress"]
    name = f"step-{progress['step']}"
    target, draft, model_files = folder / name, folder / (DRAFT + name), model_files or {}
    assert not {*model_files} & {*CHECKPOINT_FILES, MANIFEST}
    folder.mkdir(parents=True, exist_ok=True)
    remove(draft)
    try:
        draft.mkdir()
        weights = {key: value.contiguous() for key, value in snapshot.weights.items()}
        save_file(weights, str(draft / WEIGHTS), metadata={"format": "pt"})
        check_written([draft / WEIGHTS], snapshot.shapes)
        if unknown := {key.rsplit(".", 1)[0] for key in snapshot.optimizer} - set(snapshot.shapes):
            raise CheckpointError(f"The optimizer cannot be saved: the model has no parameter {min(unknown)}.")
        save_file({key: value.contiguous() for key, value in snapshot.optimizer.items()}, str(draft / OPTIMIZER))
        (draft / STATE).write_text(json.dumps(snapshot.state, indent=1), encoding="utf-8")
        (draft / METRICS).write_text(snapshot.metrics, encoding="utf-8")
        for file, content in model_files.items():
            (draft / file).parent.mkdir(exist_ok=True)
            (draft / file).write_bytes(content)
        manifest = {
            "format_version": CHECKPOINT_FORMAT,
            **{key: progress[key] for key in ("step", "tokens", "position")},
            "config_fingerprint": _digest(snapshot.state["record"]),
            "files": {file: _describe(draft / file) for file in (*CHECKPOINT_FILES, *model_files)},
        }
        manifest["manifest_sha256"] = _digest(manifest)
        (draft / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        replace_folder(draft, target)
    except BaseException:
        remove(draft)
        raise
    prune(folder, target, keep, progress.get("best_step"))
    remove_replaced(folder.parent)
    return target


def prune(folder: Path, newest: Path, keep: int, best_step: int | None) -> None:
    """Keep the best checkpoint and the last `keep` up to `newest`; remove others and leftovers of killed saves."""
    checkpoints = list_checkpoints(folder)
    index = checkpoints.index(newest)
    old = [path for path in checkpoints[: max(0, index + 1 - keep)] if path.name != f"step-{best_step}"]
    for path in (*old, *checkpoints[index + 1 :]):
        aside = path.with_name(OLD + path.name)
        remove(aside)
        with suppress(OSError):  # training continues if a checkpoint cannot be removed
            os.replace(path, aside)  # a partly removed folder must not look like a checkpoint
    for path in _left_over(folder):
        remove_files(path, is_whole_file)


def _left_over(folder: Path) -> list[Path]:
    # Folders that a killed save was writing or replacing, the newest step first.
    steps = [
        (int(path.name.rpartition("-")[2]), path)
        for prefix in (DRAFT, OLD)
        for path in folder.glob(f"{prefix}step-*")
        if path.name.rpartition("-")[2].isdigit()
    ]
    return [path for _, path in sorted(steps, reverse=True)]


def adopt(path: Path) -> Path:
    """Rename a checkpoint that `find_checkpoint` found under a temporary name to `step-N`; return the new path."""
    target = path.with_name(own_name(path))
    if target != path:
        if os.path.lexists(target):  # `find_checkpoint` has skipped it as damaged
            remove(target)
        os.replace(path, target)
    return target


def own_name(path: Path) -> str:
    """Return the name of a folder without the prefixes of drafts and replaced folders."""
    return path.name.removeprefix(DRAFT).removeprefix(OLD)


class BackgroundWriter:
    """Run one write at a time in a thread; the next `finish` raises its error."""

    def __init__(self):
        self.thread: threading.Thread | None = None
        self.error: BaseException | None = None

    def start(self, write: Callable[[], Any]) -> None:
        """Start a write; `finish` must have ended the previous one."""
        assert self.thread is None

        def run() -> None:
            try:
                write()
            except BaseException as error:
                self.error = error

        self.thread = threading.Thread(target=run, name="checkpoint")
        self.thread.start()

    def finish(self) -> None:
        """Wait for the write, and raise its error."""
        if self.thread is not None:
            self.thread.join()
            self.thread = None
        error, self.error = self.error, None
        if error is not None:
            raise error


# --- Folders -----------------------------------------------------------------------------------------------------


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the `step-N` folders, oldest first."""
    folders = [path for path in folder.glob("step-*") if path.name.removeprefix("step-").isdigit()]
    return sorted(folders, key=lambda path: int(path.name.removeprefix("step-")))


def find_checkpoint(folder: Path) -> tuple[Path | None, list[str]]:
    """Return the newest intact checkpoint, and a message for each newer one that is damaged.

    If none is intact, look for one that a killed save left under another name (see `adopt`).

    Raises:
        CheckpointError: there are checkpoints, and all of them are damaged.
    """
    skipped = []
    for path in reversed(list_checkpoints(folder)):
        if not (problem := find_damage(path)):
            return path, skipped
        skipped.append(f"{path.name} is damaged and skipped: {problem}")
    for path in _left_over(folder):
        if not find_damage(path):
            return path, [*skipped, f"{path.name} is intact and used as {own_name(path)}."]
    if skipped:
        raise CheckpointError(
            f"Every checkpoint in {folder} is damaged ({'; '.join(skipped)}). Restart with overwrite=True."
        )
    return None, []


def find_damage(path: Path) -> str | None:
    """Describe the damage of a checkpoint folder in a few words, or return None. Every byte is read."""
    try:
        if not (path / MANIFEST).exists():
            return f"{MANIFEST} is missing"
        manifest = read_json(path / MANIFEST)
        if manifest["format_version"] != CHECKPOINT_FORMAT:
            return f"its format version is {manifest['format_version']}, but this package reads {CHECKPOINT_FORMAT}"
        if manifest.pop("manifest_sha256") != _digest(manifest):
            return f"{MANIFEST} has changed since it was written"
        for name in {**dict.fromkeys(CHECKPOINT_FILES), **manifest["files"]}:
            if not (path / name).is_file():
                return f"{name} is missing"
            if _describe(path / name) != manifest["files"][name]:
                return f"{name} has changed since it was written"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} cannot be read"
    return None


def read_state(path: Path) -> dict[str, Any]:
    """Return the JSON part of a checkpoint.

    Raises:
        CheckpointError: it cannot be read, or lacks a part that every checkpoint has.
    """
    try:
        state = read_json(path / STATE)
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    for name in ("progress", "share", "record"):
        if not isinstance(state.get(name), dict):
            raise CheckpointError(f"{path.name}/{STATE} has no {name}: it is not a run's checkpoint.")
    return state


def take_fields(cls: type, values: dict[str, Any]) -> Any:
    """Make a dataclass or NamedTuple of numbers, texts and tables from JSON.

    Raises:
        CheckpointError: a field is unknown, or a value has another type.
    """
    kinds = get_type_hints(cls)
    for name, value in values.items():
        if name not in kinds or not any(_is_a(value, kind) for kind in _alternatives(kinds[name])):
            raise CheckpointError(
                f"{STATE}: {name} is {str(value)[:40]!r}, which is not a valid field of {cls.__name__}."
            )
    return cls(**values)


def _alternatives(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (get_origin(kind) or kind,)


def _is_a(value: Any, kind: Any) -> bool:
    # The types of JSON: an integer is also a float, but a boolean is not a number.
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _describe(file: Path) -> dict[str, Any]:
    with file.open("rb") as handle:
        return {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(handle, "sha256").hexdigest()}


__all__ = [
    "WEIGHTS",
    "WRITE_ERRORS",
    "BackgroundWriter",
    "CheckpointError",
    "Snapshot",
    "adopt",
    "check_shapes",
    "check_written",
    "find_checkpoint",
    "find_damage",
    "list_checkpoints",
    "load_checkpoint",
    "load_weights",
    "own_name",
    "prune",
    "read_state",
    "take_fields",
    "take_snapshot",
    "tensor_shapes",
    "whole_weights",
    "write_checkpoint",
]
