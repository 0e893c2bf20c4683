"""Faults around a run folder, for chaos.py: foreign files, links, two launches, interrupted saves, hangs."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import crash
import psutil
import yaml

from scratch_gpt.runs.folder import ASIDE
from scratch_gpt.train.checkpoints import MANIFEST, STATE, _describe, _digest, list_checkpoints
from scratch_gpt.utils.locks import LOCK, STALE, Lock


class Trial(NamedTuple):
    """The run that every kind of fault is tried on."""

    words: list  # arguments of the recipe, with --resume and without its output_dir
    expected: dict  # outcome of a run without faults
    seconds: float  # duration of that run
    home: Path  # a folder to work in; its subfolder `undisturbed` is that run
    kills: int = 50

    @property
    def log(self) -> Path:
        """Return the file with the output of the runs."""
        return self.home / "log.txt"

    def matches_expected(self, arguments: list) -> bool:
        """Run to the end; return whether the outcome equals that of a run without faults."""
        folder = Path(arguments[arguments.index("--output-dir") + 1])
        return crash.finish(arguments, self.log) == 0 and not crash.differences(self.expected, crash.outcome(folder))

    def kill_after_step(self, name: str, step: int = 12, *more) -> tuple[Path, list]:
        """Kill a run after the checkpoint of a step; return its folder and the arguments that resume it."""
        folder = self.home / name
        shutil.rmtree(folder, ignore_errors=True)
        arguments = [*self.words, "--output-dir", folder, *more]
        crash.kill_when(arguments, self.log, lambda: (folder / "checkpoints" / f"step-{step}").exists())
        return folder, arguments

    def last_line(self) -> str:
        """Return the last line of the runs' output."""
        return self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1]


def row(recovered: Iterable[bool] = (), refused: Iterable[bool] = ()) -> dict:
    """Return a row of the table from whether each fault was handled as expected: recovered from, or refused."""
    recovered, refused = [*recovered], [*refused]
    tried = len(recovered) + len(refused)
    print(f"recovered {sum(recovered)} of {len(recovered)}, refused {sum(refused)} of {len(refused)}", flush=True)
    good = sum(recovered), sum(refused)
    return {"tried": tried, "recovered": good[0], "refused": good[1], "lost": tried - sum(good)}


def contents(folder: Path) -> dict[str, bytes | None]:
    """Return names and bytes of everything below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def without_resume(words: list) -> list:
    """Return the arguments of a run that starts from the beginning."""
    return [word for word in words if word not in ("--resume", "latest")]


# --- Other people's files --------------------------------------------------------------------------------------------

THEIRS = ("checkpoints/mine.pt", "model/my_code.py", "exports/thesis.pdf", "last/notes.txt", "tracking/diary.txt")
THEIRS += ("checkpoints/step-4-good/model.safetensors", "seed-1/thesis.txt", "published/own.txt", "notes.txt")


def write_foreign_file(folder: Path, name: str) -> None:
    """Write a user's own file."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(f"years of work on {name}")


def strangers_folders(trial: Trial) -> dict:
    """A folder that is not a run but has files named like a run's: refused and left unchanged"""
    found = []
    for n, name in enumerate((*THEIRS, "run.yaml", "checkpoints/step-2/manifest.json", "model/config.json")):
        for more in (["--overwrite", "true"], ["--resume"], []):
            folder = trial.home / f"theirs-{n}"
            write_foreign_file(folder, name)
            before = contents(folder)
            words = [*without_resume(trial.words), "--output-dir", folder, *more]
            found.append(crash.finish(words, trial.log) == 2 and contents(folder) == before)
    return row(refused=found)


def foreign_files(trial: Trial) -> dict:
    """A user's own files in a run folder: the run is resumed or replaced, and the files stay"""
    found = []
    for more in (trial.words, [*without_resume(trial.words), "--overwrite", "true"]):
        folder, _ = trial.kill_after_step("foreign")
        for name in THEIRS:
            write_foreign_file(folder, name)
        same = trial.matches_expected([*more, "--output-dir", folder])
        found += [same and (folder / name).read_text().endswith(name) for name in THEIRS]
    return row(recovered=found)


def replaced_runs(trial: Trial, count: int = 4) -> dict:
    """--overwrite, killed before the new run's first checkpoint: the old run is intact, the new one resumes"""
    found, folder = [], trial.home / "replaced"
    names = ["model/model.safetensors", "evaluation.json", "run.yaml", "metrics.jsonl"]
    for _ in range(count):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(trial.home / "undisturbed", folder)
        before = {name: (folder / name).read_bytes() for name in names}
        words = [*without_resume(trial.words), "--output-dir", folder]
        aside = folder / ASIDE / "run.yaml"
        crash.kill_when([*words, "--overwrite", "true"], trial.log, aside.exists)
        kept = all((folder / ASIDE / name).read_bytes() == content for name, content in before.items())
        kept = kept or any(folder.glob("checkpoints/step-*"))  # the new run saved before it was killed
        found.append(kept and trial.matches_expected([*words, "--resume"]) and not aside.exists())
    return row(recovered=found)


