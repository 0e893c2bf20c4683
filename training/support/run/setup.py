"""Set up a run: a new start or a checkpoint, the accelerator, the number of steps."""

import json
import math
import os
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import DistributedType, gather_object
from safetensors import SafetensorError, safe_open

from scratch_gpt.finetuning.lora import add_lora
from scratch_gpt.finetuning.trainable import freeze
from scratch_gpt.runs.folder import (
    ASIDE,
    EVALUATION,
    METRICS,
    STEP_FILE,
    find_folder,
    is_run,
    is_whole_file,
    read_metrics,
    set_aside,
)
from scratch_gpt.train.accelerator import check_launch, make_accelerator
from scratch_gpt.train.batches import BatchLayout
from scratch_gpt.train.checkpoints import (
    adopt,
    check_shapes,
    find_checkpoint,
    find_damage,
    own_name,
    read_state,
    take_fields,
)
from scratch_gpt.train.costs import Tune, row_flops
from scratch_gpt.train.loop import Progress, TrainingSettings, planned_steps
from scratch_gpt.train.machine_probe import device_peak
from scratch_gpt.utils.files import remove, remove_files
from scratch_gpt.utils.foreign import read_json
from scratch_gpt.utils.locks import hold
from scratch_gpt_training.support.options import Run
from scratch_gpt_training.support.run.defaults import resolve_epochs
from scratch_gpt_training.support.run.output_dir import check_output_dir, check_writable
from scratch_gpt_training.support.run.resuming import check_record, check_same_run, make_record, resolve_split
from scratch_gpt_training.support.run.task import Start, Task


def open_run(run: Run) -> Start:
    """Choose the folder and the checkpoint, and lock the folder.

    Raises:
        ValueError: the folder, the checkpoint or an option of the launch cannot be used.
    """
    check_launch(run.expect_processes)
    lock = hold_output(run)
    try:
        return find_start(run)._replace(lock=lock)
    except BaseException:
        lock.__exit__(None, None, None)
        raise


def hold_output(run: Run) -> Any:
    """Lock output_dir until the end of `with`, on the first process; ValueError if another launch has locked it."""
    check_writable(Path(run.output_dir))
    return hold(run.output_dir) if os.environ.get("RANK", "0") == "0" else nullcontext()


def keeps_best(run: Run) -> bool:
    """Return whether model/ must hold the best weights by validation loss."""
    return run.keep_best or run.patience is not None


def find_start(run: Run) -> Start:
    """Return the start of a run in its folder; ValueError if it cannot start there."""
    folder = check_output_dir(run)
    if run.resume is None:
        return Start(folder, None, [])
    if run.resume != "latest":
        path = Path(run.resume)
        if not path.is_dir():
            raise ValueError(f"--resume {run.resume}: no such folder. Give the folder of a checkpoint, or `latest`.")
        if problem := find_damage(path):
            raise ValueError(f"--resume {run.resume} is not an intact checkpoint: {problem}.")
        if is_run(folder) and not path.resolve().is_relative_to(folder.resolve()):
            raise ValueError(
                f"--resume {run.resume} is from another run than the one in output_dir {run.output_dir}, which it "
                "would replace. Give another --output-dir."
            )
        return start_from(run, folder, path, [])
    path, skipped = find_checkpoint(folder / "checkpoints")
    if path is None and (folder / EVALUATION).exists():
        raise ValueError(
            f"{run.output_dir} holds a finished run and no checkpoint to resume. Give another --output-dir."
        )
    if path is None:
        return Start(folder, None, [f"No checkpoint in {run.output_dir} yet: starting from the beginning."])
    return start_from(run, folder, path, [*skipped, f"Resuming from {own_name(path)}."])


