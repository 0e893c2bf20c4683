"""Measure public tasks, and models of several seeds, for evaluation.json. Not a recipe itself."""

from collections.abc import Iterator
from functools import partial
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scratch_gpt.data.sources.documents import open_rows
from scratch_gpt.data.sources.location import Location
from scratch_gpt.evaluation.benchmark_tasks import BenchmarkTask, parts_of, task_metrics
from scratch_gpt.evaluation.likelihood import score_continuations
from scratch_gpt.evaluation.statistics import over_seeds
from scratch_gpt.runs.evaluation_file import Measured
from scratch_gpt.utils.foreign import shown
from scratch_gpt_training.support.evaluation.measurements import (
    EvaluatedModel,
    format_metrics,
    load_evaluated,
    measure_all,
)


if TYPE_CHECKING:
    from scratch_gpt_training.evaluate import EvaluateRun


SHAPE = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")


def measure_benchmark(run: "EvaluateRun", subject: EvaluatedModel) -> Iterator[tuple[str, Measured]]:
    """Yield the results of all sets and tasks; with --seed-models their mean and spread over all models."""
    if not run.seed_models:
        yield from _measure(run, subject)
        return
    models = [subject, *(load_seed_model(run, subject, path) for path in run.seed_models)]
    names = [model.name for model in models]
    for of_models in zip(*(_measure(run, model) for model in models), strict=True):
        (name, first), results = of_models[0], [measured.results for _, measured in of_models]
        for model, values in zip(names, results, strict=True):
            print(shown(f"{model}: {name}: {format_metrics(values)}"), flush=True)
        protocol = {**first.protocol, "models": names, "std": "of a sample (n - 1)"}
        tables = {"models": dict(zip(names, results, strict=True))}
        yield name, Measured(protocol, over_seeds(results), first.tables | tables)


def load_seed_model(run: "EvaluateRun", subject: EvaluatedModel, path: str) -> EvaluatedModel:
    """Load a model of --seed-models; ValueError if its shape differs from that of MODEL."""
    other = load_evaluated(run, path)
    for name in SHAPE:
        one, two = getattr(subject.model.config, name), getattr(other.model.config, name)
        if one != two:
            raise ValueError(
                f"--seed-models {path} is not {subject.name} with another seed: its {name} is {two}, not {one}. "
                "Measure it by itself."
            )
    return other


def _measure(run: "EvaluateRun", subject: EvaluatedModel) -> Iterator[tuple[str, Measured]]:
    yield from measure_all(run, subject)
    for name in run.tasks or ():
        yield name, measure_task(run, subject, name)


def measure_task(run: "EvaluateRun", subject: EvaluatedModel, name: str) -> Measured:
    """Measure a public task; the metrics of a group are the means over its parts."""
    score = partial(
        score_continuations,
        subject.model,
        subject.tokenizer,
        max_length=subject.max_length,
        batch_size=run.batch_size,
    )
    parts, results, sources, count = parts_of(name), {}, [], 0
    for part, task in parts.items():
        opened: Any = open_rows(task_location(run, part, task), task.columns)
        rows, source = opened.rows, opened.record
        results[part] = task_metrics(task, rows, score)
        sources.append(source)
        count += len(rows)
    task = next(iter(parts.values()))
    dataset = {"id": task.dataset, "config": task.config if len(parts) == 1 else None, "split": task.split}
    protocol = {
        "kind": "lm_eval task",
        "task": name,
        "few_shot": 0,
        "dataset": dataset,
        **({"source": sources[0]} if len(parts) == 1 else {"sources": sources}),
        "rows": count,
        "max_length": subject.max_length,
    }
    means = {metric: float(np.mean([values[metric] for values in results.values()])) for metric in task.metrics}
    tables: dict[str, Any] = {"parts": results} if len(parts) > 1 else {}
    return Measured(protocol, means, tables)


def task_location(run: "EvaluateRun", name: str, task: BenchmarkTask) -> Location:
    """Return the rows of a task: its file in --task-files, else its dataset on the Hub.

    Raises:
        ValueError: --task-files has no file of the task, or several.
    """
    if run.task_files is None:
        return Location(task.dataset, task.config, task.split)
    folder, short = Path(run.task_files), name.removeprefix("blimp_")
    places = [folder.glob(f"{escape(name)}.*"), (folder / "blimp").glob(f"{escape(short)}.*")]
    files = [str(path) for place in places for path in sorted(place)]
    if len(files) != 1:
        content = f"the rows of {task.dataset}, {task.config}, split {task.split}"
        problem = f"has {len(files)} files" if files else "has no file"
        raise ValueError(
            f"--task-files {run.task_files} {problem} for {name}. Put {content} there as {name}.jsonl or .parquet."
        )
    return Location(files[0])


def check_tasks(run: "EvaluateRun") -> None:
    """Raise a ValueError for an unknown task, one without a file, or options that seed models cannot have."""
    for name in run.tasks or ():
        for part, task in parts_of(name).items():
            task_location(run, part, task)
    if not run.seed_models:
        return
    for field in ("questions", "ifeval", "base", "secrets"):
        if getattr(run, field) is not None:
            raise ValueError(f"--seed-models only works with likelihoods. Measure --{field} in another command.")
    paths = [Path(name).resolve() for name in (str(run.model), *run.seed_models)]
    if len({*paths}) < len(paths):
        raise ValueError("--seed-models names a model twice, or MODEL itself. Give each model once.")


__all__ = ["check_tasks", "measure_benchmark"]