# --- Links -----------------------------------------------------------------------------------------------------------


def links(trial: Trial) -> dict:
    """Run folders that are symbolic links: resumed and replaced; the targets are not deleted"""
    found = []
    for name in ("checkpoints", "model", "checkpoints/step-12"):
        for more in (trial.words, [*without_resume(trial.words), "--overwrite", "true"]):
            folder, far = trial.kill_after_step("links")[0], trial.home / "far"
            shutil.rmtree(far, ignore_errors=True)
            (folder / name).mkdir(exist_ok=True)  # model/ may not exist yet
            (folder / name).rename(far)
            (folder / name).symlink_to(far)
            (far / "mine.txt").write_text("mine")
            same = trial.matches_expected([*more, "--output-dir", folder])
            found.append(same and (far / "mine.txt").read_text() == "mine")
    return row(recovered=found)


def read_from_itself(trial: Trial) -> dict:
    """--overwrite of a run that contains the input, also by a link or as an adapter's base: refused"""
    folder, found = trial.kill_after_step("own")[0], []
    (trial.home / "texts").mkdir(exist_ok=True)
    (trial.home / "texts" / "link.jsonl").symlink_to(folder / "metrics.jsonl")
    (trial.home / "adapter").mkdir(exist_ok=True)
    base = {"base_model_name_or_path": str(folder / "model")}
    (trial.home / "adapter" / "adapter_config.json").write_text(json.dumps(base))
    (folder / LOCK).unlink()  # lock of the killed run
    (folder / "model").mkdir(exist_ok=True)
    before = contents(folder)
    for more in (
        ["--dataset", folder / "metrics.jsonl"],
        ["--dataset", trial.home / "texts"],
        ["--dataset", trial.home / "texts" / "*.jsonl"],
        ["--dataset", trial.home / "story.txt", "--model", trial.home / "adapter"],
        ["--dataset", trial.home / "story.txt", "--tokenizer", folder / "model"],
    ):
        words = [*more, "--device", "cpu", "--output-dir", folder, "--overwrite", "true"]
        is_refused = crash.finish(words, trial.log) == 2 and "is inside --output-dir" in trial.last_line()
        found.append(is_refused and contents(folder) == before)
    return row(refused=found)


# --- Two launches ----------------------------------------------------------------------------------------------------


def second_launches(trial: Trial) -> dict:
    """A second launch in the folder of a live run: refused, and the first run is not disturbed"""
    refused, recovered = [], []
    for more in (["--resume"], ["--overwrite", "true"], []):
        folder = trial.home / "twice"
        shutil.rmtree(folder, ignore_errors=True)
        arguments = [*without_resume(trial.words), "--output-dir", folder]
        first = crash.start(arguments, trial.home / "first.txt")
        while not list_checkpoints(folder / "checkpoints"):
            time.sleep(0.002)
        os.kill(first.pid, signal.SIGSTOP)  # the first run must outlive the second launch
        refused.append(crash.finish([*arguments, *more], trial.log) == 2 and "is in use" in trial.last_line())
        os.kill(first.pid, signal.SIGCONT)
        first.join(120)
        recovered.append(first.exitcode == 0 and not crash.differences(trial.expected, crash.outcome(folder)))
    return row(recovered, refused)


def left_locks(trial: Trial) -> dict:
    """Locks of dead processes, other machines or no owner: taken over, or refused if possibly alive"""
    recovered, refused = [], []
    parent = psutil.Process(os.getppid())
    alive = {"pid": parent.pid, "started": parent.create_time()}
    for changes, age, is_free in (
        ({**alive}, 0, False),
        ({**alive}, 9 * STALE, False),
        ({**alive, "started": 1.0}, 0, True),
        ({**alive, "host": "elsewhere"}, 0, False),
        ({**alive, "host": "elsewhere"}, 2 * STALE, True),
        (None, 0, False),
        (None, 2 * STALE, True),
    ):
        folder, arguments = trial.kill_after_step("locks")
        lock = folder / LOCK
        lock.write_text("" if changes is None else json.dumps({**Lock(folder).owner, **changes}))
        os.utime(lock, (time.time() - age, time.time() - age))
        if is_free:
            recovered.append(trial.matches_expected(arguments) and not lock.exists())
        else:
            refused.append(crash.finish(arguments, trial.log) == 2 and str(lock) in trial.last_line())
    return row(recovered, refused)


# --- Saves and resumes -----------------------------------------------------------------------------------------------