def start_from(run: Run, folder: Path, path: Path, notices: list[str]) -> Start:
    """Return the start from a checkpoint, with a notice if the best weights so far are no longer in model/."""
    saved = read_state(path)
    best = take_fields(Progress, saved["progress"]).best_step
    if not keeps_best(run) or best in (None, best_step_of(folder)):
        return Start(folder, path, notices, saved)
    notice = f"The best step so far, {best}, is not in {run.output_dir}/model. The best is chosen again from here."
    return Start(folder, path, [*notices, notice], saved, has_best=False)


def best_step_of(folder: Path) -> int | None:
    """Return the step of the weights in model/; derive it from the metrics if an older version has not recorded it."""
    model = find_folder(folder / "model")
    if not is_whole(model):
        return None
    try:
        if (model / STEP_FILE).exists():
            return read_json(model / STEP_FILE)["step"]
    except (ValueError, KeyError):
        return None
    lines = [line for line in read_metrics(folder / METRICS) if math.isfinite(line.get("eval_loss", math.nan))]
    return min(lines, key=lambda line: line["eval_loss"])["step"] if lines else None


def apply_tune(run: Run, model: Any) -> list[str]:
    """Leave trainable the parameters that the run tunes, in place, and return notices."""
    if run.tune != "lora":
        return freeze(model, run.tune)
    add_lora(
        model,
        base=run.model,
        revision=getattr(model.config, "_commit_hash", None) or run.model_revision,
        rank=run.lora_rank,
        alpha=run.lora_alpha,
        dropout=run.lora_dropout,
        targets=run.lora_targets,
        init=run.lora_init,
        use_rslora=run.use_rslora,
        use_dora=run.use_dora,
        quantize=None if run.quantize_base == "no" else run.quantize_base,
    )
    return []


def start_accelerator(run: Run, start: Start) -> Accelerator:
    """Return the accelerator, checked against the options; a resumed run keeps its precision."""
    report_to = None if run.report_to == "none" else run.report_to
    precision = run.mixed_precision
    if precision == "auto" and start.saved is not None:
        precision = start.saved["record"]["environment"]["precision"]
    accelerator = make_accelerator(run.device, precision, run.expect_processes, report_to, start.folder)
    if run.tune == "lora" and accelerator.distributed_type == DistributedType.FSDP:
        raise ValueError("--tune lora merges complete weights, which FSDP shards. Launch it with DDP instead.")
    return accelerator


def resolve_settings(run: Run, start: Start, task: Task, processes: int) -> tuple[TrainingSettings, int]:
    """Return the loop's settings and the number of steps."""
    batch_size, accumulation_steps = resolve_split(run, start.saved, processes)
    rows = None if run.streaming else len(task.rows["train"])
    record = None if start.saved is None else start.saved["record"]
    settings = TrainingSettings(
        batch_size=batch_size,
        accumulation_steps=accumulation_steps,
        max_steps=run.max_steps,
        epochs=resolve_epochs(run, rows, batch_size * accumulation_steps * processes, record),
        max_tokens=run.max_tokens,
        max_seconds=None if run.max_time is None else 60 * run.max_time,
        max_grad_norm=run.max_grad_norm or None,
        max_bad_steps=run.max_bad_steps,
        eval_every=run.eval_every,
        patience=run.patience,
        checkpoint_every=run.checkpoint_every,
        keep=run.keep,
        async_save=run.async_save,
        log_every=run.log_every,
        group_by_length=task.group_by_length,
        workers=run.workers,
        seed=run.seed,
    )
    steps = planned_steps(settings, rows, processes, task.tokens_per_row)
    if settings.eval_every is None:
        settings = replace(settings, eval_every=max(1, math.ceil(steps / count_evaluations(steps))))
    if settings.checkpoint_every is None:
        settings = replace(settings, checkpoint_every=max(1, math.ceil(steps / 10)))
    return settings, steps


