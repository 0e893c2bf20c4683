"""A built task -> a run folder: what happens around loop.train in every recipe. Not a recipe itself.

prepare(run)      before anything heavy: the folder, and what to resume from
carry_out(...)    train, keep the best or the last, score the test split once, write pictures and records
"""

import json
import math
import os
import platform
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch

from recipe import RUN_FILES, Run, check_output_dir, write_run_yaml
from scratch_gpt.checkpoints import check_fits, find_checkpoint, find_damage, read_state
from scratch_gpt.evaluation import mean_losses
from scratch_gpt.loop import (
    Progress,
    Settings,
    data_fingerprint,
    evaluation_batches,
    make_accelerator,
    planned_steps,
    train,
)
from scratch_gpt.metrics import read_metrics
from scratch_gpt.objectives import Objective
from scratch_gpt.optimizers import adamw, learning_rate_at
from scratch_gpt.plots import plot_loss


DEFAULT_EPOCHS = 3  # where no limit is given


class Task(NamedTuple):
    """What a recipe builds."""

    model: Any  # a PreTrainedModel
    tokenizer: Any
    rows: dict[str, Sequence]  # "train", and where they are asked for "validation" and "test"
    collate: Callable[[list], dict[str, torch.Tensor]]
    objective: Objective
    metrics: Callable[[dict[str, float], str], dict[str, float]]  # mean losses, split -> named metrics
    sample: Callable[[Any], str]  # model -> a text to look at after each evaluation
    tokens_per_row: float
    facts: dict[str, Any]  # about the data, for run.yaml


class Start(NamedTuple):
    """Where a run is written and what it goes on from."""

    folder: Path
    resume_from: Path | None
    notices: list[str]


def prepare(run: Run) -> Start:
    """Settle folder and checkpoint; ValueError where either cannot be used."""
    folder = check_output_dir(run)
    if run.resume is None:
        return Start(folder, None, [])
    if run.resume != "latest":
        if not Path(run.resume).is_dir():
            raise ValueError(f"--resume {run.resume}: there is no such folder. Give one, or `latest`.")
        if problem := find_damage(Path(run.resume)):
            raise ValueError(f"--resume {run.resume} is no whole checkpoint: {problem}.")
        return Start(folder, Path(run.resume), [])
    path, skipped = find_checkpoint(folder / "checkpoints")
    if path is None and any((folder / name).exists() for name in ("model", "last", "evaluation.json")):
        raise ValueError(f"{run.output_dir} holds a model but no checkpoint to go on from. Give another --output-dir.")
    if path is None:
        return Start(folder, None, [f"No checkpoint in {run.output_dir} yet: starting from the beginning."])
    return Start(folder, path, [*skipped, f"Going on from {path.name}."])


def start_accelerator(run: Run, folder: Path):
    """The launch this run is on, checked against what it asks for."""
    report_to = None if run.report_to == "none" else run.report_to
    return make_accelerator(run.device, run.mixed_precision, run.expect_processes, report_to, folder)


def settle(run: Run, task: Task, processes: int) -> tuple[Settings, int]:
    """The loop's settings and number of steps; ValueError where nothing says how long to train."""
    settings = Settings(
        batch_size=run.batch_size,
        accumulation_steps=run.accumulation_steps,
        max_steps=run.max_steps,
        epochs=DEFAULT_EPOCHS if run.epochs is run.max_steps is run.max_tokens is None else run.epochs,
        max_tokens=run.max_tokens,
        max_seconds=None if run.max_time is None else 60 * run.max_time,
        max_grad_norm=run.max_grad_norm or None,
        eval_every=run.eval_every,
        patience=run.patience,
        checkpoint_every=run.checkpoint_every,
        keep=run.keep,
        log_every=run.log_every,
        workers=run.workers,
        seed=run.seed,
    )
    steps = planned_steps(settings, len(task.rows["train"]), processes, task.tokens_per_row)
    if settings.eval_every is None:
        settings = replace(settings, eval_every=max(1, math.ceil(steps / 10)))
    if settings.checkpoint_every is None:
        settings = replace(settings, checkpoint_every=settings.eval_every)
    return settings, steps


