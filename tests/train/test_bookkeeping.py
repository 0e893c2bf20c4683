"""Test bookkeeping: patience, tokens per second and the time of compilation."""

import pytest
from tiny import tiny_model
from tiny_run import run

from scratch_gpt.train.checkpoints import read_state
from scratch_gpt.train.objectives import Objective, causal_lm


def test_patience_ends_a_run_that_does_not_improve(tmp_path):
    model = tiny_model().train()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.transformer.norm.bias.requires_grad_(True)

    def sums(model, batch):  # the loss gets worse
        return {"loss": -causal_lm.sums(model, batch)["loss"]}

    options = {"model": model, "objective": Objective(causal_lm.counts, sums), "every": 1, "eval_every": 1}
    _, progress, metrics = run(tmp_path, steps=20, patience=3, **options)
    assert (progress.step, progress.best_step, progress.stopped_early) == (3, 0, True)
    assert [line["step"] for line in metrics if "eval_loss" in line] == [0, 1, 2, 3]


@pytest.fixture
def pass_seconds(monkeypatch):
    """Replace the clock by one that advances only when the returned function is called."""
    now = [0.0]
    monkeypatch.setattr("scratch_gpt.train.metrics_log.time.perf_counter", lambda: now[0])

    def wait(seconds):
        now[0] += seconds

    return wait


def test_tokens_per_second_exclude_evaluations_and_count_every_step(tmp_path, pass_seconds):
    def sums(model, batch):
        pass_seconds(model.training)  # one second per step
        return causal_lm.sums(model, batch)

    options = {"every": lambda: pass_seconds(50), "eval_every": 2, "checkpoint_every": 1, "log_every": 3}
    options["objective"] = Objective(causal_lm.counts, sums)
    metrics = run(tmp_path, steps=6, **options)[2]
    at_step_5 = read_state(tmp_path / "checkpoints" / "step-5")["progress"]["tokens"]
    lines = [line for line in metrics if "loss" in line]
    assert [line["tokens_per_second"] for line in lines] == pytest.approx(
        [lines[0]["tokens"] / 3, (lines[1]["tokens"] - lines[0]["tokens"]) / 3]
    )
    resumed = run(tmp_path / "again", steps=6, resume_from=tmp_path / "checkpoints" / "step-5", **options)[2]
    resumed = [line for line in resumed if "loss" in line][-1]
    assert (resumed["loss"], resumed["tokens"]) == (lines[-1]["loss"], lines[-1]["tokens"])
    assert resumed["tokens_per_second"] == pytest.approx(resumed["tokens"] - at_step_5)  # of one second in this launch


def test_the_time_of_compilation_is_reported(tmp_path, pass_seconds, capsys):
    compiled = []

    def backend(graph, inputs):
        pass_seconds(20)  # at the first evaluation, at the trial of a micro-batch, or at the first step
        compiled.append(graph)
        return graph.forward

    def sums(model, batch):
        pass_seconds(1e-3)
        return causal_lm.sums(model, batch)

    model = tiny_model().train()
    model.compile(backend=backend)
    run(tmp_path, model=model, every=1, steps=2, objective=Objective(causal_lm.counts, sums))
    assert compiled
    assert f"The first step took {20 * len(compiled)} s" in capsys.readouterr().out