def half_done_saves(trial: Trial) -> dict:
    """With --keep 1, a kill between the two renames of a save: the checkpoint is found, the result equal"""
    found = []
    for state in (".writing-", ".old-"):
        for step in (12, 30):
            folder, arguments = trial.kill_after_step("half", step, "--keep", 1)
            *others, newest = list_checkpoints(folder / "checkpoints")
            for path in others:
                shutil.rmtree(path)
            newest.rename(newest.with_name(state + newest.name))
            found.append(trial.matches_expected(arguments))
    return row(recovered=found)


def resumes_of_resumes(trial: Trial, count: int = 3) -> dict:
    """Killed and resumed four times in a row: the result is equal"""
    found = []
    for n in range(count):
        folder, arguments = trial.kill_after_step("again", 4)
        for step in (10, 18 + 2 * n, 30):
            there = folder / "checkpoints" / f"step-{step}"
            crash.kill_when(arguments, trial.log, there.exists)
        found.append(trial.matches_expected(arguments))
    return row(recovered=found)


def epoch_borders(trial: Trial) -> dict:
    """Resumed at the end of an epoch, one step before it and one step after it"""
    notes = (trial.home / "undisturbed" / "run.yaml").read_text().splitlines()
    facts = yaml.safe_load("\n".join(line[2:] for line in notes if line.startswith("# ")))
    border, found = facts["steps"] // 2, []
    for step in (border - 1, border, border + 1):
        folder, arguments = trial.kill_after_step("border", step, "--checkpoint-every", 1, "--keep", 99)
        for path in list_checkpoints(folder / "checkpoints"):
            if int(path.name.removeprefix("step-")) > step:
                shutil.rmtree(path)
        found.append(trial.matches_expected(arguments))
    return row(recovered=found)


def cut_metrics(trial: Trial) -> dict:
    """metrics.jsonl with a last line that is truncated or invalid: resumed"""
    found = []
    for end in (b'{"step": 12, "tok', b'{"a": {"b": 1}', b"\xc3", b"[1]\n", b"\x00" * 50):
        folder, arguments = trial.kill_after_step("metrics")
        with (folder / "metrics.jsonl").open("ab") as file:
            file.write(end)
        found.append(trial.matches_expected(arguments))
    return row(recovered=found)


def hostile_states(trial: Trial) -> dict:
    """A checkpoint with forbidden values in its JSON and a matching manifest: refused"""
    changes: list[Callable[[dict], object]] = [
        lambda state: state["progress"].update(__class__="x"),
        lambda state: state["progress"].update(step="12"),
        lambda state: state["metrics"].update(path="/tmp/elsewhere"),
        lambda state: state["share"].update(root=1),
        lambda state: state.update(optimizer=[{"params": []}]),
        lambda state: state.pop("record"),
        lambda state: state.update(progress=[]),
    ]
    found = []
    for change in changes:
        folder, arguments = trial.kill_after_step("hostile")
        path = list_checkpoints(folder / "checkpoints")[-1]
        state = json.loads((path / STATE).read_text())
        change(state)
        (path / STATE).write_text(json.dumps(state))
        manifest = json.loads((path / MANIFEST).read_text())
        del manifest["manifest_sha256"]
        manifest["files"][STATE] = _describe(path / STATE)
        manifest["manifest_sha256"] = _digest(manifest)
        (path / MANIFEST).write_text(json.dumps(manifest))
        found.append(crash.finish(arguments, trial.log) == 2 and trial.last_line().startswith("error: "))
    return row(refused=found)


# --- Hanging and killed processes ------------------------------------------------------------------------------------


def data_workers(trial: Trial) -> dict:
    """A data worker killed or frozen: a one-line error, and the run can be resumed"""
    found = []
    for how in (signal.SIGKILL, signal.SIGSTOP):
        folder = trial.home / "workers"
        shutil.rmtree(folder, ignore_errors=True)
        arguments = [*trial.words, "--output-dir", folder, "--workers", 1]
        process = crash.start([*arguments, "--hang-timeout", 0.25], trial.log)
        while process.is_alive() and not list_checkpoints(folder / "checkpoints"):
            time.sleep(0.002)
        children: list[psutil.Process] = []
        while process.is_alive() and not children:
            children = psutil.Process(process.pid).children()
        for child in children:
            child.send_signal(how)
        process.join(120)
        one_line = process.exitcode == 2 and "The last good checkpoint is step-" in trial.last_line()
        for child in children:
            if child.is_running():
                child.kill()
        found.append(one_line and trial.matches_expected(arguments))
    return row(recovered=found)


KINDS = {
    "folders of others": strangers_folders,
    "foreign files": foreign_files,
    "runs replaced": replaced_runs,
    "links": links,
    "read from itself": read_from_itself,
    "second launches": second_launches,
    "locks left": left_locks,
    "half-done saves": half_done_saves,
    "resumes of resumes": resumes_of_resumes,
    "epoch borders": epoch_borders,
    "metrics cut": cut_metrics,
    "hostile states": hostile_states,
    "data workers": data_workers,
}
