"""A built task -> a run folder: what happens around loop.train in every recipe. Not a recipe itself.

prepare(run)      before anything heavy: the folder, and what to resume from
run_task(...)     build what the run asks for, say what is about to happen, and carry it out
carry_out(...)    train, keep the best or the last, score the test split once, write pictures and records
finish(...)       leave the process group; publish
"""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from accelerate.utils import DistributedType

from scratch_gpt.data.manifest import NAME as MANIFEST
from scratch_gpt.finetuning.trainable import count_parameters
from scratch_gpt.runs.energy import EMISSIONS, measure_energy
from scratch_gpt.runs.folder import remove_replaced
from scratch_gpt.train.accelerator import best_attention, describe_device, uncompiled
from scratch_gpt.train.batches import BatchLayout, evaluation_batches
from scratch_gpt.train.checkpoint_writer import RunStopped, guard_saves, last_good, name_last_good
from scratch_gpt.train.checkpoints import CheckpointError, own_name
from scratch_gpt.train.loop import Callbacks, Progress, Settings, train
from scratch_gpt.train.optimizers import learning_rate_at, make_optimizer
from scratch_gpt.utils.files import write_text
from scratch_gpt.utils.foreign import FileChanged, shown
from scratch_gpt.utils.watchdog import watch
from scratch_gpt_training.support.command_line import one_clear_line
from scratch_gpt_training.support.commands import command
from scratch_gpt_training.support.options import Run
from scratch_gpt_training.support.run.output_dir import write_run_yaml
from scratch_gpt_training.support.run.results import (
    PREFIXES,
    closing_lines,
    load_best,
    model_files,
    plot_run,
    save_model,
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
    settle,
    settle_folders,
    start_accelerator,
    tokens_at_peak,
)
from scratch_gpt_training.support.run.task import Start, Task


def run_task(
    run: Run,
    start: Start,
    build: Callable[[Run], Task],
    describe: Callable[..., str],
    begin: Callable[[Any], Any] = lambda accelerator: None,
):
    """One run, from its rows to its folder; returns its accelerator, whose process group the caller leaves.

    Args:
        describe: (run, task, settings, steps, accelerator) -> what is about to happen, in a few lines.
        begin: called with the accelerator when nothing can be refused any more.
    """
    with start.lock:
        return _run_task(run, start, build, describe, begin)


def _run_task(run: Run, start: Start, build, describe, begin):
    with one_clear_line():
        task = build(run)
        if "validation" not in task.rows and keeps_best(run):
            raise ValueError(
                f"--keep-best and --patience choose by validation loss, and {run.dataset} has no such split."
            )
        accelerator = start_accelerator(run, start)
        task.model.set_attn_implementation(
            best_attention(accelerator.device.type, accelerator.mixed_precision, task.manifest["max_length"])
        )
        settings, steps = settle(run, start, task, accelerator.num_processes)
        record, changes = compare(run, start, task, accelerator, settings)
        for notice in (*start.notices, *task.notices, *changes):
            accelerator.print(shown(notice))
        if is_finished(run, start, steps):
            accelerator.print(f"{run.output_dir} is already finished. A larger limit (or --patience) goes on with it.")
            return accelerator
        accelerator.print(shown(describe(run, task, settings, steps, accelerator)))
    # Code that hangs says so and ends here; an end from outside, and lack of room, name the last checkpoint too.
    stacks = start.folder / f"stacks-{accelerator.process_index}.txt"
    goes_on = lambda: f"{last_good(start.folder)} --resume latest goes on from there."  # noqa: E731
    watched = watch(60 * run.hang_timeout, stacks, goes_on)
    with one_clear_line(MemoryError, CheckpointError, RunStopped, FileChanged), name_last_good(start.folder), watched:
        begin(accelerator)
        with measure_energy(start.folder / EMISSIONS, run.energy if accelerator.is_main_process else None):
            carry_out(run, start, task, accelerator, settings, steps, record)
    return accelerator


def finish(run: Run, accelerator) -> None:
    """Leave the process group, and publish the run where it is asked to."""
    is_main = accelerator.is_main_process
    accelerator.end_training()
    if run.push_to_hub is None or not is_main:
        return
    from scratch_gpt.hub.publish import publish

    line = command(f"publish {run.output_dir} --repo {run.push_to_hub}")
    by_hand = f"The run is whole: {line} publishes it."
    with one_clear_line(stopped=by_hand):
        try:
            push = publish(run.output_dir, run.push_to_hub)
        except ValueError as error:
            raise ValueError(f"{error} {by_hand}") from error
    print(f"Published: {push.url} (commit {push.commit})")


