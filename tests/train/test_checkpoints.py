"""Laws of going on: bit for bit as if nothing had happened, from the newest whole checkpoint, or not at all."""

import json
import os
import shutil
import signal
import subprocess

import pytest
import torch
from crash import exact
from tiny import tiny_model
from tiny_run import run

from scratch_gpt.runs.folder import read_metrics
from scratch_gpt.train import checkpoints
from scratch_gpt.train.checkpoint_writer import RunStopped
from scratch_gpt.train.checkpoints import (
    FILES,
    MANIFEST,
    STATE,
    CheckpointError,
    find_checkpoint,
    find_damage,
    list_checkpoints,
)
from scratch_gpt.train.objectives import Objective, causal_lm
from scratch_gpt.train.signals import StopSignals
from scratch_gpt.utils.files import write_text


# Dropout, accumulation, 24 rows in steps of 9 (so that epochs end within a step), lines that span checkpoints.
OPTIONS = {"batch_size": 3, "accumulation_steps": 3, "steps": 8, "eval_every": 3, "every": 1, "log_every": 4}
DROPOUT = {"resid_dropout": 0.1, "attention_dropout": 0.1}


def start(folder, **options):
    return run(folder, **{**OPTIONS, "model": tiny_model(**DROPOUT).train(), **options})


def go_on(folder, **options):
    path, skipped = find_checkpoint(folder / "checkpoints")
    return start(folder, model=tiny_model(seed=7, **DROPOUT).train(), resume_from=path, **options), skipped


def assert_same(one, other):
    assert all(torch.equal(one[0][name], other[0][name]) for name in one[0])
    assert one[1] == other[1]
    assert exact(one[2]) == exact(other[2])


def files_of(folder, step):
    """The optimizer's and the weights' bytes."""
    return [(folder / "checkpoints" / f"step-{step}" / name).read_bytes() for name in FILES[:2]]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    return start(folder, checkpoint_every=1, keep=99), folder


# --- Exactly ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", range(1, 9))
def test_a_run_goes_on_bit_for_bit_from_every_step(step, straight, tmp_path):
    result, folder = straight
    shutil.copytree(folder / "checkpoints" / f"step-{step}", tmp_path / "checkpoints" / f"step-{step}")
    (tmp_path / "metrics.jsonl").write_text('{"step": 99}\n{"of another course, and cu')
    resumed, skipped = go_on(tmp_path, checkpoint_every=4)
    assert skipped == []
    assert_same(result, resumed)
    assert files_of(folder, 8) == files_of(tmp_path, 8)


@pytest.mark.parametrize("step", [1, 5])
def test_muon_goes_on_bit_for_bit(step, tmp_path):
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    whole = start(straight, optimizer="muon", checkpoint_every=1, keep=99)
    shutil.copytree(straight / "checkpoints" / f"step-{step}", resumed / "checkpoints" / f"step-{step}")
    assert_same(whole, go_on(resumed, optimizer="muon", checkpoint_every=4)[0])
    assert files_of(straight, 8) == files_of(resumed, 8)


def test_saving_in_the_background_writes_the_same(straight, tmp_path):
    result, folder = straight
    assert_same(result, start(tmp_path, checkpoint_every=2, keep=99, async_save=True))
    for step in (2, 4, 6, 8):
        assert files_of(folder, step) == files_of(tmp_path, step)
        assert find_damage(tmp_path / "checkpoints" / f"step-{step}") is None


