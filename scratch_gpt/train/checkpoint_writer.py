"""Write checkpoints once from a multi-process run, optionally in the background, and handle full disks."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from ..runs.folder import ASIDE
from ..utils import watchdog
from ..utils.locks import check_held
from .accelerator import sum_over_processes
from .batches import BatchLayout
from .checkpoints import (
    WRITE_ERRORS,
    BackgroundWriter,
    CheckpointError,
    list_checkpoints,
    take_snapshot,
    write_checkpoint,
)
from .metrics_log import Metrics


class RunStopped(Exception):
    """Raised when a run stops early; `exit_code` is the exit code of the process."""

    def __init__(self, message: str, exit_code: int = 2):
        super().__init__(message)
        self.exit_code = exit_code


def guard_saves(accelerator: Accelerator, output_dir: Path, stop: bool = True) -> Callable[[str, Callable], bool]:
    """Return `save(name, write)`, which calls `write()` and handles a full disk or a missing folder on all processes.

    It returns True if that succeeded. If not, it raises RunStopped; without `stop` it prints a message, returns False
    and training continues. Any other error always raises RunStopped. Call it on every process.
    """

    def save(name: str, write: Callable[[], Any]) -> bool:
        watchdog.beat()
        problem, cause, is_unexpected = "", None, False
        try:
            check_held(output_dir)
            write()
        except Exception as error:
            # Write errors are expected, and so is a bare Exception: tokenizers reports a full disk by one.
            is_unexpected = not isinstance(error, WRITE_ERRORS) and type(error) is not Exception
            problem, cause = describe_error(error) or type(error).__name__, error
        has_failed, is_unexpected = all_reduce_flags(accelerator, 0.0, bool(problem), is_unexpected)[1:]
        if not has_failed:
            return True
        message = f"{name} could not be written ({problem or 'on another process'}). {last_good(output_dir)}"
        if is_unexpected:
            raise RunStopped(f"{message} Resume from there with resume='latest'.") from cause
        if stop:
            raise RunStopped(
                f"{message} Free some space, then resume with resume='latest' (or pass on_save_error='continue')."
            ) from cause
        accelerator.print(f"{message} Training continues.")
        return False

    return save


def all_reduce_flags(accelerator: Accelerator, loss: Any, *flags: bool) -> tuple[Any, ...]:
    """Return the loss summed over processes, and for each flag whether any process raised it."""
    if accelerator.num_processes == 1:
        return float(loss), *flags
    values = torch.tensor([float(loss), *map(float, flags)], device=accelerator.device)
    total, *sums = sum_over_processes(accelerator, values).tolist()
    return total, *(value > 0 for value in sums)


def last_good(output_dir: Path) -> str:
    """Return a sentence that names the newest checkpoint."""
    checkpoints = list_checkpoints(output_dir / "checkpoints")
    if checkpoints:
        return f"The last good checkpoint is {checkpoints[-1].name}."
    earlier = f" The previous run is in {output_dir / ASIDE}." if (output_dir / ASIDE).is_dir() else ""
    return f"No checkpoint has been saved yet.{earlier}"


def describe_error(error: BaseException) -> str:
    """Describe an error in one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split())
    return text if isinstance(error, (*WRITE_ERRORS, CheckpointError)) or type(error) is Exception else repr(error)


@contextmanager
def name_last_good(output_dir: Path) -> Iterator[None]:
    """Turn errors from outside (a full disk, a lost process) into a RunStopped that names the last checkpoint."""
    try:
        yield
    except WRITE_ERRORS as error:
        file = getattr(error, "filename", None) or output_dir
        raise RunStopped(
            f"{file}: {describe_error(error)}. {last_good(output_dir)} Correct this, then resume with resume='latest'."
        ) from error
    except RuntimeError as error:
        text = str(error)
        if "DataLoader worker" in text and "exited unexpectedly" in text:
            reason = "A process that prepares batches has ended (killed, or out of memory; workers=0 starts none)."
        elif isinstance(error, torch.distributed.DistError) or "gloo" in text:
            reason = f"The connection between the processes is lost ({text.splitlines()[0][:200]})."
        else:
            raise
        raise RunStopped(f"{reason} {last_good(output_dir)} Resume from there with resume='latest'.") from error


class Checkpointer:
    """Write the checkpoints of a run, with `async_save` in the background during training."""

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: Any,
        metrics: Metrics,
        output_dir: Path,
        settings: Any,
        record: dict[str, Any],
        save: Callable[[str, Callable[[], Any]], bool],
        model_files: dict[str, bytes] | None = None,
    ):
        self.accelerator, self.model, self.optimizer, self.metrics = accelerator, model, optimizer, metrics
        self.output_dir, self.folder, self.settings = output_dir, output_dir / "checkpoints", settings
        self.record, self.save, self.model_files = record, save, model_files
        self.writer = BackgroundWriter()

    def save_checkpoint(self, progress: Any, layout: BatchLayout, cursors: dict[str, Any]) -> bool:
        """Save the progress (a dataclass), the batch layout and the cursors of this process' lanes of a stream.

        Return False if the weights are no longer finite: such a checkpoint would replace good ones.
        """
        self.finish()
        is_finite = all(bool(_local(value).isfinite().all()) for value in self.model.parameters())
        if all_reduce_flags(self.accelerator, 0.0, not is_finite)[1]:
            return False
        cursors_of_all = gather_object([cursors]) if cursors else []
        scaler = self.accelerator.scaler
        state = {
            "progress": asdict(progress),
            "metrics": self.metrics.state(),
            "share": {name: getattr(layout, name) for name in ("batch_size", "accumulation_steps", "processes")},
            "cursors": {lane: cursor for part in cursors_of_all for lane, cursor in part.items()},
            "scaler": None if scaler is None else scaler.state_dict(),
            "random_state": "torch.manual_seed(derive_seed(seed, step, process)) before each step: nothing to keep",
            "record": self.record,
        }
        is_main = self.accelerator.is_main_process
        in_background = self.settings.async_save and self._has_room()
        model = self.accelerator.unwrap_model(self.model)
        text = self.metrics.text() if is_main else ""
        snapshot = take_snapshot(model, self.optimizer.optimizer, state, text, copy=in_background)

        def write() -> None:
            if is_main:
                write_checkpoint(self.folder, snapshot, self.settings.keep, self.model_files)

        if in_background:
            self.writer.start(write)
        else:
            self.save(f"Checkpoint step-{progress.step}", write)
        return True

    def finish(self) -> None:
        """Wait for the background write, and handle its errors."""
        if self.settings.async_save:
            self.save("The last checkpoint", self.writer.finish)

    def _has_room(self) -> bool:
        # Whether a copy of the weights and two moments fits on every process; the answer is the same on all.
        size = 3 * sum(value.numel() * value.element_size() for value in self.model.parameters())
        is_short = torch.tensor(float(psutil.virtual_memory().available < 1.2 * size), device=self.accelerator.device)
        return float(sum_over_processes(self.accelerator, is_short)) == 0


def _local(value: torch.Tensor) -> torch.Tensor:
    tensor = value.detach()
    to_local = getattr(tensor, "to_local", None)  # FSDP: this process' part
    return tensor if to_local is None else to_local()


__all__ = ["Checkpointer", "RunStopped", "all_reduce_flags", "guard_saves", "last_good", "name_last_good"]
