"""Test the run folder: recognized by its files, written by one process, and foreign files in it are never lost."""

import dataclasses
import errno
import json
import os
import shutil
from functools import partial
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState, PartialState
from bad_input import fails, snapshot
from stories import story_file
from tiny_run import run_recipe

from scratch_gpt.hub.staging import files_of, left_behind, stage
from scratch_gpt.runs import folder, record
from scratch_gpt.runs import folder as folders
from scratch_gpt.runs.folder import ASIDE, is_run, read_metrics, replace_folder, run_files, set_aside
from scratch_gpt.runs.record import read_record, write_run
from scratch_gpt.train import checkpoint_writer as saving
from scratch_gpt.train import checkpoints, metrics_log
from scratch_gpt.train.checkpoints import find_checkpoint, list_checkpoints
from scratch_gpt.utils import files as whole_files
from scratch_gpt.utils.files import remove
from scratch_gpt.utils.locks import LOCK, Lock
from scratch_gpt_training import prepare, pretrain
from scratch_gpt_training.support import command_line
from scratch_gpt_training.support.run import results, runner
from scratch_gpt_training.support.run.output_dir import is_filled


STORY = "".join(f"On day {n} the old sailor walked to the shiny sea, {n * 7 % 90} boats.\n" for n in range(300))
SMALL = ["--preset", "tiny", "--vocab-size", "280", "--max-length", "16", "--batch-size", "2", "--device", "cpu"]
SMALL += ["--config-overrides", "hidden_size=16,num_hidden_layers=1", "--max-steps", "4", "--checkpoint-every", "2"]
SMALL += ["--eval-batches", "1", "--eval-every", "2"]
WILD = ["--learning-rate", "1e30", "--max-grad-norm", "0", "--warmup-steps", "0"]  # diverges before the first save


run = partial(run_recipe, pretrain)
story = story_file(STORY)


@pytest.fixture(scope="module")
def original_run(story, tmp_path_factory):
    """Make a run that tests copy."""
    folder = tmp_path_factory.mktemp("made") / "run"
    run("--dataset", story, *SMALL, "--output-dir", folder)
    return folder


@pytest.fixture
def trained(original_run, tmp_path):
    return shutil.copytree(original_run, tmp_path / "run")


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- Recognizing a run folder ----------------------------------------------------------------------------------------


def test_a_run_folder_is_recognized_by_its_files(trained, tmp_path):
    assert is_run(trained)
    fields = dataclasses.asdict(pretrain.PretrainRun())
    write_run(tmp_path / "old", fields, {"steps": 3})
    (tmp_path / "theirs").mkdir()
    for text in (
        "seed: 0\n",
        "seed: 0\n# steps: 3\n",
        "output_dir: a\ndataset: b\nseed: 1\n",
        "- 1\n",
        "a: [",
        "\xff",
    ):
        (tmp_path / "theirs" / "run.yaml").write_text(text, encoding="latin-1")
        assert is_run(tmp_path / "old") and not is_run(tmp_path / "theirs"), text
    (trained / "run.yaml").unlink()
    assert is_run(trained)  # recognized by its checkpoints
    shutil.rmtree(trained / "checkpoints")
    (trained / "checkpoints" / "step-3").mkdir(parents=True)
    (trained / "checkpoints" / "step-3" / "manifest.json").write_text("[]")
    assert not is_run(trained)


def test_a_foreign_folder_is_refused_with_any_option(story, tmp_path, capsys):
    theirs = tmp_path / "theirs"
    for name in ("checkpoints/mine.pt", "model/my_code.py", "exports/thesis.pdf", "model/config.json", "loss.png"):
        (theirs / name).parent.mkdir(parents=True, exist_ok=True)
        (theirs / name).write_text("years of work")
    before = files(theirs)
    for words in (["--overwrite", "true"], ["--resume"], []):
        fails(["--dataset", story, "--output-dir", theirs, *words], "is not a run folder", capsys)
        assert files(theirs) == before


