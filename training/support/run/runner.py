"""Train a task and write its run folder: all steps around `train_model`. Not a recipe itself.

open_run(run)     before anything heavy: the folder, and the checkpoint to resume (setup.py)
run_task(...)     build the task, describe it, and execute it
execute(...)      train, keep the best or the last weights, score the test split once, write plots and records
close_run(...)    leave the process group; publish
"""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType

from scratch_gpt.data.manifest import MANIFEST_FILE
from scratch_gpt.finetuning.trainable import count_parameters
from scratch_gpt.runs.energy import EMISSIONS, measure_energy
from scratch_gpt.runs.folder import remove_replaced
from scratch_gpt.train.accelerator import best_attention, describe_device, sum_over_processes, uncompiled
from scratch_gpt.train.batches import BatchLayout, evaluation_batches
from scratch_gpt.train.checkpoint_writer import RunStopped, guard_saves, last_good, name_last_good
from scratch_gpt.train.checkpoints import CheckpointError, own_name
from scratch_gpt.train.loop import Progress, TrainingCallbacks, TrainingSettings, train_model
from scratch_gpt.train.optimizers import learning_rate_at, make_optimizer
from scratch_gpt.utils.files import write_text
from scratch_gpt.utils.foreign import FileChanged, shown
from scratch_gpt.utils.watchdog import watch
from scratch_gpt_training.support.command_line import one_clear_line
from scratch_gpt_training.support.commands import command
from scratch_gpt_training.support.options import Run
from scratch_gpt_training.support.run.defaults import describe_rate, resolve_rate
from scratch_gpt_training.support.run.description import describe_run
from scratch_gpt_training.support.run.output_dir import write_run_yaml
from scratch_gpt_training.support.run.results import (
    PREFIXES,
    append_metrics,
    load_best,
    model_files,
    plot_run,
    save_model,
    summary,
    write_evaluation,
)
from scratch_gpt_training.support.run.setup import (
    best_step_of,
    clear,
    compare,
    is_finished,
    keeps_best,
    rate_settings,
    remove_folder,
    resolve_settings,
    restore_names,
    start_accelerator,
    tokens_at_peak,
)
from scratch_gpt_training.support.run.task import Start, Task


def run_task(
    run: Run,
    start: Start,
    build: Callable[[Any], Task],
    begin: Callable[[Accelerator], Any] = lambda accelerator: None,
) -> Accelerator:
    """Run a task from its rows to its folder; return the accelerator, with a process group that the caller closes.

    Args:
        begin: called with the accelerator after all options and data are checked.
    """
    with start.lock:
        return _run_task(run, start, build, begin)


def _run_task(
    run: Run, start: Start, build: Callable[[Any], Task], begin: Callable[[Accelerator], Any]
) -> Accelerator:
    with one_clear_line():
        task = build(run)
        if "validation" not in task.rows and keeps_best(run):
            raise ValueError(
                f"--keep-best and --patience choose by validation loss, and {run.dataset} has no validation split."
            )
        accelerator = start_accelerator(run, start)
        task.model.set_attn_implementation(
            best_attention(accelerator.device.type, accelerator.mixed_precision, task.manifest["max_length"])
        )
        saved = None if start.saved is None else start.saved["record"]
        rate = resolve_rate(run, task.manifest["task"], task.model.config.hidden_size, saved)
        run = replace(run, learning_rate=rate.value)
        settings, steps = resolve_settings(run, start, task, accelerator.num_processes)
        record, changes = compare(run, start, task, accelerator, settings)
        for notice in (*start.notices, *task.notices, *changes):
            accelerator.print(shown(notice))
        if is_finished(run, start, steps):
            accelerator.print(f"{run.output_dir} is already finished. A larger limit (or --patience) continues it.")
            return accelerator
        accelerator.print(shown(describe_run(run, task, settings, steps, accelerator)))
        accelerator.print(describe_rate(rate))
    # Code that hangs ends here with a message. A signal and a full disk also print the last checkpoint.
    stacks = start.folder / f"stacks-{accelerator.process_index}.txt"

    def advice() -> str:
        return f"{last_good(start.folder)} Resume from there with --resume latest."

    watchdog = watch(60 * run.hang_timeout, stacks, advice)
    with one_clear_line(MemoryError, CheckpointError, RunStopped, FileChanged), name_last_good(start.folder), watchdog:
        begin(accelerator)
        with measure_energy(start.folder / EMISSIONS, run.energy if accelerator.is_main_process else None):
            execute(run, start, task, accelerator, settings, steps, record)
    return accelerator