def carry_out(
    run: Run, start: Start, task: Task, accelerator, settings: Settings, steps: int, record: dict[str, Any]
) -> None:
    """Train and leave a whole run folder behind."""
    folder, say = start.folder, accelerator.print
    rates = rate_settings(run, steps)
    accelerator.wait_for_everyone()  # all have read what is renamed now
    if accelerator.is_main_process:
        if run.overwrite:
            clear(folder)
        settle_folders(start)
        trained, parameters = count_parameters(task.model)
        counts = {"parameters": parameters, "trained_parameters": trained}
        facts = {"steps": steps, "schedule": rates, **counts, "hardware": describe_device(accelerator.device)}
        facts |= record["environment"]
        if run.model is not None:
            facts["base"] = task.model.base_identity
        write_run_yaml(run, folder, {**facts, "data": task.facts})
        write_text(folder / MANIFEST, json.dumps(task.manifest, indent=2) + "\n")
    accelerator.wait_for_everyone()
    if run.report_to not in (None, "none"):
        accelerator.init_trackers("tracking")
    keep_best = keeps_best(run)
    resume_from = start.resume_from and start.resume_from.with_name(own_name(start.resume_from))
    save = guard_saves(accelerator, folder, stop=run.on_save_error == "stop")
    task.ready(accelerator, folder, save)

    def evaluate(model, split: str) -> tuple[dict[str, float], dict[str, Any]]:
        share = BatchLayout(settings.batch_size, 1, accelerator.num_processes, accelerator.process_index)
        batches = evaluation_batches(
            *(task.rows[split], task.collate, share, accelerator.device),
            batches=None if split == "test" else run.eval_batches,
            workers=run.workers,
        )
        sum_over_processes = None
        if accelerator.num_processes > 1:
            sum_over_processes = lambda pair: accelerator.reduce(pair.to(accelerator.device), "sum")  # noqa: E731
        return task.measure(model, batches, sum_over_processes, split)

    due = {"validation", "seen"} | ({"test"} if resume_from is None else set())

    def evaluate_and_sample(model) -> dict[str, Any]:
        values, unwrapped = {}, accelerator.unwrap_model(model)
        sharded = accelerator.distributed_type == DistributedType.FSDP  # every process has a part of each matrix
        with uncompiled(unwrapped):
            for split, prefix in PREFIXES.items():
                if split in due and split in task.rows:
                    values |= {f"{prefix}{name}": value for name, value in evaluate(model, split)[0].items()}
            due.discard("test")
            if task.sample is not None:
                values["sample"] = _sample(task, unwrapped) if sharded or accelerator.is_main_process else ""
        return values

    def on_evaluation(model, progress: Progress, is_best: bool) -> str:
        if keep_best and is_best:
            save_model(accelerator, model, task.tokenizer, folder / "model", save, progress.step)
        save("loss.png", lambda: plot_run(accelerator, folder, run, task))
        numbers = {name: value for name, value in progress.last_evaluation.items() if name.startswith("eval_")}
        values = "  ".join(f"{name} {value:.4f}" for name, value in numbers.items())
        sample = shown(" ".join(progress.last_evaluation.get("sample", "").split()))
        return f"step {progress.step}: {values}{'  (best)' if is_best else ''}" + (f"\n    {sample}" if sample else "")

    has_validation = "validation" in task.rows
    betas = (0.9, run.beta2)
    peak = tokens_at_peak(run, task, accelerator) if accelerator.is_main_process else None
    settings = replace(settings, peak_tokens_per_second=peak)
    model, progress = train(
        accelerator,
        task.model,
        make_optimizer(task.model, rates["peak"], run.weight_decay, run.optimizer, betas),
        learning_rate=lambda step: learning_rate_at(step, steps, **rates),
        rows=task.rows["train"],
        collate=task.collate,
        objective=task.objective,
        settings=settings,
        steps=steps,
        output_dir=folder,
        callbacks=Callbacks(
            evaluate=evaluate_and_sample if has_validation else None,
            on_evaluation=on_evaluation,
            augment=task.alter,
            save=save,
            model_files=partial(model_files, task),
        ),
        resume_from=resume_from,
        has_best=start.best_is_there,
        record=record,
    )
    save = guard_saves(accelerator, folder)  # without its model a run has not ended
    last_is_best = not keep_best or progress.best_step in (None, progress.step)
    if not last_is_best and best_step_of(folder) != progress.best_step:
        say(f"model/ does not hold the best step, {progress.best_step}, which could not be saved: it takes the last.")
        last_is_best = True
    name = "model" if last_is_best else "last"
    accelerator.wait_for_everyone()  # all have looked at model/
    save_model(accelerator, model, task.tokenizer, folder / name, save, progress.step)
    if last_is_best and accelerator.is_main_process:
        remove_folder(folder / "last")  # of a run that was stopped before it became the best
    if "test" in task.rows and not last_is_best:
        model = load_best(accelerator, task.model, model, folder / "model")
    test, tables = evaluate(model, "test") if "test" in task.rows else (None, {})
    save("loss.png", lambda: plot_run(accelerator, folder, run, task))
    for name, write in (task.leave(model, tables) if task.leave else {}).items():
        save(name, lambda write=write, name=name: write(folder / name) if accelerator.is_main_process else None)
    results: dict[str, Any] = {}
    if accelerator.is_main_process:
        results = write_evaluation(run, task, folder, progress, test, tables, last_is_best)
        remove_replaced(folder)  # a run that only evaluates has no checkpoint
    accelerator.wait_for_everyone()
    for tracker in accelerator.trackers:
        tracker.finish()
    accelerator.trackers = []
    say(shown(closing_lines(run, task, progress, steps, results)))


def _sample(task: Task, model) -> str:
    # A model that has diverged writes nothing.
    try:
        return task.sample(model)
    except ValueError as error:
        return f"(no sample: {error})"
