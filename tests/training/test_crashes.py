"""Test crashes: killed runs, restarts and launches of several processes lose nothing."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import crash
import pytest
from places import REPO
from stories import story_file
from tiny_run import run_recipe

from scratch_gpt.runs.folder import read_metrics
from scratch_gpt.train.checkpoints import list_checkpoints
from scratch_gpt_training import pretrain


STORY = "".join(
    f"On day {n} the old sailor {('walked', 'ran', 'swam')[n % 3]} to the shiny sea, and the sun shone on "
    f"{n * 7 % 90} quiet boats.\n"
    for n in range(400)
)


story = story_file(STORY)


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return tmp_path_factory.mktemp("logs") / "log.txt"


@pytest.fixture(scope="module")
def undisturbed(story, log, tmp_path_factory):
    """Return a run that is not killed, and its arguments; they include --resume, as in a restarted job."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    words = ["--dataset", story, *crash.RUN, "--resume", "latest"]
    assert crash.finish([*words, "--output-dir", folder], log) == 0, log.read_text()
    return crash.outcome(folder), words


def newest(folder: Path) -> int:
    """Return the step of the newest checkpoint, or 0."""
    found = list_checkpoints(folder / "checkpoints")
    return int(found[-1].name.removeprefix("step-")) if found else 0


def test_a_run_killed_at_three_random_moments_ends_bit_for_bit_equal(undisturbed, log, tmp_path):
    expected, words = undisturbed
    words = [*words, "--output-dir", tmp_path / "run"]
    draw = random.Random(os.environ.get("CRASH_SEED"))
    died = []
    reached_step = 0
    for _ in range(3):  # one after another, each later than the one before
        reached_step += draw.randrange(2, 12)
        goal = reached_step
        died.append(crash.kill_when(words, log, lambda goal=goal: newest(tmp_path / "run") >= goal))
    assert died == [-signal.SIGKILL] * 3
    assert crash.finish(words, log) == 0, log.read_text()[-2000:]
    assert crash.differences(expected, crash.outcome(tmp_path / "run")) == []


def test_a_run_killed_during_a_save_resumes_to_the_same_result(undisturbed, log, tmp_path):
    expected, words = undisturbed
    folder = tmp_path / "run" / "checkpoints"
    words = [*words, "--output-dir", tmp_path / "run"]
    crash.kill_when(words, log, lambda: list(folder.glob(".writing-step-1*")))
    assert crash.finish(words, log) == 0, log.read_text()[-2000:]
    assert crash.differences(expected, crash.outcome(tmp_path / "run")) == []
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_saves_the_run_and_prints_how_to_resume(number, undisturbed, tmp_path):
    expected, words = undisturbed
    folder, log = tmp_path / "run", tmp_path / "log.txt"
    words = [*words, "--output-dir", folder]
    code = crash.kill_when(words, log, lambda: list_checkpoints(folder / "checkpoints"), how=number)
    line = log.read_text().strip().splitlines()[-1]
    found = re.fullmatch(
        rf"Stopped by {'Ctrl-C' if number == signal.SIGINT else 'SIGTERM'} after step (\d+)\. "
        r"The last good checkpoint is step-\1\. Resume with the same command, or only with "
        r"--output-dir (\S+) --resume latest",
        line,
    )
    assert code == 128 + number and found, line
    assert "Traceback" not in log.read_text()
    assert crash.finish(["--output-dir", folder, "--resume"], log) == 0, log.read_text()[-2000:]
    assert crash.differences(expected, crash.outcome(folder)) == []


# --- Several processes -----------------------------------------------------------------------------------------------

SHARED = ["--max-steps", "12", "--checkpoint-every", "4", "--log-every", "1", "--mixed-precision", "no"]
ALONE = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(REPO / "tests")}


def launch(command: list, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", *map(str, command)]
    environment = {**os.environ, **ALONE, **environment}
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)


@pytest.fixture(scope="module")
def two_processes(story, tmp_path_factory):
    """Run a launch of two processes (gloo) without faults."""
    folder = tmp_path_factory.mktemp("two") / "run"
    words = ["--dataset", story, *crash.RUN, *SHARED, "--dropout", "0", "--expect-processes", "2"]
    config = REPO / "training" / "configs" / "accelerate" / "cpu_2.yaml"
    command = ["accelerate.commands.launch", "--config_file", config, REPO / "training" / "pretrain.py"]
    done = launch([*command, *words, "--output-dir", folder])
    assert done.returncode == 0, done.stderr[-2000:]
    assert "2 processes" in done.stdout and "# processes: 2" in (folder / "run.yaml").read_text()
    assert done.stdout.count("Written:") == 1  # only the main process prints
    return folder, words


def run_alone(*words) -> None:
    run_recipe(pretrain, *words)


def assert_close(one: Path, other: Path) -> None:
    one, other = (read_metrics(folder / "metrics.jsonl") for folder in (one, other))
    assert [line["step"] for line in one] == [line["step"] for line in other]
    for a, b in zip(one, other, strict=True):
        assert a["tokens"] == b["tokens"]
        for name in {"loss", "eval_loss", "grad_norm"} & set(a):
            assert a[name] == pytest.approx(b[name], abs=5e-4), (a["step"], name)


def test_two_processes_train_like_one(two_processes, story, tmp_path):
    words = ["--dataset", story, *crash.RUN, *SHARED, "--dropout", "0", "--accumulation-steps", "4"]
    run_alone(*words, "--output-dir", tmp_path / "one")
    assert_close(tmp_path / "one", two_processes[0])


def test_a_worker_killed_under_torchrun_is_restarted_and_the_run_ends_bit_for_bit_the_same(two_processes, tmp_path):
    folder, words = two_processes
    command = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--max_restarts", "3", "--"]
    command += [
        REPO / "tests" / "helpers" / "crash_worker.py",
        *words,
        "--resume",
        "latest",
        "--output-dir",
        tmp_path / "run",
    ]
    # Without a new store, a restarted group finds the addresses of the old group, and is refused or hangs.
    own_store = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    done = launch(command, CRASH_AT=str(tmp_path / "run" / "checkpoints" / "step-8"), **own_store)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "No checkpoint in" in done.stdout and "Resuming from step-8." in done.stdout
    assert crash.differences(crash.outcome(folder), crash.outcome(tmp_path / "run")) == []


def test_a_run_of_two_processes_resumes_on_one_with_its_global_batch(two_processes, tmp_path, capsys):
    folder, words = two_processes
    shutil.copytree(folder, tmp_path / "run")
    for name in ("evaluation.json", "checkpoints/step-12"):
        path = tmp_path / "run" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    words = [*words[: words.index("--expect-processes")], "--output-dir", tmp_path / "run", "--resume", "latest"]
    run_alone(*words)
    said = capsys.readouterr().out
    assert "environment.processes (2 -> 1)" in said and "12 steps, 16 rows each" in said
    assert_close(tmp_path / "run", folder)
    state = json.loads((tmp_path / "run" / "checkpoints" / "step-12" / "state.json").read_text())
    assert state["share"] == {"batch_size": 4, "accumulation_steps": 4, "processes": 1}


def test_a_sharded_model_is_saved_complete_and_resumes_sharded_or_not(tmp_path):
    """Shard with FSDP2 over two processes (Accelerate offers it on GPUs only) and compare bit for bit."""
    command = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--max_restarts", "3", "--"]
    done = launch([*command, REPO / "tests" / "helpers" / "sharded_worker.py", tmp_path])
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["sharded", "whole"]