def close_run(run: Run, accelerator: Accelerator) -> None:
    """Leave the process group, and publish the run if --push-to-hub is given."""
    is_main = accelerator.is_main_process
    accelerator.end_training()
    if run.push_to_hub is None or not is_main:
        return
    from scratch_gpt.hub.publish import publish

    line = command(f"publish {run.output_dir} --repo {run.push_to_hub}")
    by_hand = f"The run is complete. Publish it with: {line}"
    with one_clear_line(stopped=by_hand):
        try:
            push = publish(run.output_dir, run.push_to_hub)
        except ValueError as error:
            raise ValueError(f"{error} {by_hand}") from error
    print(f"Published: {push.url} (commit {push.commit})")


def execute(
    run: Run,
    start: Start,
    task: Task,
    accelerator: Accelerator,
    settings: TrainingSettings,
    steps: int,
    record: dict[str, Any],
) -> None:
    """Train and write a complete run folder."""
    folder, rates, started = start.folder, rate_settings(run, steps), time.monotonic()
    _begin_folder(run, start, task, accelerator, steps, rates, record)
    if run.report_to not in (None, "none"):
        accelerator.init_trackers("tracking")
    resume_from = start.resume_from and start.resume_from.with_name(own_name(start.resume_from))
    save = guard_saves(accelerator, folder, stop=run.on_save_error == "stop")
    task.hooks.before_training(accelerator, folder, save)
    scorer = Scorer(run, task, accelerator, settings, folder, save, with_test=resume_from is None)
    peak = tokens_at_peak(run, task, accelerator) if accelerator.is_main_process else None
    model, progress = train_model(
        accelerator,
        task.model,
        make_optimizer(task.model, rates["peak"], run.weight_decay, run.optimizer, (0.9, run.beta2)),
        learning_rate=lambda step: learning_rate_at(step, steps, **rates),
        rows=task.rows["train"],
        collate=task.collate,
        objective=task.objective,
        settings=replace(settings, peak_tokens_per_second=peak),
        steps=steps,
        output_dir=folder,
        callbacks=TrainingCallbacks(
            evaluate=scorer.evaluate if "validation" in task.rows else None,
            on_evaluation=scorer.report,
            augment=task.hooks.augment,
            save=save,
            model_files=partial(model_files, task),
        ),
        resume_from=resume_from,
        has_best=start.has_best,
        record=record,
    )
    results = _finish_folder(run, task, accelerator, folder, scorer, model, progress)
    for tracker in accelerator.trackers:
        tracker.finish()
    accelerator.trackers = []
    seconds = time.monotonic() - started
    if accelerator.is_main_process:
        print(shown(summary(run, task, progress, steps, results, seconds)))


def _begin_folder(
    run: Run,
    start: Start,
    task: Task,
    accelerator: Accelerator,
    steps: int,
    rates: dict[str, Any],
    record: dict[str, Any],
) -> None:
    # Write run.yaml and manifest.json before the first step.
    accelerator.wait_for_everyone()  # until all have read the folders that are renamed now
    if accelerator.is_main_process:
        if run.overwrite:
            clear(start.folder)
        restore_names(start)
        trained, parameters = count_parameters(task.model)
        counts = {"parameters": parameters, "trained_parameters": trained}
        facts = {"steps": steps, "schedule": rates, **counts, "hardware": describe_device(accelerator.device)}
        facts |= record["environment"]
        if run.model is not None:
            facts["base"] = task.model.base_identity
        if run.language is not None:
            facts["languages"] = [code.strip() for code in run.language.split(",")]
        write_run_yaml(run, start.folder, {**facts, "data": task.facts})
        write_text(start.folder / MANIFEST_FILE, json.dumps(task.manifest, indent=2) + "\n")
    accelerator.wait_for_everyone()


