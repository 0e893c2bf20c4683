"""Train a run at several learning rates: one run folder each, a table, the best rate. Not a recipe itself."""

import json
import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from scratch_gpt.runs.folder import EVALUATION
from scratch_gpt.train.loop import Diverged
from scratch_gpt.utils.files import write_text
from scratch_gpt.utils.foreign import read_json
from scratch_gpt_training.support.command_line import one_clear_line, parse_rates
from scratch_gpt_training.support.options import Run
from scratch_gpt_training.support.run.output_dir import check_output_dir, write_run_yaml
from scratch_gpt_training.support.run.runner import close_run, run_task
from scratch_gpt_training.support.run.setup import clear, hold_output, open_run
from scratch_gpt_training.support.run.task import Task


SWEEP_FILE = "sweep.json"


def run_rates(run: Run, build: Callable[[Any], Task]) -> None:
    """Train the run once at each of its `learning_rates`.

    A rate that diverges is a result too. A resumed sweep continues each unfinished rate, except those with a loss that
    was not finite.
    """
    with one_clear_line():
        lock = hold_output(run)
    with lock:
        accelerators = _run_rates(run, build)
    if accelerators:
        close_run(run, accelerators[-1])


def _run_rates(run: Run, build: Callable[[Any], Task]) -> list[Accelerator]:
    with one_clear_line():
        runs = make_rate_runs(run)
        results = read_rates(run)
        diverged = {name for name, result in results.items() if result["loss"] is None}
        starts = {rate: open_run(rate_run) for rate, rate_run in runs.items() if f"{rate:g}" not in diverged}
    table, accelerators = {rate: results[f"{rate:g}"] for rate in runs if rate not in starts}, []
    is_main = True
    for rate, start in starts.items():

        def begin(accelerator: Accelerator) -> None:
            if not accelerators and run.overwrite and accelerator.is_main_process:
                clear(Path(run.output_dir))
            write_run_of_rates(run, runs, accelerator)
            accelerators.append(accelerator)

        if os.environ.get("RANK", "0") == "0":
            print(f"--- learning rate {rate:g}")
        try:
            accelerators.append(run_task(runs[rate], start, validated(build), begin))
            write_run_of_rates(run, runs, accelerators[-1])  # a finished run does not call `begin`
            table[rate] = result_of(runs[rate])
        except SystemExit as ending:
            if not isinstance(ending.__cause__, Diverged):
                raise
            table[rate] = {"loss": None, "diverged": True}
        accelerators[-1].free_memory()  # the next rate has its own model
        is_main = accelerators[-1].is_main_process
        if is_main:
            write_rates(run, table)
    if is_main:
        print(format_rates(run, {rate: table[rate] for rate in runs}))
    return accelerators


def write_run_of_rates(run: Run, runs: dict[float, Run], accelerator: Accelerator) -> None:
    """Write the run.yaml that names the runs of several rates."""
    if accelerator.is_main_process:
        write_run_yaml(
            run, Path(run.output_dir), {"runs": [Path(rate_run.output_dir).name for rate_run in runs.values()]}
        )
    accelerator.wait_for_everyone()


def validated(build: Callable[[Any], Task]) -> Callable[[Run], Task]:
    """Wrap `build` to raise a ValueError for a task without a validation split, which the comparison needs."""

    def checked(run: Run) -> Task:
        task = build(run)
        if "validation" not in task.rows:
            raise ValueError(f"Rates are compared by validation loss, and {run.dataset} has no validation split.")
        return task

    return checked


def make_rate_runs(run: Run) -> dict[float, Run]:
    """Return the run of each rate, in output_dir/rate-R.

    Raises:
        ValueError: output_dir cannot be used, or another option does not work with several rates.
    """
    if getattr(run, "seeds", 1) > 1 or run.push_to_hub is not None:
        raise ValueError("Rates are compared on one seed, and none is published: remove --seeds and --push-to-hub.")
    if run.validation_fraction == 0:
        raise ValueError("Rates are compared by validation loss. Give a --validation-fraction above 0.")
    if run.resume not in (None, "latest"):
        raise ValueError(f"--resume {run.resume} is one rate's checkpoint. With --learning-rates give `latest`.")
    folder = check_output_dir(run)
    if (folder / "checkpoints").is_dir() and not run.overwrite:
        raise ValueError(f"--output-dir {folder} holds a run of one rate. Choose another for several rates.")
    assert run.learning_rates is not None
    return {
        rate: replace(run, learning_rates=None, learning_rate=rate, output_dir=f"{run.output_dir}/rate-{rate:g}")
        for rate in parse_rates(run.learning_rates)
    }


def result_of(run: Run) -> dict[str, Any]:
    """Return {"loss", "diverged"} of a finished run; without any improvement it has diverged too."""
    results = json.loads((Path(run.output_dir) / EVALUATION).read_text(encoding="utf-8"))["results"]
    loss, before = results["validation"]["loss"], results["before/validation"]["loss"]
    is_finite = math.isfinite(loss)
    return {"loss": loss if is_finite else None, "diverged": not (is_finite and loss < before)}


def read_rates(run: Run) -> dict[str, dict[str, Any]]:
    """Return the results of a resumed sweep by rate, as written in sweep.json."""
    file = Path(run.output_dir) / SWEEP_FILE
    return read_json(file).get("rates", {}) if run.resume is not None and file.exists() else {}


def write_rates(run: Run, table: dict[float, dict[str, Any]]) -> None:
    """Write the results so far to sweep.json."""
    rates = {f"{rate:g}": result for rate, result in sorted(table.items())}
    write_text(Path(run.output_dir) / SWEEP_FILE, json.dumps({"format_version": 1, "rates": rates}, indent=2) + "\n")


def format_rates(run: Run, table: dict[float, dict[str, Any]]) -> str:
    """Return the table as text, with the best rate of those that learned."""
    losses = {rate: result["loss"] for rate, result in table.items() if not result["diverged"]}
    best = min(losses, key=lambda rate: losses[rate], default=None)
    lines = [f"\n{'learning rate':>13}  {'validation loss':>15}  diverged"]
    for rate, result in table.items():
        loss = "-" if result["loss"] is None else f"{result['loss']:.4f}"
        lines.append(f"{rate:>13g}  {loss:>15}  {'yes' if result['diverged'] else 'no'}{'  best' * (rate == best)}")
    if best is None:
        return "\n".join([*lines, "None of the rates learned. Try lower ones."])
    return "\n".join(
        [*lines, f"Best: --learning-rate {best:g}. Written: {run.output_dir}/{SWEEP_FILE}, a run folder of each rate"]
    )


__all__ = ["run_rates"]
