"""One run of several seeds -> a run folder each, their mean and spread, the first one's model. Not a recipe itself."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from scratch_gpt.evaluation.statistics import spread
from scratch_gpt.runs.folder import replace_folder
from scratch_gpt.train.checkpoint_writer import RunStopped, name_last_good
from scratch_gpt.utils.files import DRAFT, remove, write_text
from scratch_gpt_training.support.command_line import RunT, one_clear_line
from scratch_gpt_training.support.run.output_dir import check_output_dir, write_run_yaml
from scratch_gpt_training.support.run.runner import finish, run_task
from scratch_gpt_training.support.run.setup import clear, hold_output, prepare


def run_seeds(run: Any, build: Callable, describe: Callable) -> None:
    """Train the run once for each seed that it asks for, from rows to folder; `build`, `describe` as for run_task."""
    with one_clear_line():
        lock = hold_output(run)
    with lock:
        with one_clear_line():
            runs = runs_of(run)
            starts = [prepare(each) for each in runs]
        for n, (each, start) in enumerate(zip(runs, starts, strict=True)):
            begin = lambda accelerator, n=n: n or begin_seeds(run, accelerator)  # noqa: E731
            accelerator = run_task(each, start, build, describe, begin)
            if n == 0:
                write_whole(run, accelerator)  # resumed, a first seed that is finished begins nothing
            accelerator.free_memory()  # the next seed has a model of its own
        with one_clear_line(RunStopped), name_last_good(Path(run.output_dir)):
            summarise(run, runs, accelerator)
    finish(run, accelerator)


def runs_of(run: RunT) -> list[RunT]:
    """The runs that `seeds` asks for: this one, or one for each of seed, seed + 1, ... in output_dir/seed-N.

    Raises:
        ValueError: output_dir cannot be used, or one checkpoint is to begin several runs.
    """
    if run.seeds == 1:
        return [run]
    if run.resume not in (None, "latest"):
        raise ValueError(f"--resume {run.resume} is one seed's checkpoint; with --seeds give `latest`.")
    folder = check_output_dir(run)
    if (folder / "checkpoints").is_dir() and not run.overwrite:
        raise ValueError(
            f"--output-dir {folder} holds a run of one seed. Give another for several, or --overwrite true."
        )
    numbers = range(run.seed, run.seed + run.seeds)
    return [replace(run, seeds=1, seed=seed, output_dir=f"{run.output_dir}/seed-{seed}") for seed in numbers]


def begin_seeds(run: Any, accelerator) -> None:
    """Write what the whole is, before the first of several seeds writes anything."""
    if run.seeds > 1 and run.overwrite and accelerator.is_main_process:
        clear(Path(run.output_dir))
    write_whole(run, accelerator)


def write_whole(run: Any, accelerator) -> None:
    """run.yaml of several seeds, as they are asked for now."""
    if run.seeds > 1 and accelerator.is_main_process:
        write_run_yaml(run, Path(run.output_dir), {"runs": [f"seed-{run.seed + n}" for n in range(run.seeds)]})
    accelerator.wait_for_everyone()


def summarise(run: Any, runs: Sequence[Any], accelerator) -> None:
    """The seeds' evaluation.json -> one with mean, standard deviation and number; model/ is the first seed's."""
    if run.seeds > 1 and accelerator.is_main_process:
        folder = Path(run.output_dir)
        files = {f"seed-{each.seed}": Path(each.output_dir) / "evaluation.json" for each in runs}
        results = {name: json.loads(file.read_text(encoding="utf-8"))["results"] for name, file in files.items()}
        first = next(iter(files))
        content = {
            "format_version": 1,
            "protocol": {"model": f"{first}/model/", "std": "of a sample (n - 1)", "seeds": "each has its own split"},
            "results": spread([*results.values()]),
            "tables": {"seeds": results},
        }
        draft = folder / f"{DRAFT}model"
        remove(draft)
        shutil.copytree(folder / first / "model", draft)
        replace_folder(draft, folder / "model")
        write_text(folder / "evaluation.json", json.dumps(content, indent=2) + "\n")
        print(f"\n{len(runs)} seeds, mean (standard deviation):")
        for split, values in content["results"].items():
            shown = (f"{name} {value['mean']:.4f} ({value['std']:.4f})" for name, value in values.items())
            print(f"{split:>18}: {'  '.join(shown)}")
        print(f"Written: {folder}/evaluation.json, {folder}/model (of {first})")
    accelerator.wait_for_everyone()


__all__ = ["run_seeds"]
