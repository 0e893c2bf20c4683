"""One run on several processes -> checkpoints written once, in the background where asked, and full disks met."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from ..runs.folder import ASIDE
from ..utils import watchdog
from ..utils.locks import check_held
from .batches import Share
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
    """A run that ends before its end; the message says why and what to do, `exit_code` is the process'."""

    def __init__(self, message: str, exit_code: int = 2):
        super().__init__(message)
        self.exit_code = exit_code


def guard_saves(accelerator: Accelerator, output_dir: Path, stop: bool = True) -> Callable[[str, Callable], bool]:
    """`save(what, write)`: call `write()` and deal with a full disk or a folder that is gone, on all processes alike.

    It returns whether that went well. Otherwise it says what could not be written and goes on, or with `stop` raises
    RunStopped, as for an error of any other kind. To be called on every process.
    """

    def save(what: str, write: Callable[[], Any]) -> bool:
        watchdog.beat()
        problem, cause, is_odd = "", None, False
        try:
            check_held(output_dir)
            write()
        except Exception as error:
            # No lack of room, as the bare kind that tokenizers raises is: it will not go away.
            is_odd = not isinstance(error, WRITE_ERRORS) and type(error) is not Exception
            problem, cause = describe(error) or type(error).__name__, error
        failed, is_odd = agree(accelerator, 0.0, bool(problem), is_odd)[1:]
        if not failed:
            return True
        message = f"{what} could not be written ({problem or 'on another process'}). {last_good(output_dir)}"
        if is_odd:
            raise RunStopped(f"{message} Resume from there with resume='latest'.") from cause
        if stop:
            raise RunStopped(
                f"{message} Free some space, then resume with resume='latest' (on_save_error='continue' does not stop)."
            ) from cause
        accelerator.print(f"{message} Training goes on.")
        return False

    return save


def agree(accelerator: Accelerator, loss, *flags: bool) -> tuple[float, bool, ...]:
    """The loss summed over processes, and of each flag whether any process raised it."""
    if accelerator.num_processes == 1:
        return float(loss), *flags
    values = torch.tensor([float(loss), *map(float, flags)], device=accelerator.device)
    total, *raised = accelerator.reduce(values, "sum").tolist()
    return total, *(value > 0 for value in raised)


def last_good(output_dir: Path) -> str:
    """A sentence that names the newest checkpoint."""
    found = list_checkpoints(output_dir / "checkpoints")
    if found:
        return f"The last good checkpoint is {found[-1].name}."
    kept = f" The run that was there before is in {output_dir / ASIDE}." if (output_dir / ASIDE).is_dir() else ""
    return f"There is no checkpoint yet.{kept}"


def describe(error: BaseException) -> str:
    """What went wrong, in one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split())
    return text if isinstance(error, (*WRITE_ERRORS, CheckpointError)) or type(error) is Exception else repr(error)


@contextmanager
def name_last_good(output_dir: Path) -> Iterator[None]:
    """Turn what ends a run from outside (no room, a process that is gone) into a RunStopped with the last save."""
    try:
        yield
    except WRITE_ERRORS as error:
        what = getattr(error, "filename", None) or output_dir
        raise RunStopped(
            f"{what}: {describe(error)}. {last_good(output_dir)} Correct this, then resume with resume='latest'."
        ) from error
    except RuntimeError as error:
        text = str(error)
        if "DataLoader worker" in text and "exited unexpectedly" in text:
            gone = "A process that prepares batches has ended (killed, or out of memory; workers=0 starts none)."
        elif isinstance(error, torch.distributed.DistError) or "gloo" in text:
            gone = f"The processes have lost each other ({text.splitlines()[0][:200]})."
        else:
            raise
        raise RunStopped(f"{gone} {last_good(output_dir)} Resume from there with resume='latest'.") from error


class Keeper:
    """`keeper(progress)` writes a checkpoint, with `async_save` in the background while training goes on."""

    def __init__(
        self, accelerator, model, optimizer, metrics: Metrics, folder: Path, settings, record, save, model_files=None
    ):
        self.accelerator, self.model, self.optimizer, self.metrics = accelerator, model, optimizer, metrics
        self.folder, self.settings, self.record, self.save = folder, settings, record, save
        self.model_files = model_files
        self.writer = BackgroundWriter()

    def __call__(self, progress: Any, share: Share, cursors: dict[str, Any]) -> bool:
        """Keep `progress` (a dataclass), how rows are shared out, and where this process' lanes of a stream stand.

        False where weights are not finite any more: such a checkpoint would push out the good ones.
        """
        self.finish()
        is_finite = all(bool(_local(value).isfinite().all()) for value in self.model.parameters())
        if agree(self.accelerator, 0.0, not is_finite)[1]:
            return False
        everyone = gather_object([cursors]) if cursors else []
        scaler = self.accelerator.scaler
        state = {
            "progress": asdict(progress),
            "metrics": self.metrics.state(),
            "share": {name: getattr(share, name) for name in ("batch_size", "accumulation_steps", "processes")},
            "cursors": {lane: cursor for part in everyone for lane, cursor in part.items()},
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
        """Wait for what is being written, and deal with what went wrong in it."""
        if self.settings.async_save:
            self.save("The last checkpoint", self.writer.finish)

    def _has_room(self) -> bool:
        # Weights and two moments, once more; on the main process' word, so that all do the same.
        size = 3 * sum(value.numel() * value.element_size() for value in self.model.parameters())
        lacks = torch.tensor(float(psutil.virtual_memory().available < 1.2 * size), device=self.accelerator.device)
        return float(self.accelerator.reduce(lacks, "sum")) == 0


def _local(value: torch.Tensor) -> torch.Tensor:
    return value.detach().to_local() if hasattr(value, "to_local") else value.detach()  # FSDP: this process' part


__all__ = ["Keeper", "RunStopped", "agree", "guard_saves", "last_good", "name_last_good"]