def test_only_files_written_by_a_run_are_removed(trained, story):
    foreign = ["checkpoints/mine.pt", "model/my_code.py", "exports/thesis.pdf", "checkpoints/step-2-good/state.json"]
    foreign += ["notes.txt", "model/deep/er.txt", "seed-7/diary.txt", "last/a.txt", "checkpoints/step-4/why.txt"]
    for name in foreign:
        (trained / name).parent.mkdir(parents=True, exist_ok=True)
        (trained / name).write_text(name)
    (trained / "model" / "link").symlink_to(trained / "notes.txt")
    words = ["--dataset", story, *SMALL, "--output-dir", trained, "--keep", 1]
    for more in (["--overwrite", "true"], ["--resume", "--max-steps", 8]):
        run(*words, *more)
        for name in foreign:
            step = "checkpoints/.old-step-4/why.txt"  # of a deleted checkpoint
            assert (trained / name).exists() or (name.endswith("why.txt") and (trained / step).exists()), name
        assert (trained / "model" / "link").is_symlink()
    assert not (trained / ASIDE).exists() and (trained / "model" / "config.json").exists()


def test_the_old_run_is_kept_until_the_new_one_has_a_checkpoint(trained, story, capsys):
    (trained / "notes.txt").write_text("mine")
    before = {path.relative_to(trained).as_posix(): path.read_bytes() for path in run_files(trained)}
    words = ["--dataset", story, *SMALL, "--output-dir", trained, "--overwrite", "true"]
    for _ in range(2):  # the second launch removes the failed attempt, not the run
        with pytest.raises(SystemExit):
            run(*words, *WILD)
        assert files(trained / ASIDE) == before
        said = capsys.readouterr()
        assert "stays in" in said.out and f"The previous run is in {trained / ASIDE}" in said.err
    fails(["--dataset", story, "--output-dir", trained], "already holds a run", capsys)
    run("--dataset", story, *SMALL, "--output-dir", trained, "--resume", "--learning-rate", "1e-3")
    assert not (trained / ASIDE).exists() and (trained / "notes.txt").read_text() == "mine"


def test_a_run_that_cannot_be_moved_aside_is_not_changed(trained, monkeypatch):
    before, replace, calls = files(trained), os.replace, []

    def fail_later(*names):
        calls.append(names)
        if len(calls) == 5:
            raise OSError(errno.EXDEV, "another disk")
        replace(*names)

    monkeypatch.setattr(folders.os, "replace", fail_later)
    with pytest.raises(OSError, match="another disk"):
        set_aside(trained)
    assert files(trained) == before and not (trained / ASIDE).exists()


def test_a_kill_while_a_run_is_moved_aside_leaves_no_empty_checkpoint(trained, monkeypatch):
    before, replace = files(trained), os.replace

    def die_at_the_last(source, target):
        if Path(target).name == "run.yaml":
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(folders.os, "replace", die_at_the_last)
    with pytest.raises(KeyboardInterrupt):
        set_aside(trained)
    monkeypatch.undo()
    assert is_run(trained) and find_checkpoint(trained / "checkpoints") == (None, [])
    assert set_aside(trained) and files(trained / ASIDE) == before and is_run(trained)
    assert [path.name for path in trained.iterdir()] == [ASIDE]


# --- Links -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["checkpoints", "model"])
def test_a_run_whose_folders_are_links_is_replaced_resumed_and_saved(name, trained, story, tmp_path):
    shutil.move(trained / name, tmp_path / "far")
    (trained / name).symlink_to(tmp_path / "far")
    before = files(tmp_path / "far")
    words = ["--dataset", story, *SMALL, "--output-dir", trained]
    run(*words, "--resume", "--max-steps", 6)  # model/ is replaced twice
    run(*words, "--resume", "--max-steps", 8)
    far = files(tmp_path / "far")
    assert far == before if name == "model" else "step-8/model.safetensors" in far
    if name == "model":
        remove(trained / name)
        (trained / name).symlink_to(tmp_path / "far")
    run(*words, "--overwrite", "true")
    assert files(tmp_path / "far") == far and not (trained / name).is_symlink()
    assert [path.name for path in list_checkpoints(trained / "checkpoints")] == ["step-2", "step-4"]


