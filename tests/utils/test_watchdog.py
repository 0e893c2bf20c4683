"""Test the watchdog: a hanging run ends with its stacks in a file; one that progresses or is suspended continues."""

import faulthandler
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from places import REPO

from scratch_gpt.utils import watchdog
from scratch_gpt.utils.watchdog import beat, watch


def test_a_held_lock_is_noticed_and_its_stack_is_written(tmp_path, capsys):
    ended, held = threading.Event(), threading.Lock()
    codes = []

    def end(code: int) -> None:
        codes.append(code)
        ended.set()
        held.release()

    held.acquire()
    with watch(0.2, tmp_path / "stacks-0.txt", lambda: "The last good checkpoint is step-4.", end):
        held.acquire()
    assert ended.wait(5) and codes == [2]
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: no progress for 0.2 seconds.") and line.endswith(" checkpoint is step-4.")
    assert "test_a_held_lock" in (tmp_path / "stacks-0.txt").read_text()


def test_the_process_ends_even_if_its_stacks_cannot_be_written(tmp_path, capsys):
    ended = threading.Event()
    with watch(0.1, tmp_path / "no" / "where", lambda: "Bye.", lambda code: ended.set()):
        assert ended.wait(5)
    assert "where could not be written (No such file or directory). Bye." in capsys.readouterr().err


def test_progress_or_a_limit_of_zero_never_ends_the_process(tmp_path):
    codes = []
    with watch(0.2, tmp_path / "a", str, codes.append):
        for _ in range(40):
            beat()
            time.sleep(0.02)
    with watch(0, tmp_path / "a", str, codes.append):
        time.sleep(0.1)
    assert not codes and not (tmp_path / "a").exists()


def test_suspended_time_does_not_count(tmp_path, monkeypatch):
    codes, clock = [], iter(range(0, 10**9, 10**5))  # a day between two checks
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: next(clock))
    with watch(1.0, tmp_path / "a", str, codes.append):
        time.sleep(0.4)  # one check
    assert not codes


def test_a_suspended_process_continues_and_a_hanging_one_ends(tmp_path):
    code = (
        "import sys, time, pathlib; from scratch_gpt.utils.watchdog import watch\n"
        "with watch(1.0, pathlib.Path(sys.argv[1]), lambda: 'Bye.'):\n"
        "    print('in', flush=True); sys.stdin.readline(); print('out', flush=True); time.sleep(60)\n"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "stacks")], env=environment, **pipes)
    assert process.stdout.readline() == "in\n"
    process.send_signal(signal.SIGSTOP)
    time.sleep(2.5)
    process.send_signal(signal.SIGCONT)
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline() == "out\n"
    assert process.wait(30) == 2 and "no progress for 1 seconds" in process.stderr.read()
    assert "line 3 in <module>" in (tmp_path / "stacks").read_text()


@pytest.mark.skipif(not hasattr(faulthandler, "register"), reason="Windows has no signal for writing stacks")
def test_code_that_holds_the_global_lock_is_ended_and_suspended_time_does_not_count(tmp_path):
    code = (
        "import re, sys, pathlib; from scratch_gpt.utils.watchdog import watch\n"
        "def backtrack(): re.match('(a+)+$', 'a' * 60 + 'b')\n"
        "with watch(1.0, pathlib.Path(sys.argv[1]), lambda: 'The last good checkpoint is step-4.'):\n"
        "    print('in', flush=True); backtrack()\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "stacks")], env=environment, **pipes)
    assert process.stdout.readline() == "in\n"
    process.send_signal(signal.SIGSTOP)
    time.sleep(2.5)
    assert process.poll() is None and not (tmp_path / "stacks").exists()
    process.send_signal(signal.SIGCONT)
    assert process.wait(30) == -signal.SIGKILL
    assert process.stderr.read().strip() == (
        f"error: no progress for 1 seconds. {tmp_path / 'stacks'} has the stacks of all threads. "
        "The last good checkpoint is step-4."
    )
    assert "in backtrack" in (tmp_path / "stacks").read_text()


def test_a_finished_watch_leaves_nothing_behind():
    children = psutil.Process().children()
    with watch(60, Path("unused"), str):
        assert len(psutil.Process().children()) == len(children) + hasattr(faulthandler, "register")
    assert psutil.Process().children() == children
