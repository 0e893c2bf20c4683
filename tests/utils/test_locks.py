"""Test locks: one writer per folder, dead owners are replaced, and no file is left behind."""

import importlib
import json
import os
import platform

import psutil
import pytest
from bad_input import fails, snapshot

from scratch_gpt.utils import locks
from scratch_gpt.utils.locks import LOCK, STALE, Lock, check_held, hold


def owner(folder, **changes) -> dict:
    """Return the lock content of another live process on this machine."""
    parent = psutil.Process(os.getppid())
    return {**Lock(folder).owner, "pid": parent.pid, "started": parent.create_time(), **changes}


def write(folder, content: dict, age: float = 0) -> None:
    file = folder / LOCK
    file.write_text(json.dumps(content))
    os.utime(file, (file.stat().st_atime - age, file.stat().st_mtime - age))


def test_a_lock_can_be_held_several_times_and_leaves_no_file(tmp_path):
    folder = tmp_path / "a" / "b"
    with hold(folder), hold(folder / ".." / "b"):
        found = json.loads((folder / LOCK).read_text())
        assert (found["pid"], found["host"]) == (os.getpid(), platform.node()) and found["started"] and found["since"]
        hold(folder).release()
        assert (folder / LOCK).exists()
    assert not (tmp_path / "a").exists()
    with hold(folder):
        (folder / "kept").write_text("")
    assert [path.name for path in folder.iterdir()] == ["kept"]


@pytest.mark.parametrize(
    ("changes", "age", "is_free"),
    [
        ({}, 0, False),
        ({}, 10 * STALE, False),  # stopped for a long time, but alive
        ({"started": 1.0}, 0, True),  # another process has its id now
        ({"pid": 2**22 + 1}, 0, True),
        ({"pid": "x"}, 0, True),
        ({"host": "elsewhere"}, 0, False),
        ({"host": "elsewhere"}, STALE - 30, False),
        ({"host": "elsewhere"}, STALE + 30, True),
        ({"space": "pid:[1]", "pid": 2**22 + 1}, 0, False),  # a container with the same host name
        ({"space": "pid:[1]"}, STALE + 30, True),
    ],
)
def test_a_lock_is_taken_over_only_from_a_dead_process(changes, age, is_free, tmp_path):
    said = []
    write(tmp_path, owner(tmp_path, **changes), age)
    before = (tmp_path / LOCK).read_bytes()
    if is_free:
        with hold(tmp_path, said.append):
            assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
        assert len(said) == 1 and "this process takes over" in said[0] and not (tmp_path / LOCK).exists()
    else:
        with pytest.raises(ValueError, match=rf"is in use: process .*remove .*{LOCK}"):
            hold(tmp_path, said.append)
        assert not said and (tmp_path / LOCK).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [LOCK] * (not is_free)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_an_unreadable_lock_is_judged_by_its_age(content, tmp_path):
    (tmp_path / LOCK).write_text(content)
    with pytest.raises(ValueError, match="is in use"):
        hold(tmp_path)
    os.utime(tmp_path / LOCK, (0, 0))
    hold(tmp_path, lambda line: None).release()


def test_only_one_of_two_processes_takes_over_a_lock(tmp_path):
    dead = owner(tmp_path, started=1.0)
    write(tmp_path, owner(tmp_path))  # the other process was faster
    assert not locks._take_away(tmp_path / LOCK, dead)
    assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getppid()
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]


def test_a_lock_is_refreshed_and_reports_its_loss(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "BEAT", 0.01)
    with hold(tmp_path) as lock:
        os.utime(tmp_path / LOCK, (0, 0))
        while (tmp_path / LOCK).stat().st_mtime == 0:
            lock.ended.wait(0.01)
        check_held(tmp_path)
        write(tmp_path, owner(tmp_path))
        while not lock.lost:
            lock.ended.wait(0.01)
        with pytest.raises(OSError, match="taken over by another process"):
            check_held(tmp_path)
    assert (tmp_path / LOCK).exists()  # it belongs to the other process


def test_a_folder_that_cannot_be_written_is_a_one_line_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file/run cannot be written to"):
        hold(tmp_path / "file" / "run")


WRITERS = {
    "train_tokenizer": "--dataset {home}/a.txt --output-dir {home} --overwrite true",
    "evaluate": "{home} --dataset {home}/a.txt --output-dir {home}",
    "publish": "{home} --export gguf",
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_recipe_refuses_a_locked_folder_and_changes_nothing(name, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("scratch_gpt.utils.extras.require_extra", lambda extra, libraries: None)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    (tmp_path / "a.txt").write_text("The sun shines on the sea.")
    write(tmp_path, owner(tmp_path))
    before = snapshot(tmp_path)
    words = WRITERS[name].format(home=tmp_path).split()
    fails(
        words,
        "is in use: process .*Wait until it ends",
        capsys,
        importlib.import_module(f"scratch_gpt_training.{name}").main,
    )
    assert snapshot(tmp_path) == before