@pytest.mark.parametrize("moment", ["step", "evaluation", "micro-batch"])
def test_a_signal_lets_the_step_end_and_the_run_goes_on_bit_for_bit(moment, straight, tmp_path):
    calls = []

    def interrupt(when, at):
        calls.append(when)
        if when == moment and calls.count(when) == at:
            os.kill(os.getpid(), signal.SIGTERM)

    def sums(model, batch):
        interrupt("micro-batch" if model.training else "", 5)  # the second of step 2
        return causal_lm.sums(model, batch)

    def counts(batch):
        interrupt("step" if torch.is_grad_enabled() else "", 7)  # the first of step 3, which is to be evaluated
        return causal_lm.counts(batch)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RunStopped, match=r"stopped by SIGTERM after step \d.* resume=.latest") as ending:
        start(tmp_path, objective=Objective(counts, sums), every=lambda: interrupt("evaluation", 2))
    assert ending.value.exit_code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before
    step = {"step": 3, "evaluation": 4, "micro-batch": 2}[moment]
    assert [path.name for path in list_checkpoints(tmp_path / "checkpoints")] == [f"step-{step}"]
    assert_same(straight[0], go_on(tmp_path)[0])


def test_a_second_interrupt_is_not_held_back():
    before = signal.getsignal(signal.SIGINT)
    with StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.received == signal.SIGINT
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is before


# --- Damage ----------------------------------------------------------------------------------------------------------


def truncate(file):
    file.write_bytes(file.read_bytes()[:-1])


def flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def empty(file):
    file.write_bytes(b"")


def remove(file):
    file.unlink()


@pytest.mark.parametrize("harm", [truncate, flip_a_bit, empty, remove])
@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_a_damaged_file_is_met_named_and_passed_over(name, harm, straight, tmp_path):
    for step in (5, 6):
        shutil.copytree(straight[1] / "checkpoints" / f"step-{step}", tmp_path / "checkpoints" / f"step-{step}")
    harm(tmp_path / "checkpoints" / "step-6" / name)
    path, skipped = find_checkpoint(tmp_path / "checkpoints")
    assert path.name == "step-5" and len(skipped) == 1
    assert skipped[0].startswith(f"step-6 is damaged and skipped: {name} ")
    harm(tmp_path / "checkpoints" / "step-5" / name)
    with pytest.raises(ValueError, match=r"Every checkpoint in .* is damaged \(step-6 .*; step-5 .*\)"):
        find_checkpoint(tmp_path / "checkpoints")


def test_the_manifest_says_what_is_there(straight):
    path = straight[1] / "checkpoints" / "step-5"
    manifest = json.loads((path / MANIFEST).read_text())
    assert set(manifest) == {
        *("format_version", "step", "tokens", "position", "config_fingerprint", "files", "manifest_sha256")
    }
    assert set(manifest["files"]) == set(FILES) and (manifest["step"], manifest["position"]) == (5, 45)
    assert {"progress", "metrics", "share", "scaler", "random_state", "record"} <= set(checkpoints.read_state(path))


def test_a_pickle_in_disguise_is_damage_and_never_opened(straight, tmp_path, monkeypatch):
    shutil.copytree(straight[1] / "checkpoints" / "step-5", tmp_path / "checkpoints" / "step-5")
    path = tmp_path / "checkpoints" / "step-5"
    torch.save({"a": torch.ones(3)}, path / "optimizer.safetensors")
    manifest = json.loads((path / MANIFEST).read_text())  # by one who also writes the manifest anew
    del manifest["manifest_sha256"]
    manifest["files"]["optimizer.safetensors"] = checkpoints._describe(path / "optimizer.safetensors")
    manifest["manifest_sha256"] = checkpoints._digest(manifest)
    (path / MANIFEST).write_text(json.dumps(manifest))
    monkeypatch.setattr("pickle.Unpickler", None)
    monkeypatch.setattr("pickle.loads", None)
    monkeypatch.setattr("torch.load", None)
    with pytest.raises(CheckpointError, match=r"step-5/optimizer.safetensors is no safetensors file"):
        go_on(tmp_path)


def test_no_checkpoint_yet_is_no_error(tmp_path):
    assert find_checkpoint(tmp_path / "none") == (None, [])
    (tmp_path / "checkpoints" / ".writing-step-3").mkdir(parents=True)
    assert find_checkpoint(tmp_path / "checkpoints") == (None, [])


# --- Pruning ---------------------------------------------------------------------------------------------------------