def count_evaluations(steps: int) -> int:
    """Return the default number of evaluations after the first step: one for each 20 planned steps, 1 to 10.

    >>> [count_evaluations(steps) for steps in (3, 30, 100, 5000)]
    [1, 1, 5, 10]
    """
    return min(10, max(1, steps // 20))


def compare(
    run: Run, start: Start, task: Task, accelerator: Accelerator, settings: TrainingSettings
) -> tuple[dict[str, Any], list[str]]:
    """Return the record of this run, and notices about changes since the checkpoint.

    Raises:
        ValueError: a change that is not allowed.
    """
    record = make_record(replace(run, epochs=settings.epochs), task.model.config.to_dict(), task.facts, accelerator)
    record = json.loads(json.dumps(record))  # as it will be read back
    step = None if start.saved is None else start.saved["progress"]["step"]
    check_same_run(gather_object([{**record, "resume": {"step": step}}]))
    if start.saved is None:
        return record, []
    assert start.resume_from is not None
    check_shapes(start.resume_from, task.model)
    saved_layout = take_fields(BatchLayout, start.saved["share"])
    layout = BatchLayout(settings.batch_size, settings.accumulation_steps, accelerator.num_processes)
    keeps_batch = layout.global_batch == saved_layout.global_batch and layout.processes != saved_layout.processes
    return record, check_record(start.saved["record"], record, run.allow_changed, keeps_batch)


def is_finished(run: Run, start: Start, steps: int) -> bool:
    """Return whether the run that `start` resumes is already complete."""
    if start.saved is None or not (start.folder / EVALUATION).exists() or not is_whole(start.folder / "model"):
        return False
    progress = take_fields(Progress, start.saved["progress"])
    return progress.step >= steps or progress.evaluations_since_best >= (run.patience or math.inf)


def is_whole(folder: Path) -> bool:
    """Return whether a model folder has weights and none of its files is truncated."""
    files = sorted(folder.glob("*.safetensors"))
    try:
        for file in files:
            with safe_open(file, framework="pt"):
                pass
    except (OSError, SafetensorError):
        return False
    return bool(files)


def tokens_at_peak(run: Run, task: Task, accelerator: Accelerator) -> float | None:
    """Return the tokens per second, as the loop counts them, if all matrix products ran at peak; None if unknown."""
    peak = device_peak(accelerator.device, accelerator.mixed_precision)
    if peak is None:
        return None
    length: Any = sum(task.rows["train"].lengths) / len(task.rows["train"]) if task.group_by_length else None
    tune = Tune(run.tune, run.lora_rank, run.lora_targets)
    config: Any = task.model.config
    classes = len(config.id2label) if hasattr(task.model, "score") else None
    flops = row_flops(config, length or task.manifest["max_length"], tune, classes)
    return peak * accelerator.num_processes * task.tokens_per_row / (task.sequences_per_row * flops)


def clear(folder: Path) -> None:
    """Set aside the run in a folder, or its runs of several seeds or of a sweep; other files in the folder stay."""
    if set_aside(folder):
        print(f"The previous run stays in {folder / ASIDE} until this one has its first checkpoint.")


def restore_names(start: Start) -> None:
    """Rename folders that a killed run has left under a temporary name, including the resumed checkpoint."""
    for name in ("model", "last", "adapter"):
        if (current := find_folder(start.folder / name)) != start.folder / name:
            current.replace(start.folder / name)
    if start.resume_from is not None:
        adopt(start.resume_from)


def remove_folder(folder: Path) -> None:
    """Remove a model folder of ours, except files that are not ours; of a link remove only the link."""
    if folder.is_symlink():
        remove(folder)
    else:
        remove_files(folder, is_whole_file)


def rate_settings(run: Run, steps: int) -> dict[str, Any]:
    """Return the arguments of `learning_rate_at`, for a run with a learning rate."""
    peak = run.learning_rate
    assert peak is not None
    return {
        "peak": peak,
        "floor": peak / 10 if run.min_learning_rate is None else run.min_learning_rate,
        "warmup_steps": min(100, steps // 20) if run.warmup_steps is None else run.warmup_steps,
        "shape": run.schedule,
    }