def is_finished(run: Run, start: Start, steps: int) -> bool:
    """Whether the run that `start` resumes has nothing left to do."""
    if start.resume_from is None or not (start.folder / "evaluation.json").exists():
        return False
    progress = Progress(**read_state(start.resume_from)["progress"])
    return progress.step >= steps or progress.evaluations_since_best >= (run.patience or math.inf)


def carry_out(run: Run, start: Start, task: Task, accelerator, settings: Settings, steps: int) -> None:
    """Train and leave a whole run folder behind."""
    folder, say = start.folder, accelerator.print
    for notice in start.notices:
        say(notice)
    if start.resume_from is not None:  # before anything is written
        check_fits(start.resume_from, task.model, data_fingerprint(settings, task.rows["train"]))
    rates = _rates(run, steps)
    if accelerator.is_main_process:
        for name in RUN_FILES if run.overwrite else ():
            shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink(missing_ok=True)
        write_run_yaml(run, folder, _facts(task, accelerator, steps, rates))
    accelerator.wait_for_everyone()
    if run.report_to not in (None, "none"):
        accelerator.init_trackers("tracking")
    keep_best = run.keep_best or run.patience is not None

    def evaluate(model, split: str = "validation") -> dict[str, float]:
        batches = evaluation_batches(
            *(accelerator, task.rows[split], task.collate, settings.batch_size, run.eval_batches, run.workers)
        )
        sum_over_processes = None
        if accelerator.num_processes > 1:
            sum_over_processes = lambda pair: accelerator.reduce(pair.to(accelerator.device), "sum")  # noqa: E731
        return task.metrics(mean_losses(model, batches, task.objective, sum_over_processes), split)

    def on_evaluation(model, progress: Progress, is_best: bool) -> str:
        if keep_best and is_best:
            _save_model(accelerator, model, task.tokenizer, folder / "model")
        if not accelerator.is_main_process:
            return ""
        _draw(folder, run)
        values = "  ".join(f"{name} {value:.4f}" for name, value in progress.last_evaluation.items())
        sample = " ".join(_sample(task, accelerator.unwrap_model(model)).split())
        return f"step {progress.step}: {values}{'  (best)' if is_best else ''}\n    {sample}"

    has_validation = "validation" in task.rows
    model, progress = train(
        *(accelerator, task.model, adamw(task.model, rates["peak"], run.weight_decay)),
        learning_rate=lambda step: learning_rate_at(step, steps, **rates),
        rows=task.rows["train"],
        collate=task.collate,
        objective=task.objective,
        settings=settings,
        steps=steps,
        output_dir=folder,
        evaluate=(lambda model: _prefixed(evaluate(model))) if has_validation else None,
        on_evaluation=on_evaluation,
        resume_from=start.resume_from,
    )
    last_is_best = not keep_best or progress.best_step in (None, progress.step)
    _save_model(accelerator, model, task.tokenizer, folder / ("model" if last_is_best else "last"))
    if last_is_best and accelerator.is_main_process:
        shutil.rmtree(folder / "last", ignore_errors=True)  # of a run that was stopped before it became the best
    if "test" in task.rows and not last_is_best:
        task.model.load_state_dict(type(task.model).from_pretrained(folder / "model").state_dict())
    test = evaluate(model, "test") if "test" in task.rows else None
    if accelerator.is_main_process:
        _write_evaluation(run, task, folder, progress, test, last_is_best)
        _draw(folder, run)
    accelerator.end_training()
    say(_farewell(run, progress, steps))


def _sample(task: Task, model) -> str:
    # Without torch.compile, which would compile again for each length; and a model that has diverged writes nothing.
    compiled, model._compiled_call_impl = model._compiled_call_impl, None
    try:
        return task.sample(model)
    except ValueError as error:
        return f"(no sample: {error})"
    finally:
        model._compiled_call_impl = compiled


