"""Test resuming: bit for bit the same, from the newest complete checkpoint, or refused."""

import json
import shutil

import pytest
import torch
from checkpoint_runs import assert_same, files_of, resume, start
from tiny import tiny_model

from scratch_gpt.train import checkpoints
from scratch_gpt.train.checkpoint_writer import RunStopped
from scratch_gpt.train.checkpoints import (
    CHECKPOINT_FILES,
    MANIFEST,
    STATE,
    CheckpointError,
    find_checkpoint,
    list_checkpoints,
)
from scratch_gpt.train.objectives import Objective, causal_lm


# --- Exactly ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", range(1, 9))
def test_a_run_resumes_bit_for_bit_from_every_step(step, straight, tmp_path):
    result, folder = straight
    shutil.copytree(folder / "checkpoints" / f"step-{step}", tmp_path / "checkpoints" / f"step-{step}")
    (tmp_path / "metrics.jsonl").write_text('{"step": 99}\n{"of another course, and cu')
    resumed, skipped = resume(tmp_path, checkpoint_every=4)
    assert skipped == []
    assert_same(result, resumed)
    assert files_of(folder, 8) == files_of(tmp_path, 8)


@pytest.mark.parametrize("step", [1, 5])
def test_muon_resumes_bit_for_bit(step, tmp_path):
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    whole = start(straight, optimizer="muon", checkpoint_every=1, keep=99)
    shutil.copytree(straight / "checkpoints" / f"step-{step}", resumed / "checkpoints" / f"step-{step}")
    assert_same(whole, resume(resumed, optimizer="muon", checkpoint_every=4)[0])
    assert files_of(straight, 8) == files_of(resumed, 8)


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
@pytest.mark.parametrize("name", [*CHECKPOINT_FILES, MANIFEST])
def test_a_damaged_file_is_named_and_skipped(name, harm, straight, tmp_path):
    for step in (5, 6):
        shutil.copytree(straight[1] / "checkpoints" / f"step-{step}", tmp_path / "checkpoints" / f"step-{step}")
    harm(tmp_path / "checkpoints" / "step-6" / name)
    path, skipped = find_checkpoint(tmp_path / "checkpoints")
    assert path.name == "step-5" and len(skipped) == 1
    assert skipped[0].startswith(f"step-6 is damaged and skipped: {name} ")
    harm(tmp_path / "checkpoints" / "step-5" / name)
    with pytest.raises(ValueError, match=r"Every checkpoint in .* is damaged \(step-6 .*; step-5 .*\)"):
        find_checkpoint(tmp_path / "checkpoints")


def test_the_manifest_has_exactly_the_documented_fields(straight):
    path = straight[1] / "checkpoints" / "step-5"
    manifest = json.loads((path / MANIFEST).read_text())
    assert set(manifest) == {
        *("format_version", "step", "tokens", "position", "config_fingerprint", "files", "manifest_sha256")
    }
    assert set(manifest["files"]) == set(CHECKPOINT_FILES) and (manifest["step"], manifest["position"]) == (5, 45)
    assert {"progress", "metrics", "share", "scaler", "random_state", "record"} <= set(checkpoints.read_state(path))


def test_a_pickle_in_disguise_is_damage_and_never_opened(straight, tmp_path, monkeypatch):
    shutil.copytree(straight[1] / "checkpoints" / "step-5", tmp_path / "checkpoints" / "step-5")
    path = tmp_path / "checkpoints" / "step-5"
    torch.save({"a": torch.ones(3)}, path / "optimizer.safetensors")
    manifest = json.loads((path / MANIFEST).read_text())  # by an attacker who also updates the manifest
    del manifest["manifest_sha256"]
    manifest["files"]["optimizer.safetensors"] = checkpoints._describe(path / "optimizer.safetensors")
    manifest["manifest_sha256"] = checkpoints._digest(manifest)
    (path / MANIFEST).write_text(json.dumps(manifest))
    monkeypatch.setattr("pickle.Unpickler", None)
    monkeypatch.setattr("pickle.loads", None)
    monkeypatch.setattr("torch.load", None)
    with pytest.raises(CheckpointError, match=r"step-5/optimizer.safetensors is not a valid safetensors file"):
        resume(tmp_path)


def test_a_run_without_checkpoints_is_not_an_error(tmp_path):
    assert find_checkpoint(tmp_path / "none") == (None, [])
    (tmp_path / "checkpoints" / ".writing-step-3").mkdir(parents=True)
    assert find_checkpoint(tmp_path / "checkpoints") == (None, [])


# --- Pruning ---------------------------------------------------------------------------------------------------------


def test_resuming_from_an_earlier_step_deletes_later_checkpoints(straight, tmp_path):
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


# --- Steps without a finite loss -------------------------------------------------------------------------------------


def poisoned(*steps, value=torch.nan):
    """Return an objective with the loss `value` in these steps of 3 micro-batches, counted from 1."""
    calls = []

    def sums(model, batch):
        loss = causal_lm.sums(model, batch)["loss"]
        if model.training:
            calls.append(1)
            if (len(calls) - 2) // 3 + 1 in steps:  # the first call is the trial of a micro-batch
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
    resumed = resume(tmp_path, objective=poisoned(1, value=value))[0]  # step 3 is the first of this launch
    assert_same((weights, progress, metrics), resumed)


def test_too_many_skipped_steps_end_the_run_and_name_the_last_good_checkpoint(tmp_path):
    with pytest.raises(
        RunStopped, match=r"^3 steps in a row .* step 6; .* last good checkpoint is step-5\."
    ) as ending:
        start(tmp_path, objective=poisoned(2, 4, 5, 6), checkpoint_every=1, max_bad_steps=3)
    assert ending.value.exit_code == 2


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


# --- Values that a checkpoint's JSON may set -------------------------------------------------------------------------


def rewritten(path, change):
    """Change a checkpoint's JSON and update its manifest."""
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
        (lambda state: state["progress"].update(is_due=3), "is_due is '3', which is not a valid field of Progress"),
        (lambda state: state["progress"].update(step="5"), "step is '5', which is not a valid field of Progress"),
        (lambda state: state["progress"].update(tokens=True), "tokens is 'True', which is not a valid field"),
        (lambda state: state["metrics"].update(path="/etc/passwd"), "path = '/etc/passwd', which is not a valid"),
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
        resume(tmp_path)


def test_optimizer_options_of_a_group_come_from_the_run(straight, tmp_path):
    path = tmp_path / "checkpoints" / "step-5"
    shutil.copytree(straight[1] / "checkpoints" / "step-5", path)
    rewritten(path, lambda state: [group.update(weight_decay=9.0, betas=[0, 0]) for group in state["optimizer"]])
    assert_same(straight[0], resume(tmp_path)[0])


def test_a_state_without_progress_is_not_a_checkpoint(straight, tmp_path):
    path = tmp_path / "step-5"
    shutil.copytree(straight[1] / "checkpoints" / "step-5", path)
    (path / STATE).write_text("[]")
    with pytest.raises(CheckpointError, match="step-5/state.json (has no progress|cannot be read)"):
        checkpoints.read_state(path)
