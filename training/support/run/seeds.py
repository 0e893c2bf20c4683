"""Train a run once or over several seeds: one run folder each, mean and spread. Not a recipe itself."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from scratch_gpt.evaluation.statistics import spread
from scratch_gpt.runs.folder import EVALUATION, replace_folder
from scratch_gpt.train.checkpoint_writer import RunStopped, name_last_good
from scratch_gpt.utils.files import DRAFT, remove, write_text
from scratch_gpt_training.support.command_line import one_clear_line
from scratch_gpt_training.support.options import Run
from scratch_gpt_training.support.run.defaults import has_limit, recorded_epochs
from scratch_gpt_training.support.run.output_dir import check_output_dir, write_run_yaml
from scratch_gpt_training.support.run.runner import close_run, run_task
from scratch_gpt_training.support.run.setup import clear, hold_output, open_run
from scratch_gpt_training.support.run.task import Start, Task


def run_seeds(run: Run, build: Callable[[Any], Task]) -> None:
    """Train the run once for each of its seeds; a recipe without seeds trains once."""
    with one_clear_line():
        lock = hold_output(run)
    with lock:
        with one_clear_line():
            runs = make_seed_runs(run)
            starts = [open_run(seed_run) for seed_run in runs]
            runs = keep_defaults(runs, starts)
        for n, (seed_run, start) in enumerate(zip(runs, starts, strict=True)):
            begin = partial(begin_seeds, run) if n == 0 else _begin_nothing
            accelerator = run_task(seed_run, start, build, begin)
            if n == 0:
                write_run_of_seeds(run, accelerator)  # a finished run does not call `begin`
            accelerator.free_memory()  # the next seed has its own model
        with one_clear_line(RunStopped), name_last_good(Path(run.output_dir)):
            summarize(run, runs, accelerator)
    close_run(run, accelerator)


def make_seed_runs(run: Run) -> list[Run]:
    """Return the runs of all seeds: this one, or one for each of seed, seed + 1, ... in output_dir/seed-N.

    Raises:
        ValueError: output_dir cannot be used, or a single checkpoint is given for several seeds.
    """
    if count_seeds(run) == 1:
        return [run]
    if run.resume not in (None, "latest"):
        raise ValueError(f"--resume {run.resume} is one seed's checkpoint. With --seeds give `latest`.")
    folder = check_output_dir(run)
    if (folder / "checkpoints").is_dir() and not run.overwrite:
        raise ValueError(
            f"--output-dir {folder} holds a run of one seed. Choose another for several, or give --overwrite true."
        )
    numbers = range(run.seed, run.seed + count_seeds(run))
    return [replace(run, seeds=1, seed=seed, output_dir=f"{run.output_dir}/seed-{seed}") for seed in numbers]


def keep_defaults(runs: list[Run], starts: Sequence[Start]) -> list[Run]:
    """Return the runs of all seeds; if they give no learning rate or epochs, with those of the first checkpoint."""
    begun = [start.saved["record"] for start in starts if start is not None and start.saved]
    if not begun:
        return runs
    kept: dict[str, Any] = {}
    if runs[0].learning_rate is None:
        kept["learning_rate"] = begun[0]["config"]["learning_rate"]
    if not has_limit(runs[0]):
        kept["epochs"] = recorded_epochs(begun[0])
    return [replace(run, **kept) for run in runs]


def begin_seeds(run: Run, accelerator: Accelerator) -> None:
    """Write the outer run.yaml before the first of several seeds writes anything."""
    if count_seeds(run) > 1 and run.overwrite and accelerator.is_main_process:
        clear(Path(run.output_dir))
    write_run_of_seeds(run, accelerator)


def _begin_nothing(accelerator: Accelerator) -> None:
    pass


def count_seeds(run: Run) -> int:
    """Return the number of seeds; 1 for a recipe without that option."""
    return getattr(run, "seeds", 1)


def write_run_of_seeds(run: Run, accelerator: Accelerator) -> None:
    """Write the run.yaml that names the runs of several seeds."""
    if count_seeds(run) > 1 and accelerator.is_main_process:
        write_run_yaml(run, Path(run.output_dir), {"runs": [f"seed-{run.seed + n}" for n in range(count_seeds(run))]})
    accelerator.wait_for_everyone()


def summarize(run: Run, runs: Sequence[Run], accelerator: Accelerator) -> None:
    """Write evaluation.json with mean, standard deviation and count over the seeds; model/ is the first seed's."""
    if count_seeds(run) > 1 and accelerator.is_main_process:
        folder = Path(run.output_dir)
        files = {f"seed-{seed_run.seed}": Path(seed_run.output_dir) / EVALUATION for seed_run in runs}
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
        write_text(folder / EVALUATION, json.dumps(content, indent=2) + "\n")
        print(f"\n{len(runs)} seeds, mean (standard deviation):")
        for split, values in content["results"].items():
            texts = (f"{name} {value['mean']:.4f} ({value['std']:.4f})" for name, value in values.items())
            print(f"{split:>18}: {'  '.join(texts)}")
        print(f"Written: {folder}/evaluation.json, {folder}/model (of {first})")
    accelerator.wait_for_everyone()


__all__ = ["run_seeds"]
