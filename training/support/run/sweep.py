"""Train a run once for each combination of a sweep: one run folder each, a table, the best. Not a recipe itself."""

import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from scratch_gpt.runs.folder import EVALUATION
from scratch_gpt.train.loop import Diverged
from scratch_gpt.utils.files import write_text
from scratch_gpt.utils.foreign import read_json
from scratch_gpt_training.support.combinations import compared_metric, show
from scratch_gpt_training.support.command_line import flag, one_clear_line
from scratch_gpt_training.support.options import Run
from scratch_gpt_training.support.run.output_dir import check_output_dir, write_run_yaml
from scratch_gpt_training.support.run.runner import close_run, run_task
from scratch_gpt_training.support.run.setup import clear, hold_output, open_run
from scratch_gpt_training.support.run.task import Task


SWEEP_FILE = "sweep.json"
Combinations = dict[str, tuple[dict[str, float], Run]]  # folder name: the swept fields and values, the options


def run_sweep(run: Run, combinations: Any, build: Callable[[Any], Task]) -> None:
    """Train the run once for each of the `combinations` that `combine` has made of it.

    A combination that diverges is a result too. A resumed sweep continues each unfinished combination, except those
    with a loss that was not finite.
    """
    with one_clear_line():
        lock = hold_output(run)
    with lock:
        accelerators = _run_sweep(run, combinations, build)
    if accelerators:
        close_run(run, accelerators[-1])


def _run_sweep(run: Run, combinations: Combinations, build: Callable[[Any], Task]) -> list[Accelerator]:
    with one_clear_line():
        check_sweep_folder(run)
        table = read_results(run)
        diverged = {name for name, result in table.items() if result["loss"] is None}
        starts = {name: open_run(options) for name, (_, options) in combinations.items() if name not in diverged}
    accelerators: list[Accelerator] = []
    is_main = True
    for name, start in starts.items():
        values, options = combinations[name]

        def begin(accelerator: Accelerator) -> None:
            if not accelerators and run.overwrite and accelerator.is_main_process:
                clear(Path(run.output_dir))
            write_run_of_sweep(run, combinations, accelerator)
            accelerators.append(accelerator)

        if os.environ.get("RANK", "0") == "0":
            print(f"--- {', '.join(f'{field} {show(value)}' for field, value in values.items())}")
        try:
            accelerators.append(run_task(options, start, validated(build), begin))
            write_run_of_sweep(run, combinations, accelerators[-1])  # a finished run does not call `begin`
            table[name] = values | result_of(options, compared_metric(values))
        except SystemExit as ending:
            if not isinstance(ending.__cause__, Diverged):
                raise
            table[name] = values | {"loss": None, "diverged": True}
        accelerators[-1].free_memory()  # the next combination has its own model
        is_main = accelerators[-1].is_main_process
        if is_main:
            write_results(run, table)
    if is_main:
        print(format_table(run, [(values, table[name]) for name, (values, _) in combinations.items()]))
    return accelerators


def write_run_of_sweep(run: Run, names: Iterable[str], accelerator: Accelerator) -> None:
    """Write the run.yaml that names the runs of a sweep."""
    if accelerator.is_main_process:
        write_run_yaml(run, Path(run.output_dir), {"runs": [*names]})
    accelerator.wait_for_everyone()


def validated(build: Callable[[Any], Task]) -> Callable[[Run], Task]:
    """Wrap `build` to raise a ValueError for a task without a validation split, which the comparison needs."""

    def checked(run: Run) -> Task:
        task = build(run)
        if "validation" not in task.rows:
            raise ValueError(f"A sweep is compared by validation loss, and {run.dataset} has no validation split.")
        return task

    return checked


def check_sweep_folder(run: Run) -> None:
    """Raise a ValueError if output_dir cannot be used, or holds a single run."""
    folder = check_output_dir(run)
    if (folder / "checkpoints").is_dir() and not run.overwrite:
        raise ValueError(f"--output-dir {folder} holds a single run. Choose another for a sweep.")


def result_of(run: Run, metric: str) -> dict[str, Any]:
    """Return {"loss", "diverged"} of a finished run, and the metric; without any improvement it has diverged too."""
    results = json.loads((Path(run.output_dir) / EVALUATION).read_text(encoding="utf-8"))["results"]
    scores, before = results["validation"], results["before/validation"]["loss"]
    if not math.isfinite(scores["loss"]):
        return {"loss": None, "diverged": True}
    compared = {metric: scores[metric]} if metric in scores else {}
    return {"loss": scores["loss"], **compared, "diverged": not scores["loss"] < before}


def read_results(run: Run) -> dict[str, dict[str, Any]]:
    """Return the results of a resumed sweep by folder name, as written in sweep.json."""
    file = Path(run.output_dir) / SWEEP_FILE
    content = read_json(file) if run.resume is not None and file.exists() else {}
    return {f"rate-{rate}": result for rate, result in content.get("rates", {}).items()} | content.get(
        "combinations", {}
    )


def write_results(run: Run, table: dict[str, dict[str, Any]]) -> None:
    """Write the results so far to sweep.json: those of rates by rate, others by folder name."""
    content: dict[str, Any] = {"format_version": 1}
    for name, result in table.items():
        if name.startswith("rate-"):
            result = {field: value for field, value in result.items() if field != "learning_rate"}
            content.setdefault("rates", {})[name.removeprefix("rate-")] = result
        else:
            content.setdefault("combinations", {})[name] = result
    if "rates" in content:
        content["rates"] = dict(sorted(content["rates"].items(), key=lambda item: float(item[0])))
    write_text(Path(run.output_dir) / SWEEP_FILE, json.dumps(content, indent=2) + "\n")


def format_table(run: Run, results: Sequence[tuple[dict[str, float], dict[str, Any]]]) -> str:
    """Return the table as text, with the best combination of those that learned."""
    fields = [*results[0][0]]
    metric = compared_metric(results[0][0])
    if not any(metric in result for _, result in results):
        metric = "loss"  # of this recipe's metrics the only one that all combinations share
    scores = {n: result[metric] for n, (_, result) in enumerate(results) if not result["diverged"]}
    best = (max if metric == "accuracy" else min)(scores, key=lambda n: scores[n], default=None)
    titles = [*(field.replace("_", " ") for field in fields), f"validation {metric.replace('_', ' ')}", "diverged"]
    rows = [titles]
    for values, result in results:
        score = "-" if result.get(metric) is None else f"{result[metric]:.4f}"
        rows.append([*map(show, values.values()), score, "yes" if result["diverged"] else "no"])
    widths = [max(len(row[n]) for row in rows) for n in range(len(titles))]
    lines = ["  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)) for row in rows]
    if best is None:
        return "\n".join(["", *lines, "No combination learned. Try lower learning rates."])
    lines[best + 1] += "  best"
    options = " ".join(f"{flag(field)} {show(value)}" for field, value in results[best][0].items())
    return "\n".join(
        ["", *lines, f"Best: {options}. Written: {run.output_dir}/{SWEEP_FILE}, a run folder of each combination"]
    )


__all__ = ["run_sweep"]