def test_the_newest_and_the_best_are_kept_and_drafts_are_cleared(tmp_path):
    worse = {"model": tiny_model().train(), "objective": Objective(causal_lm.counts, _learn_to_be_worse)}
    (tmp_path / "checkpoints" / ".writing-step-1").mkdir(parents=True)
    start(tmp_path, checkpoint_every=1, keep=2, **worse)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-7", "step-8"]  # best: step 0
    calls = []

    def sums(model, batch):  # better for three steps
        calls.append(model.training)
        loss = causal_lm.sums(model, batch)["loss"]
        return {"loss": loss if calls.count(True) <= 10 else -loss}

    result = start(tmp_path / "b", checkpoint_every=1, keep=2, objective=Objective(causal_lm.counts, sums))
    assert result[1].best_step == 3
    names = [path.name for path in list_checkpoints(tmp_path / "b" / "checkpoints")]
    assert names == ["step-3", "step-7", "step-8"]


def _learn_to_be_worse(model, batch):
    return {"loss": -causal_lm.sums(model, batch)["loss"]}


def test_going_back_to_an_earlier_step_leaves_the_later_ones_behind(straight, tmp_path):
    shutil.copytree(straight[1] / "checkpoints", tmp_path / "checkpoints")
    start(tmp_path, steps=5, checkpoint_every=1, keep=2, resume_from=tmp_path / "checkpoints" / "step-2")
    names = [path.name for path in list_checkpoints(tmp_path / "checkpoints")]
    assert names == ["step-4", "step-5"]


def test_another_shape_is_refused_by_name(straight, tmp_path):
    path = straight[1] / "checkpoints" / "step-5"
    with pytest.raises(
        ValueError, match=r"step-5 belongs to another model: transformer.layers.1.*Start a new run in a new output_dir"
    ):
        start(tmp_path, model=tiny_model(num_hidden_layers=1).train(), resume_from=path)


