"""A training state <-> a folder `checkpoints/step-N/`: weights, optimizer and a JSON that a person can read.

Tensors are safetensors and the rest is JSON, so reading a checkpoint cannot run code. A folder is written under
another name, its manifest last, and renamed when it is whole.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn


WEIGHTS, OPTIMIZER, STATE, MANIFEST = "model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"
FORMAT_VERSION = 1


class CheckpointError(ValueError):
    """A checkpoint that cannot be gone on from; the message says why."""


def save_checkpoint(
    folder: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any], keep: int = 2
) -> Path:
    """Write `folder/step-N` and keep the newest `keep`; returns its path. `state` is JSON and gets the step.

    Later ones are of a course that this run has left by going on from an earlier step: they are removed.
    """
    target, draft = folder / f"step-{step}", folder / f".writing-step-{step}"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    save_file(_distinct_weights(model), str(draft / WEIGHTS))
    tensors, scalars = _flatten(optimizer.state_dict())
    save_file(tensors, str(draft / OPTIMIZER))
    (draft / STATE).write_text(json.dumps({**state, "step": step, "optimizer": scalars}, indent=1))
    manifest = {
        "format_version": FORMAT_VERSION,
        "step": step,
        "files": {name: _describe(draft / name) for name in (WEIGHTS, OPTIMIZER, STATE)},
    }
    (draft / MANIFEST).write_text(json.dumps(manifest, indent=1))
    for file in draft.iterdir():
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    shutil.rmtree(target, ignore_errors=True)
    os.replace(draft, target)
    others = list_checkpoints(folder)
    here = others.index(target)
    for old in (*others[: max(0, here + 1 - keep)], *others[here + 1 :]):
        shutil.rmtree(old)
    return target


def load_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Put weights and optimizer state back and return the JSON state.

    Raises:
        CheckpointError: a damaged folder. (Whose it is, `check_fits` says.)
    """
    if problem := find_damage(path):
        raise CheckpointError(f"{path} cannot be resumed from: {problem}.")
    state = read_state(path)
    model.load_state_dict(load_file(str(path / WEIGHTS)), strict=False)  # a tied weight is there under one name
    optimizer.load_state_dict(_unflatten(load_file(str(path / OPTIMIZER)), state.pop("optimizer")))
    return state


def check_fits(path: Path, model: nn.Module, fingerprint: dict[str, Any]) -> None:
    """Raise a CheckpointError where a checkpoint is another model's or another run's. Reads no tensor.

    `fingerprint` is what decides which rows come when; it has to be what the checkpoint was saved with.
    """
    saved = read_state(path)["fingerprint"]
    for name, value in fingerprint.items():
        if saved[name] != value:
            raise CheckpointError(
                f"{path.name} was trained with {name} {saved[name]}, this run has {value}: the data would not go on "
                "where it stopped."
            )
    with safe_open(str(path / WEIGHTS), "pt") as file:
        there = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    here = {name: tuple(tensor.shape) for name, tensor in _distinct_weights(model).items()}
    if differing := sorted(name for name in {*there, *here} if there.get(name) != here.get(name)):
        name = differing[0]
        raise CheckpointError(
            f"{path.name} belongs to another model: {name} is {there.get(name)} there and {here.get(name)} here."
        )


def read_state(path: Path) -> dict[str, Any]:
    """The JSON part of a checkpoint."""
    return json.loads((path / STATE).read_text())


def list_checkpoints(folder: Path) -> list[Path]:
    """The `step-N` folders, oldest first."""
    found = [path for path in folder.glob("step-*") if path.name.removeprefix("step-").isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def find_checkpoint(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint, and a line for each newer one that is damaged.

    Raises:
        CheckpointError: there are checkpoints, and none of them is whole.
    """
    skipped = []
    for path in reversed(list_checkpoints(folder)):
        if not (problem := find_damage(path)):
            return path, skipped
        skipped.append(f"{path.name} is damaged: {problem}")
    if skipped:
        raise CheckpointError(
            f"No checkpoint in {folder} is whole ({'; '.join(skipped)}). Start anew with --overwrite."
        )
    return None, []


def find_damage(path: Path) -> str | None:
    """What is wrong with a checkpoint folder in a few words, or None."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        for name in (WEIGHTS, OPTIMIZER, STATE):
            if _describe(path / name) != manifest["files"][name]:
                return f"{name} is not what was written"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return " ".join(f"{type(error).__name__} {error}".split())
    return None


def _describe(file: Path) -> dict[str, Any]:
    with file.open("rb") as handle:
        return {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(handle, "sha256").hexdigest()}


def _distinct_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    # Every tensor once: tied ones under the first of their names.
    found: dict[tuple, tuple[str, torch.Tensor]] = {}
    for name, tensor in model.state_dict().items():
        found.setdefault((tensor.data_ptr(), tensor.shape), (name, tensor))
    return {name: tensor.contiguous() for name, tensor in found.values()}


def _flatten(state: dict[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    # {"state": {0: {"step": t, "exp_avg": t}}, "param_groups": [...]} -> {"0.step": t, ...}, the rest
    tensors = {f"{n}.{key}": value for n, slot in state["state"].items() for key, value in slot.items()}
    assert all(isinstance(value, torch.Tensor) for value in tensors.values()), "optimizer state that is not a tensor"
    return {name: value.contiguous() for name, value in tensors.items()}, {"param_groups": state["param_groups"]}


def _unflatten(tensors: dict[str, torch.Tensor], rest: dict[str, Any]) -> dict[str, Any]:
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        n, key = name.split(".", 1)
        state.setdefault(int(n), {})[key] = value
    return {"state": state, **rest}


__all__ = [
    "CheckpointError",
    "check_fits",
    "find_checkpoint",
    "find_damage",
    "list_checkpoints",
    "load_checkpoint",
    "read_state",
    "save_checkpoint",
]
