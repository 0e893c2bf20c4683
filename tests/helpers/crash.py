"""Kill runs of the pretrain recipe and compare their results.

Each run is forked from a process that has imported everything, so that many of them start quickly.
"""

import contextlib
import json
import multiprocessing
import os
import signal
import time
from multiprocessing import forkserver
from pathlib import Path
from unittest import mock

from places import REPO, TESTS

from scratch_gpt.runs.folder import read_metrics
from scratch_gpt.train.checkpoints import list_checkpoints


# All parts of a run, often: dropout, accumulation, a partial last window, evaluations, the best model kept.
RUN = ["--preset", "tiny", "--vocab-size", "300", "--max-length", "32", "--device", "cpu", "--dropout", "0.1"]
RUN += ["--config-overrides", "hidden_size=32,num_hidden_layers=2", "--batch-size", "4", "--accumulation-steps", "2"]
RUN += ["--max-steps", "40", "--epochs", "2", "--eval-every", "7", "--log-every", "3", "--checkpoint-every", "2"]
RUN += ["--keep-best", "true", "--test-fraction", "0.1", "--learning-rate", "3e-3"]

_context = multiprocessing.get_context("forkserver")


def start(arguments: list, log: Path) -> multiprocessing.Process:
    """Start a process that runs the recipe with these arguments and appends its output to `log`."""
    if forkserver._forkserver._forkserver_pid is None:
        paths = [str(TESTS / "helpers"), str(REPO), os.environ.get("PYTHONPATH", "")]
        with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(paths)):
            _context.set_forkserver_preload(["crash_preload"])
            forkserver.ensure_running()
    process = _context.Process(target=_recipe, args=([str(word) for word in arguments], str(log)))
    process.start()
    return process


def _recipe(arguments: list[str], log: str) -> None:
    import torch

    from scratch_gpt_training import pretrain

    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    with open(log, "a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        pretrain.main(arguments)


def finish(arguments: list, log: Path, seconds: float = 300) -> int:
    """Run to the end and return the exit code."""
    process = start(arguments, log)
    process.join(seconds)
    return process.exitcode


def kill_after(arguments: list, log: Path, seconds: float, how: int = signal.SIGKILL) -> int:
    """Run, send a signal after some seconds, wait for the end; return the exit code (negative: ended by a signal)."""
    process = start(arguments, log)
    process.join(seconds)
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, how)
    process.join(120)
    return process.exitcode


def kill_when(arguments: list, log: Path, reached, how: int = signal.SIGKILL, seconds: float = 120) -> int:
    """Run, send a signal as soon as `reached()` is true, wait for the end; return the exit code."""
    process = start(arguments, log)
    limit = time.monotonic() + seconds
    while process.is_alive() and not reached():
        assert time.monotonic() < limit, f"the condition for the signal was not met in {seconds} s"
        time.sleep(0.002)
    if process.is_alive():
        os.kill(process.pid, how)
    process.join(120)
    return process.exitcode


def outcome(folder: Path) -> dict:
    """Return everything that must be bitwise equal: weights, optimizer, metrics, samples, evaluation."""
    newest = list_checkpoints(folder / "checkpoints")[-1]
    files = [newest / "model.safetensors", newest / "optimizer.safetensors"]
    models = (folder / name / "model.safetensors" for name in ("model", "last"))
    files += [file for file in models if file.exists()]
    parts = {str(file.relative_to(folder)): file.read_bytes() for file in files}
    parts["progress"] = json.loads((newest / "state.json").read_text())["progress"]
    parts["metrics"] = exact(read_metrics(folder / "metrics.jsonl"))
    parts["evaluation"] = json.loads((folder / "evaluation.json").read_text())["results"]
    return parts


def exact(lines: list[dict]) -> list[dict]:
    """Return lines of metrics without measurements of time."""
    clocks = ("_per_second", "_seconds", "mfu", "data_wait")
    return [{k: v for k, v in line.items() if not k.endswith(clocks)} for line in lines]


def differences(one: dict, other: dict) -> list[str]:
    """Return the names of the parts that differ between two outcomes."""
    return [name for name in {**one, **other} if one.get(name) != other.get(name)]