# --- Nowhere to write ------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 8 MB; it has to be able to say that it is full."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], capture_output=True)
    if made.returncode:
        pytest.skip("no right to mount a tmpfs here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder):
    """Leave no byte, and prove it."""
    with (folder / "ballast").open("wb", buffering=0) as file:
        with pytest.raises(OSError):
            while True:
                file.write(b"x" * 4096)
    with pytest.raises(OSError):
        (folder / "proof").write_bytes(b"x" * 4096)
    (folder / "proof").unlink(missing_ok=True)


@pytest.mark.parametrize("in_background", [False, True])
def test_a_full_disk_is_said_and_nothing_that_was_saved_is_harmed(in_background, small_disk, straight, capfd):
    calls = []

    def full():  # before the evaluation of step 6
        calls.append(1)
        if len(calls) == 3:
            fill(small_disk)

    options = {"checkpoint_every": 2, "keep": 9, "log_every": 1, "async_save": in_background}
    with pytest.raises(
        RunStopped, match=r"could not be written \(.*[Nn]o space.*\)\. The last good checkpoint is step-4"
    ):
        start(small_disk, every=full, **options)
    assert [path.name for path in list_checkpoints(small_disk / "checkpoints")] == ["step-2", "step-4"]
    assert all(find_damage(path) is None for path in list_checkpoints(small_disk / "checkpoints"))
    for line in (small_disk / "metrics.jsonl").read_text().splitlines():
        json.loads(line)
    (small_disk / "ballast").unlink()
    resumed = go_on(small_disk, **{**options, "log_every": 4})[0]
    assert all(torch.equal(straight[0][0][name], resumed[0][name]) for name in resumed[0])


def test_on_a_full_disk_a_run_can_go_on_and_saves_again_when_there_is_room(small_disk, straight, capfd):
    calls = []

    def full_for_a_while():
        calls.append(1)
        if len(calls) == 2:  # step 3
            fill(small_disk)
        elif len(calls) == 3:  # step 6
            (small_disk / "ballast").unlink()

    result = start(small_disk, every=full_for_a_while, checkpoint_every=1, keep=9, stop_on_save_error=False)
    names = [path.name for path in list_checkpoints(small_disk / "checkpoints")]
    assert names == ["step-1", "step-2", "step-6", "step-7", "step-8"]
    assert_same(straight[0], result)  # no line of the record is lost either
    said = capfd.readouterr().out
    assert (
        "Checkpoint step-3 could not be written (" in said and "No space left" in said and "Training goes on." in said
    )
    assert not list((small_disk / "checkpoints").glob(".writing-*"))


@pytest.mark.parametrize("way", ["read-only", "vanished"])
def test_a_folder_that_may_not_be_written_or_is_gone_is_said(way, small_disk, capfd):
    folder = small_disk / "run"

    def lose():
        if not folder.exists() or len(list_checkpoints(folder / "checkpoints")) != 5:
            return
        if way == "read-only":
            subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
            with pytest.raises(OSError):
                (small_disk / "proof").write_text("x")
        else:
            folder.rename(small_disk / "moved")
            (small_disk / "run").write_text("in the way")  # so that no folder can be made there

    with pytest.raises(RunStopped, match=r"could not be written \((Read-only file system|Not a directory)\)"):
        start(folder, every=lose, checkpoint_every=1, keep=9)
    kept = folder if way == "read-only" else small_disk / "moved"
    assert all(find_damage(path) is None for path in list_checkpoints(kept / "checkpoints"))
    assert len(list_checkpoints(kept / "checkpoints")) == 5


def test_a_text_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    file = tmp_path / "a.json"
    write_text(file, "old")
    monkeypatch.setattr(os, "replace", None)  # dies at the last moment
    with pytest.raises(TypeError):
        write_text(file, "new")
    assert file.read_text() == "old" and os.listdir(tmp_path) == ["a.json"]


# --- Steps that cannot be learned from -------------------------------------------------------------------------------


def poisoned(*steps, value=torch.nan):
    """An objective whose loss is `value` in these steps of 3 micro-batches, counted from 1."""
    calls = []

    def sums(model, batch):
        loss = causal_lm.sums(model, batch)["loss"]
        if model.training:
            calls.append(1)
            if (len(calls) - 2) // 3 + 1 in steps:  # the first is the rehearsal
                loss = loss * value
        return {"loss": loss}

    return Objective(causal_lm.counts, sums)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_step_without_a_finite_loss_is_skipped_counted_and_named(value, straight, tmp_path):
    weights, progress, metrics = start(tmp_path, objective=poisoned(2, 3, value=value), checkpoint_every=1, keep=99)
    assert (progress.step, progress.skipped_steps, progress.skipped_in_a_row) == (8, 2, 0)
    assert all(tensor.isfinite().all() for tensor in weights.values())
    skipped = [line for line in metrics if "skipped_steps" in line]
    assert [line["step"] for line in skipped] == [2, 3] and all(line["grad_norm"] is None for line in skipped)
    assert [len(line["rows"]) for line in skipped] == [9, 9]
    one, three = (files_of(tmp_path, step)[0] for step in (1, 3))
    assert one == three and files_of(straight[1], 1)[0] == one
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()
    shutil.rmtree(tmp_path / "checkpoints" / "step-8")
    for step in range(3, 8):
        shutil.rmtree(tmp_path / "checkpoints" / f"step-{step}")
    resumed = go_on(tmp_path, objective=poisoned(1, value=value))[0]  # step 3 is the first of this launch
    assert_same((weights, progress, metrics), resumed)


def test_too_many_such_steps_in_a_row_end_the_run_and_name_the_last_good_checkpoint(tmp_path):
    with pytest.raises(
        RunStopped, match=r"^3 steps in a row .* step 6; .* last good checkpoint is step-5\."
    ) as ending:
        start(tmp_path, objective=poisoned(2, 4, 5, 6), checkpoint_every=1, max_bad_steps=3)
    assert ending.value.exit_code == 2


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    def ruin():
        with torch.no_grad():
            model.transformer.norm.weight[0] = torch.inf if calls else 1.0
        calls.append(1)

    model, calls = tiny_model().train(), []
    with pytest.raises(RunStopped, match=r"steps in a row .* The last good checkpoint is step-3\."):
        start(tmp_path, model=model, every=ruin, eval_every=4, checkpoint_every=1, max_bad_steps=2)


def test_a_spike_of_the_loss_is_marked_with_its_rows(tmp_path):
    calls = []

    def sums(model, batch):
        calls.append(model.training)
        return {"loss": causal_lm.sums(model, batch)["loss"] * (3 if sum(calls) == 72 else 1)}  # step 71

    options = {"batch_size": 9, "accumulation_steps": 1, "steps": 80, "every": None, "sgd": True}
    metrics = start(tmp_path, objective=Objective(causal_lm.counts, sums), **options)[2]
    spikes = [line for line in metrics if "loss_spike" in line]
    assert [line["step"] for line in spikes] == [71] and len(spikes[0]["rows"]) == 9
    assert spikes[0]["loss_spike"] > spikes[0]["loss_mean"] * 2


# --- The record ------------------------------------------------------------------------------------------------------


def test_metrics_survive_a_broken_last_line(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text(json.dumps({"step": 1}) + "\n" + '{"step": 2, "lo')
    assert read_metrics(file) == [{"step": 1}]


def test_each_step_stands_in_the_record_once(straight):
    lines = straight[0][2]
    assert [line["step"] for line in lines if "loss" in line] == [4, 8]
    assert [line["step"] for line in lines if "eval_loss" in line] == [0, 3, 6, 8]


# --- What a checkpoint's JSON may set --------------------------------------------------------------------------------


def rewritten(path, change):
    """Change a checkpoint's JSON, as one who writes the manifest anew."""
    state = checkpoints.read_state(path)
    change(state)
    (path / STATE).write_text(json.dumps(state))
    manifest = json.loads((path / MANIFEST).read_text())
    del manifest["manifest_sha256"]
    manifest["files"][STATE] = checkpoints._describe(path / STATE)
    manifest["manifest_sha256"] = checkpoints._digest(manifest)
    (path / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state["progress"].update(is_due=3), "is_due is '3', which no Progress can have"),
        (lambda state: state["progress"].update(step="5"), "step is '5', which no Progress can have"),
        (lambda state: state["progress"].update(tokens=True), "tokens is 'True', which no Progress can have"),
        (lambda state: state["metrics"].update(path="/etc/passwd"), "path = '/etc/passwd', which none can have"),
        (lambda state: state["metrics"].update(seen=[1]), "seen = "),
        (lambda state: state.update(optimizer=[]), "belongs to another optimizer"),
        (lambda state: state.pop("optimizer"), "belongs to another optimizer"),
        (lambda state: state["optimizer"][0]["params"].pop(), "belongs to another optimizer"),
    ],
)
def test_a_checkpoints_json_sets_only_what_it_should(change, message, straight, tmp_path):
    path = tmp_path / "checkpoints" / "step-5"
    shutil.copytree(straight[1] / "checkpoints" / "step-5", path)
    rewritten(path, change)
    with pytest.raises(CheckpointError, match=message):
        go_on(tmp_path)


def test_how_a_group_is_optimized_is_the_runs_own(straight, tmp_path):
    path = tmp_path / "checkpoints" / "step-5"
    shutil.copytree(straight[1] / "checkpoints" / "step-5", path)
    rewritten(path, lambda state: [group.update(weight_decay=9.0, betas=[0, 0]) for group in state["optimizer"]])
    assert_same(straight[0], go_on(tmp_path)[0])


def test_a_state_without_progress_is_no_checkpoint(straight, tmp_path):
    path = tmp_path / "step-5"
    shutil.copytree(straight[1] / "checkpoints" / "step-5", path)
    (path / STATE).write_text("[]")
    with pytest.raises(CheckpointError, match="step-5/state.json (has no progress|cannot be read)"):
        checkpoints.read_state(path)