class Scorer:
    """Score a task's splits, keep the best model, and draw the loss curve."""

    def __init__(
        self,
        run: Run,
        task: Task,
        accelerator: Accelerator,
        settings: TrainingSettings,
        folder: Path,
        save: Callable[[str, Callable[[], Any]], bool],
        with_test: bool,
    ):
        self.run, self.task, self.accelerator, self.folder, self.save = run, task, accelerator, folder, save
        batch_size, processes = settings.batch_size, accelerator.num_processes
        self.layout = BatchLayout(batch_size, 1, processes, accelerator.process_index)
        self.splits = {"validation", "seen"} | ({"test"} if with_test else set())  # for the next evaluation

    def score(self, model: Any, split: str) -> tuple[dict[str, float], dict[str, Any]]:
        """Return the metrics and tables of a split."""
        batches = evaluation_batches(
            self.task.rows[split],
            self.task.collate,
            self.layout,
            self.accelerator.device,
            batches=None if split == "test" else self.run.eval_batches,
            workers=self.run.workers,
        )
        reduce = self._reduce if self.layout.processes > 1 else None
        return self.task.measure(model, batches, reduce, split)

    def _reduce(self, values: torch.Tensor) -> torch.Tensor:
        return sum_over_processes(self.accelerator, values.to(self.accelerator.device))

    def evaluate(self, model: Any) -> dict[str, Any]:
        """Return the metrics of all splits and a sample; the test split is only scored before the first step."""
        values: dict[str, Any] = {}
        unwrapped = self.accelerator.unwrap_model(model)
        with uncompiled(unwrapped):
            for split, prefix in PREFIXES.items():
                if split in self.splits and split in self.task.rows:
                    values |= {f"{prefix}{name}": value for name, value in self.score(model, split)[0].items()}
            self.splits.discard("test")
            if self.run.sample_prompt is not None and self.task.hooks.sample_text is not None:
                values["sample"] = self.sample(unwrapped)
        return values

    def sample(self, unwrapped: Any) -> str:
        """Return a text sampled from the model; empty on processes that do not compute it."""
        is_sharded = self.accelerator.distributed_type == DistributedType.FSDP  # each process has only a part
        is_needed = is_sharded or self.accelerator.is_main_process
        return _sample(self.task, unwrapped) if is_needed else ""

    def report(self, model: Any, progress: Progress, is_best: bool, train_loss: float | None) -> str:
        """Keep the best model, draw the loss curve, and return the line to print."""
        if is_best and keeps_best(self.run):
            save_model(self.accelerator, model, self.task.tokenizer, self.folder / "model", self.save, progress.step)
        self.save("loss.png", lambda: plot_run(self.accelerator, self.folder, self.run, self.task))
        numbers = {name: value for name, value in progress.last_evaluation.items() if name.startswith("eval_")}
        if train_loss is not None:
            numbers = {"train_loss": train_loss, **numbers}
        values = "  ".join(f"{name} {value:.4f}" for name, value in numbers.items())
        sample = shown(" ".join(progress.last_evaluation.get("sample", "").split()))
        return f"step {progress.step}: {values}{'  (best)' if is_best else ''}" + (f"\n    {sample}" if sample else "")


def _finish_folder(
    run: Run, task: Task, accelerator: Accelerator, folder: Path, scorer: Scorer, model: Any, progress: Progress
) -> dict[str, dict[str, float]]:
    # Write the model, the test scores, plots and evaluation.json; return the results on the first process.
    save = guard_saves(accelerator, folder)  # without its model a run is incomplete
    last_is_best = not keeps_best(run) or progress.best_step in (None, progress.step)
    if not last_is_best and best_step_of(folder) != progress.best_step:
        accelerator.print(
            f"model/ does not hold the best step, {progress.best_step}, which could not be saved. It gets the last."
        )
        last_is_best = True
    accelerator.wait_for_everyone()  # until all have read model/
    target = folder / ("model" if last_is_best else "last")
    save_model(accelerator, model, task.tokenizer, target, save, progress.step)
    if last_is_best and accelerator.is_main_process:
        remove_folder(folder / "last")  # from a run that was stopped when another step was the best
    if ("test" in task.rows or task.hooks.sample_text is not None) and not last_is_best:
        model = load_best(accelerator, task.model, model, folder / "model")
    test, tables = scorer.score(model, "test") if "test" in task.rows else (None, {})
    save("loss.png", lambda: plot_run(accelerator, folder, run, task))
    outputs = task.hooks.extra_outputs(model, tables) if task.hooks.extra_outputs else {}
    for name, write in outputs.items():
        save(name, lambda write=write, name=name: write(folder / name) if accelerator.is_main_process else None)
    sample = ""
    if task.hooks.sample_text is not None:
        unwrapped = accelerator.unwrap_model(model)
        with uncompiled(unwrapped):
            sample = scorer.sample(unwrapped)
    results: dict[str, dict[str, float]] = {}
    if accelerator.is_main_process:
        if sample:
            append_metrics(folder, progress, {"sample": sample})
        results = write_evaluation(run, task, folder, progress, test, tables, last_is_best)
        remove_replaced(folder)  # for a run that only evaluates and so has no checkpoint
    accelerator.wait_for_everyone()
    return results


def _sample(task: Task, model: Any) -> str:
    # A model that has diverged cannot be sampled from.
    assert task.hooks.sample_text is not None
    try:
        return task.hooks.sample_text(model)
    except ValueError as error:
        return f"(no sample: {error})"
