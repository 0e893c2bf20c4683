"""Test writing checkpoints: background saves are equal, and a full disk damages no saved file."""

import json
import os
import signal
import subprocess

import pytest
import torch
from checkpoint_runs import assert_same, files_of, fill, resume, start
from tiny import tiny_model

from scratch_gpt.train.checkpoint_writer import RunStopped
from scratch_gpt.train.checkpoints import find_damage, list_checkpoints
from scratch_gpt.train.objectives import Objective, causal_lm


def test_saving_in_the_background_writes_the_same(straight, tmp_path):
    result, folder = straight
    assert_same(result, start(tmp_path, checkpoint_every=2, keep=99, async_save=True))
    for step in (2, 4, 6, 8):
        assert files_of(folder, step) == files_of(tmp_path, step)
        assert find_damage(tmp_path / "checkpoints" / f"step-{step}") is None


@pytest.mark.parametrize("moment", ["step", "evaluation", "micro-batch"])
def test_a_signal_ends_the_run_after_its_step_and_it_resumes_bit_for_bit(moment, straight, tmp_path):
    calls = []

    def interrupt(when, at):
        calls.append(when)
        if when == moment and calls.count(when) == at:
            os.kill(os.getpid(), signal.SIGTERM)

    def sums(model, batch):
        interrupt("micro-batch" if model.training else "", 5)  # second micro-batch of step 2
        return causal_lm.sums(model, batch)

    def counts(batch):
        interrupt("step" if torch.is_grad_enabled() else "", 7)  # first micro-batch of step 3, which has an evaluation
        return causal_lm.counts(batch)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RunStopped, match=r"Stopped by SIGTERM after step \d.* resume=.latest") as ending:
        start(tmp_path, objective=Objective(counts, sums), every=lambda: interrupt("evaluation", 2))
    assert ending.value.exit_code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before
    step = {"step": 3, "evaluation": 4, "micro-batch": 2}[moment]
    assert [path.name for path in list_checkpoints(tmp_path / "checkpoints")] == [f"step-{step}"]
    assert_same(straight[0], resume(tmp_path)[0])


def test_the_newest_and_the_best_are_kept_and_drafts_are_cleared(tmp_path):
    worse = {"model": tiny_model().train(), "objective": Objective(causal_lm.counts, _learn_to_be_worse)}
    (tmp_path / "checkpoints" / ".writing-step-1").mkdir(parents=True)
    start(tmp_path, checkpoint_every=1, keep=2, **worse)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-7", "step-8"]  # best: step 0
    calls = []

    def sums(model, batch):  # better in the first three steps
        calls.append(model.training)
        loss = causal_lm.sums(model, batch)["loss"]
        return {"loss": loss if calls.count(True) <= 10 else -loss}

    result = start(tmp_path / "b", checkpoint_every=1, keep=2, objective=Objective(causal_lm.counts, sums))
    assert result[1].best_step == 3
    names = [path.name for path in list_checkpoints(tmp_path / "b" / "checkpoints")]
    assert names == ["step-3", "step-7", "step-8"]


def _learn_to_be_worse(model, batch):
    return {"loss": -causal_lm.sums(model, batch)["loss"]}


@pytest.mark.parametrize("in_background", [False, True])
def test_a_full_disk_is_reported_and_saved_files_stay_intact(in_background, small_disk, straight, capfd):
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
    resumed = resume(small_disk, **{**options, "log_every": 4})[0]
    assert all(torch.equal(straight[0][0][name], resumed[0][name]) for name in resumed[0])


def test_a_run_can_continue_on_a_full_disk_and_saves_again_when_space_is_free(small_disk, straight, capfd):
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
    assert_same(straight[0], result)  # all lines of the metrics are present too
    said = capfd.readouterr().out
    assert (
        "Checkpoint step-3 could not be written (" in said and "No space left" in said and "Training continues" in said
    )
    assert not list((small_disk / "checkpoints").glob(".writing-*"))


@pytest.mark.parametrize("way", ["read-only", "vanished"])
def test_a_read_only_or_missing_folder_is_reported(way, small_disk, capfd):
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
            (small_disk / "run").write_text("in the way")  # a file, so that no folder can be created there

    with pytest.raises(RunStopped, match=r"could not be written \((Read-only file system|Not a directory)\)"):
        start(folder, every=lose, checkpoint_every=1, keep=9)
    kept = folder if way == "read-only" else small_disk / "moved"
    assert all(find_damage(path) is None for path in list_checkpoints(kept / "checkpoints"))
    assert len(list_checkpoints(kept / "checkpoints")) == 5


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    def ruin():
        with torch.no_grad():
            model.transformer.norm.weight[0] = torch.inf if calls else 1.0
        calls.append(1)

    model, calls = tiny_model().train(), []
    with pytest.raises(RunStopped, match=r"steps in a row .* The last good checkpoint is step-3\."):
        start(tmp_path, model=model, every=ruin, eval_every=4, checkpoint_every=1, max_bad_steps=2)