def _rates(run: Run, steps: int) -> dict[str, float]:
    peak = (1e-3 if run.model is None else 5e-5) if run.learning_rate is None else run.learning_rate
    return {
        "peak": peak,
        "floor": peak / 10 if run.min_learning_rate is None else run.min_learning_rate,
        "warmup_steps": min(100, steps // 20) if run.warmup_steps is None else run.warmup_steps,
    }


def _prefixed(values: dict[str, float]) -> dict[str, float]:
    return {f"eval_{name}": value for name, value in values.items()}


def _unprefixed(line: dict[str, Any]) -> dict[str, float]:
    return {name.removeprefix("eval_"): value for name, value in line.items() if name.startswith("eval_")}


def _facts(task: Task, accelerator, steps: int, rates: dict[str, float]) -> dict[str, Any]:
    packages = ("torch", "transformers", "tokenizers", "datasets", "accelerate", "safetensors")
    return {
        "steps": steps,
        "schedule": rates,
        "parameters": sum(parameter.numel() for parameter in task.model.parameters()),
        "processes": accelerator.num_processes,
        "device": accelerator.device.type,
        "precision": accelerator.mixed_precision,
        "threads": torch.get_num_threads(),
        "data": task.facts,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
    }


def _save_model(accelerator, model, tokenizer, folder: Path) -> None:
    # A loadable folder: weights, config, generation config, code, tokenizer. Whole or not at all.
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        draft, old = folder.with_name(f".writing-{folder.name}"), folder.with_name(f".old-{folder.name}")
        for leftover in (draft, old):
            shutil.rmtree(leftover, ignore_errors=True)
        accelerator.unwrap_model(model).save_pretrained(draft)
        tokenizer.save_pretrained(draft)
        if folder.exists():
            os.replace(folder, old)
        os.replace(draft, folder)
        shutil.rmtree(old, ignore_errors=True)
    accelerator.wait_for_everyone()


def _draw(folder: Path, run: Run) -> None:
    metrics = read_metrics(folder / "metrics.jsonl")
    if metrics:
        model, dataset = (Path(name).name for name in (run.model or run.preset or "tiny", run.dataset))
        plot_loss(metrics, folder / "loss.png", title=f"{model} on {dataset}")


def _write_evaluation(run: Run, task: Task, folder: Path, progress: Progress, test, last_is_best: bool) -> None:
    lines = [line for line in read_metrics(folder / "metrics.jsonl") if "eval_loss" in line]
    chosen = progress.step if last_is_best else progress.best_step

    by_step = {line["step"]: _unprefixed(line) for line in lines}
    results = {"before/validation": by_step.get(0), "validation": by_step.get(chosen), "test": test}
    content = {
        "format_version": 1,
        "protocol": {
            "model": "model/",
            "step": chosen,
            "chosen_by": "last step" if last_is_best else "lowest validation loss",
            "eval_batches": run.eval_batches,
            **task.facts,
        },
        "results": {name: values for name, values in results.items() if values is not None},
        "tables": {},
    }
    (folder / "evaluation.json").write_text(json.dumps(content, indent=2) + "\n")


def _farewell(run: Run, progress: Progress, steps: int) -> str:
    folder = run.output_dir
    end = f"{progress.step} steps, {progress.tokens:,} tokens"
    if progress.stopped_early:
        end += f" (stopped before step {steps})"
    return f"""
{end}. Written:
  {folder}/model            weights, config, code and tokenizer: any Hugging Face client loads it
  {folder}/loss.png         the picture of this run
  {folder}/metrics.jsonl    every number of it; evaluation.json has the last ones, run.yaml how it was made
Next:
  python training/generate.py --model {folder}/model --prompt "The"
  python training/pretrain.py --dataset YOUR.txt --output-dir runs/mine"""