def test_the_inputs_of_a_run_are_not_removed(trained, story, tmp_path, capsys):
    words = ["--output-dir", trained, "--overwrite", "true", "--device", "cpu"]
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    config = {"base_model_name_or_path": str(trained / "model"), "peft_type": "LORA"}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    before = snapshot(trained)
    fails(["--dataset", story, "--model", adapter, *words], "remove the base of the model .*run/model", capsys)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.jsonl").symlink_to(trained / "metrics.jsonl")
    fails(["--dataset", tmp_path / "texts", *words], "would remove the dataset", capsys)
    fails(["--dataset", tmp_path / "texts" / "*.jsonl", *words], "would remove the dataset", capsys)
    (trained / "model").rename(tmp_path / "far")
    (trained / "model").symlink_to(tmp_path / "far")
    fails(["--dataset", story, "--model", trained / "model", *words], "would remove the model", capsys)
    (trained / "model").unlink()
    (tmp_path / "far").rename(trained / "model")
    assert snapshot(trained) == before


# --- Interrupted saves -----------------------------------------------------------------------------------------------


def test_a_kill_between_the_two_renames_loses_neither_folder_nor_foreign_files(tmp_path, monkeypatch):
    for name, text in (("model", "old"), (".writing-model", "new")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(text)
    (tmp_path / "model" / "mine.txt").write_text("mine")
    replace = os.replace

    def die_at_the_second(source, target):
        if Path(target).name == "model":
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(checkpoints.os, "replace", die_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        replace_folder(tmp_path / ".writing-model", tmp_path / "model")
    monkeypatch.undo()
    assert folder.find_folder(tmp_path / "model").name == ".old-model"
    remove(tmp_path / ".writing-model")
    (tmp_path / ".writing-model").mkdir()
    (tmp_path / ".writing-model" / "config.json").write_text("newer")
    replace_folder(tmp_path / ".writing-model", tmp_path / "model")
    assert files(tmp_path) == {"model/config.json": b"newer", "model/mine.txt": b"mine"}


@pytest.mark.parametrize("prefix", [".writing-", ".old-"])
def test_the_only_checkpoint_is_found_under_the_temporary_name_of_a_killed_save(prefix, trained, story, capsys):
    shutil.rmtree(trained / "checkpoints" / "step-2")
    (trained / "checkpoints" / "step-4").rename(trained / "checkpoints" / f"{prefix}step-4")
    path, said = find_checkpoint(trained / "checkpoints")
    assert path.name == f"{prefix}step-4" and "is intact and used as step-4" in said[0]
    run("--dataset", story, *SMALL, "--output-dir", trained, "--resume", "--max-steps", 6, "--keep", 1)
    assert "Resuming from step-4." in capsys.readouterr().out
    assert [path.name for path in (trained / "checkpoints").iterdir()] == ["step-6"]


def test_a_complete_checkpoint_is_not_written_again(trained, story, monkeypatch):
    (trained / "evaluation.json").unlink()  # killed at the very end
    before = {path: path.stat().st_ino for path in (trained / "checkpoints" / "step-4").iterdir()}
    run("--dataset", story, *SMALL, "--output-dir", trained, "--resume", "--keep", 1)
    assert {path: path.stat().st_ino for path in (trained / "checkpoints" / "step-4").iterdir()} == before
    assert [path.name for path in list_checkpoints(trained / "checkpoints")] == ["step-4"]  # others are pruned
    assert (trained / "evaluation.json").exists()


def test_a_truncated_metrics_file_blocks_neither_resume_nor_record(trained, story):
    for cut in (b'{"step": 4, "tokens": {"a": 1}', b'{"step": 4, "sample": "\xc3', b"[3]\n", b'"a"', b"\xff\n"):
        with (trained / "metrics.jsonl").open("ab") as file:
            file.write(cut + (b"\n" if cut.endswith(b'"') else b""))
    assert {line["step"] for line in read_record(trained).metrics} <= {0, 2, 4}
    run("--dataset", story, *SMALL, "--output-dir", trained, "--resume", "--max-steps", 6)
    assert [line["step"] for line in read_metrics(trained / "metrics.jsonl")][-1] == 6
    assert b"\xff" not in (trained / "metrics.jsonl").read_bytes()


# --- The best model and abandoned continuations ----------------------------------------------------------------------


def test_the_model_records_its_step_and_never_comes_from_an_abandoned_continuation(story, tmp_path, capsys):
    folder = tmp_path / "run"
    words = ["--dataset", story, *SMALL, "--output-dir", folder, "--keep-best", "true", "--test-fraction", 0.1]
    run(*words, "--max-steps", 8, "--keep", 9, "--learning-rate", 3e-3, "--checkpoint-every", 2)
    assert json.loads((folder / "model" / "step.json").read_text()) == {"step": 8}
    (folder / "evaluation.json").unlink()
    for step in (6, 8):  # killed after the best of step 8 was in model/, and resumed from step 4
        shutil.rmtree(folder / "checkpoints" / f"step-{step}")
    capsys.readouterr()
    other = ["--allow-changed", "true", "--learning-rate", 1.0, "--warmup-steps", 0, "--max-steps", 8]
    run(*words, *other, "--resume")
    assert "The best step so far, 4, is not in" in capsys.readouterr().out
    protocol = json.loads((folder / "evaluation.json").read_text())["protocol"]
    assert json.loads((folder / "model" / "step.json").read_text())["step"] == protocol["step"]


# --- Resuming without other options ----------------------------------------------------------------------------------


def parsed(*words):
    return command_line.parse(pretrain.PretrainRun, [str(word) for word in words])


def test_resume_without_other_options_reads_the_fields_of_the_run(trained, story, tmp_path, capsys):
    own = parsed("--output-dir", trained, "--resume")
    assert own.resume == "latest" and own.dataset == story and own.max_steps == 4 and own.output_dir == str(trained)
    (tmp_path / "c.yaml").write_text("max_steps: 5\nlog_every: 7\n")
    mixed = parsed("--output-dir", trained, "--resume", "latest", "--config", tmp_path / "c.yaml", "--log-every", 9)
    assert (mixed.max_steps, mixed.log_every, mixed.batch_size) == (5, 9, 2)
    text = (trained / "run.yaml").read_text()
    changes = "expect_processes: 9\noverwrite: true\nplan: true\nallow_changed: true\noutput_dir: /no/where\ngone: 1\n"
    (trained / "run.yaml").write_text(text.replace("# steps", f"{changes}# steps", 1))
    launch = parsed("--resume=latest", "--output-dir", trained)
    assert launch.expect_processes is None and launch.output_dir == str(trained)
    assert not (launch.overwrite or launch.plan or launch.allow_changed)
    (trained / "run.yaml").write_text(text)
    assert parsed("--output-dir", trained).batch_size == 8  # without --resume nothing is read
    run("--output-dir", trained, "--resume", "--max-steps", 6)
    assert "Resuming from step-4" in capsys.readouterr().out
    assert list_checkpoints(trained / "checkpoints")[-1].name == "step-6"


# --- One writer ------------------------------------------------------------------------------------------------------


def test_a_folder_in_use_is_refused_in_one_line_and_a_dead_runs_folder_is_taken_over(trained, story, tmp_path, capsys):
    from scratch_gpt.utils.locks import LOCK, Lock

    owner = Lock(trained).owner | {
        "pid": os.getppid(),
        "started": __import__("psutil").Process(os.getppid()).create_time(),
    }
    (trained / LOCK).write_text(json.dumps(owner))
    before = snapshot(trained)
    words = ["--dataset", story, *SMALL, "--output-dir", trained]
    for more in ([], ["--overwrite", "true"], ["--resume"]):
        fails([*words, *more], rf"is in use: process {os.getppid()} on .*remove .*{LOCK}", capsys)
    assert snapshot(trained) == before
    (trained / LOCK).write_text(json.dumps(owner | {"started": 1.0}))
    run(*words, "--resume", "--max-steps", 5)
    assert "this process takes over" in capsys.readouterr().out and not (trained / LOCK).exists()
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / LOCK).write_text(json.dumps(owner))
    fails(["--dataset", story, "--output-dir", tmp_path / "p"], "is in use", capsys, prepare.main)


def test_a_run_in_use_is_not_staged_and_a_lock_is_never_published(trained, capsys):
    owner = Lock(trained).owner | {"host": "elsewhere"}
    (trained / LOCK).write_text(json.dumps(owner))
    with pytest.raises(ValueError, match="is in use: .* on elsewhere .*last active 0 s ago"):
        stage(trained, repo="user/name")
    (trained / LOCK).unlink()
    out = stage(trained, repo="user/name", say=lambda line: None)
    assert not {LOCK, "step.json"} & {*files_of(out), *left_behind(trained)}


# --- Errors name the last checkpoint ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["run.yaml", "manifest.json", "metrics.jsonl", "evaluation.json"])
def test_a_full_disk_at_any_file_is_a_one_line_error(name, trained, story, monkeypatch, capsys):
    def full(file, text):
        if file.name == name:
            raise OSError(errno.ENOSPC, "No space left on device", str(file))
        whole_files.write_text(file, text)

    for module in (runner, results, record, metrics_log):
        monkeypatch.setattr(module, "write_text", full)
    words = ["--dataset", story, *SMALL, "--output-dir", trained, "--resume", "--max-steps", 6]
    AcceleratorState._reset_state()
    PartialState._reset_state()
    step = "step-6" if name == "evaluation.json" else "step-4"
    fails(words, f"{name}: No space left on device. The last good checkpoint is {step}. .*--resume latest", capsys)


def test_an_error_in_the_background_writer_is_a_one_line_error(trained, story, monkeypatch, capsys):
    def broken(*_):
        raise KeyError("tensor")

    monkeypatch.setattr(saving, "write_checkpoint", broken)
    words = ["--dataset", story, *SMALL, "--output-dir", trained, "--resume", "--max-steps", 8, "--async-save", "true"]
    AcceleratorState._reset_state()
    PartialState._reset_state()
    fails(words, r"could not be written \(KeyError\('tensor'\)\). The last good checkpoint is step-4", capsys)


class Rows:
    """Rows that end the data worker that reads them."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, k):
        import torch

        if torch.utils.data.get_worker_info() is not None:
            os._exit(1)
        return self.rows[k]


def test_a_dead_data_worker_is_a_one_line_error(trained, story, capsys):
    def with_mortal_rows(run):
        task = pretrain.build(run)
        task.rows["train"] = Rows(task.rows["train"])
        return task

    AcceleratorState._reset_state()
    PartialState._reset_state()
    words = ["--dataset", story, *SMALL, "--output-dir", trained, "--resume", "--max-steps", 8, "--workers", 1]
    main = partial(pretrain.main, build=with_mortal_rows)
    fails(words, "A process that prepares batches has ended .*The last good checkpoint is step-4", capsys, main)


def test_metrics_survive_a_broken_last_line(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text(json.dumps({"step": 1}) + "\n" + '{"step": 2, "lo')
    assert read_metrics(file) == [{"step": 1}]


def test_locked_folders_of_parts_are_not_content(tmp_path):
    """Under two processes, the first one locks all parts while the other one still checks the output folder."""
    for part in ("seed-0", "rate-0.001", "sweep-beta-1-epochs-2"):
        (tmp_path / part).mkdir()
        (tmp_path / part / LOCK).touch()
    assert not is_filled(tmp_path)
    (tmp_path / "mine").mkdir()
    assert is_filled(tmp_path)
    (tmp_path / "mine").rmdir()
    (tmp_path / "seed-0" / "notes.txt").touch()
    assert is_filled(tmp_path)
