"""Laws of the loop: the same gradient however a batch is cut, the same rows, a run that goes on where it stopped."""

import math

import numpy as np
import pytest
import torch
from tiny import tiny_model
from tiny_run import COLLATE, UnevenRows, run

from scratch_gpt.data.rows.collate import collate_rows
from scratch_gpt.evaluation.losses import language_metrics, mean_losses
from scratch_gpt.train.accelerator import make_accelerator
from scratch_gpt.train.batches import BatchLayout, Steps, epoch_order, evaluation_batches, group_by_length
from scratch_gpt.train.checkpoints import read_state
from scratch_gpt.train.loop import Settings, planned_steps
from scratch_gpt.train.objectives import Objective, causal_lm


def assert_close(a, b, tolerance):
    for name in a:
        assert (a[name] - b[name]).abs().max() < tolerance, name


# --- Which rows come when ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [(8, 1, 1), (4, 2, 1), (4, 1, 2), (1, 4, 2), (2, 2, 2)])
@pytest.mark.parametrize("epochs", [1, 3])
def test_each_row_comes_once_an_epoch_and_steps_do_not_depend_on_the_cut(cut, epochs):
    batch_size, accumulation, processes = cut
    rows = [{"input_ids": np.array([n]), "shift_labels": np.array([n])} for n in range(21)]  # 21 is no multiple of 8
    per_step = []
    for step in range(math.ceil(21 * epochs / 8)):
        parts = [
            Steps(rows, collate_rows, BatchLayout(batch_size, accumulation, processes, rank), 5, 21 * epochs)[step][0]
            for rank in range(processes)
        ]
        assert len({len(part) for part in parts}) == 1  # all processes take part in each exchange of gradients
        seen = [int(i) for part in parts for batch, counted in part if counted for i in batch["input_ids"]]
        per_step.append(sorted(seen))
    order = [row for epoch in range(epochs) for row in epoch_order(21, 5, epoch)]
    assert per_step == [sorted(order[i : i + 8]) for i in range(0, len(order), 8)]
    assert sorted(order) == sorted(list(range(21)) * epochs)


def test_the_order_is_a_function_of_seed_and_epoch():
    assert epoch_order(50, 1, 0) == epoch_order(50, 1, 0)
    assert len({tuple(epoch_order(50, seed, epoch)) for seed in (1, 2) for epoch in (0, 1)}) == 4


def test_batches_of_like_length_hold_each_row_once_and_little_filling():
    lengths = [int(n) for n in np.random.default_rng(0).integers(1, 100, 203)]
    order = group_by_length(epoch_order(203, 1, 0), lengths, batch=8, seed=3)
    assert sorted(order) == list(range(203))
    assert order == group_by_length(epoch_order(203, 1, 0), lengths, batch=8, seed=3)
    assert order != group_by_length(epoch_order(203, 1, 0), lengths, batch=8, seed=4)

    def filling(order):
        batches = [[lengths[i] for i in order[k : k + 8]] for k in range(0, len(order), 8)]
        return sum(len(batch) * max(batch) - sum(batch) for batch in batches)

    assert filling(order) < filling(epoch_order(203, 1, 0)) / 5


def test_rows_of_like_length_are_the_same_however_the_batch_is_cut():
    rows = [{"input_ids": np.arange(n + 1), "shift_labels": np.arange(n + 1)} for n in range(21)]
    lengths = [n + 1 for n in range(21)]
    whole = Steps(rows, collate_rows, BatchLayout(8), 5, lengths=lengths)
    cut = Steps(rows, collate_rows, BatchLayout(2, 2, 2), 5, lengths=lengths)
    assert [whole.indices(step) for step in range(6)] == [cut.indices(step) for step in range(6)]


def test_a_row_is_altered_by_its_place_however_the_batch_is_cut():
    rows = [{"input_ids": np.array([n]), "shift_labels": np.array([n])} for n in range(21)]
    augment = lambda row, place: {**row, "input_ids": row["input_ids"] + 100 * place}  # noqa: E731
    for step in range(6):
        seen = set()
        for rank in range(2):
            source = Steps(rows, collate_rows, BatchLayout(2, 2, 2, rank), 5, augment=augment)
            seen |= {int(i) for batch, _ in source[step].micro_batches for i in batch["input_ids"]}
        expected = zip(source.positions(step), source.indices(step), strict=True)
        assert seen == {row + 100 * place for place, row in expected}


# --- The gradient ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [(4, 2), (2, 4), (1, 8), (3, 3)])
def test_weights_do_not_depend_on_how_a_batch_is_cut(cut, tmp_path):
    batch, accumulation = cut
    whole = run(tmp_path / "a", batch_size=batch * accumulation, sgd=True)
    parts = run(tmp_path / "b", batch_size=batch, accumulation_steps=accumulation, sgd=True)
    assert_close(whole[0], parts[0], tolerance=1e-6)
    for one, other in zip(whole[2], parts[2], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-5)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], abs=1e-4)
        assert one["tokens"] == other["tokens"]


def test_the_logged_loss_is_the_mean_over_asked_tokens(tmp_path):
    model, rows = tiny_model(), UnevenRows()
    indices = epoch_order(len(rows), 0, 0)[:8]
    batch = COLLATE([rows[i] for i in indices])
    logits = model(batch["input_ids"]).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["shift_labels"].flatten())
    metrics = run(tmp_path, steps=1)[2]
    assert metrics[0]["loss"] == pytest.approx(loss.item(), abs=1e-5)
    assert metrics[0]["tokens"] == (batch["shift_labels"] != -100).sum()


def test_out_of_memory_halves_the_micro_batch_and_keeps_the_gradient(tmp_path, capsys):
    def sums(model, batch):
        if len(batch["input_ids"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate too much.")
        return causal_lm.sums(model, batch)

    small = run(tmp_path / "a", batch_size=2, accumulation_steps=4, sgd=True)
    saved = run(tmp_path / "b", batch_size=8, sgd=True, objective=Objective(causal_lm.counts, sums))
    assert_close(small[0], saved[0], tolerance=1e-7)
    said = capsys.readouterr().out
    assert "batch_size 8: going on with batch_size 4 and accumulation_steps 2" in said
    assert "going on with batch_size 2 and accumulation_steps 4" in said


def test_memory_is_rehearsed_on_the_longest_rows(tmp_path):
    rows, shapes = UnevenRows(), []
    lengths = [1 + n % 7 for n in range(len(rows))]
    lengths[11] = 8
    rows.rows = [{key: row[key][:n] for key in row} for row, n in zip(rows.rows, lengths, strict=True)]

    def sums(model, batch):
        shapes.append(batch["input_ids"].shape)
        return causal_lm.sums(model, batch)

    options = {"rows": rows, "collate": collate_rows, "batch_size": 2, "objective": Objective(causal_lm.counts, sums)}
    for known, longest in ((False, 2), (True, 8)):
        if known:
            rows.lengths = lengths
        shapes.clear()
        run(tmp_path, steps=1, **options)
        assert shapes[0] == (2, longest)


def test_a_resumed_run_sets_aside_no_second_state(tmp_path, monkeypatch):
    run(tmp_path, steps=1)
    taken, empty_like = [], torch.empty_like

    def take(tensor, **options):
        taken.extend([tensor] * isinstance(tensor, torch.nn.Parameter))
        return empty_like(tensor, **options)

    monkeypatch.setattr("torch.empty_like", take)
    run(tmp_path / "new", steps=1)
    of_new = len(taken)
    run(tmp_path / "again", steps=2, resume_from=tmp_path / "checkpoints" / "step-1")
    assert of_new - (len(taken) - of_new) == 2 * len([*tiny_model().parameters()])  # both as much for a step


def test_out_of_memory_at_one_row_names_what_helps(tmp_path):
    def sums(model, batch):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    with pytest.raises(MemoryError, match="gradient_checkpointing=True"):
        run(tmp_path, batch_size=2, objective=Objective(causal_lm.counts, sums))


def test_other_errors_are_not_taken_for_memory(tmp_path):
    def sums(model, batch):
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        run(tmp_path, objective=Objective(causal_lm.counts, sums))


# --- Evaluation and endings --------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 3, 7, 24])
def test_evaluation_does_not_depend_on_the_batch_size(batch_size):
    model, rows = tiny_model().train(), UnevenRows()
    loss = mean_losses(model, evaluation_batches(rows, COLLATE, BatchLayout(batch_size)), causal_lm)["loss"]
    batch = COLLATE(rows.rows)
    with torch.no_grad():
        logits = model(batch["input_ids"]).logits
    truth = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["shift_labels"].flatten())
    assert loss == pytest.approx(truth.item(), abs=1e-5)
    assert model.training


def test_some_batches_are_taken_from_everywhere():
    rows = [{"input_ids": np.array([n]), "shift_labels": np.array([n])} for n in range(100)]
    for processes in (1, 2):
        seen = []
        for rank in range(processes):
            batches = evaluation_batches(rows, collate_rows, BatchLayout(5, 1, processes, rank), batches=2)
            seen += [int(n) for batch, counted in batches if counted for n in batch["input_ids"]]
        n = 10 * processes
        assert sorted(seen) == [*range(0, 100, 100 // n)]
    batches = evaluation_batches(rows, collate_rows, BatchLayout(5), batches=50)
    assert sorted(int(n) for batch, _ in batches for n in batch["input_ids"]) == [*range(100)]


def test_bits_per_byte_of_guessing_bytes_is_eight():
    assert language_metrics(math.log(256), tokens_per_byte=1.0) == pytest.approx(
        {"loss": math.log(256), "perplexity": 256, "bits_per_byte": 8}
    )


def test_the_first_limit_ends_a_run():
    settings = {"batch_size": 4, "accumulation_steps": 2}
    assert planned_steps(Settings(**settings, epochs=2), rows=20, processes=1, tokens_per_row=10) == 5
    assert planned_steps(Settings(**settings, epochs=2, max_steps=3), 20, 1, 10) == 3
    assert planned_steps(Settings(**settings, max_tokens=170), 20, 1, 10) == 3
    assert planned_steps(Settings(**settings, epochs=2), 20, 2, 10) == 3
    with pytest.raises(ValueError, match="No training length given"):
        planned_steps(Settings(**settings), 20, 1, 10)


def test_patience_ends_a_run_that_gains_nothing(tmp_path):
    model = tiny_model().train()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.transformer.norm.bias.requires_grad_(True)

    def sums(model, batch):  # learns to be worse
        return {"loss": -causal_lm.sums(model, batch)["loss"]}

    options = {"model": model, "objective": Objective(causal_lm.counts, sums), "every": 1, "eval_every": 1}
    _, progress, metrics = run(tmp_path, steps=20, patience=3, **options)
    assert (progress.step, progress.best_step, progress.stopped_early) == (3, 0, True)
    assert [line["step"] for line in metrics if "eval_loss" in line] == [0, 1, 2, 3]


@pytest.fixture
def pass_seconds(monkeypatch):
    """Time that stands still, but for what is passed by calling this."""
    now = [0.0]
    monkeypatch.setattr("scratch_gpt.train.metrics_log.time.perf_counter", lambda: now[0])

    def wait(seconds):
        now[0] += seconds

    return wait


def test_tokens_per_second_leave_evaluations_out_and_count_every_step(tmp_path, pass_seconds):
    def sums(model, batch):
        pass_seconds(model.training)  # one second a step
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
    assert resumed["tokens_per_second"] == pytest.approx(resumed["tokens"] - at_step_5)  # of this launch's one second


def test_what_compilation_cost_is_said_wherever_it_happened(tmp_path, pass_seconds, capsys):
    compiled = []

    def backend(graph, inputs):
        pass_seconds(20)  # at the first evaluation, or when a micro-batch is rehearsed, or at the first step
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


# --- The launch --------------------------------------------------------------------------------------------------


def test_a_launch_without_the_processes_it_was_asked_for_is_an_error():
    with pytest.raises(ValueError, match="expect_processes is 2, but 1 started"):
        make_accelerator("cpu", expect_processes=2)


def test_a_device_that_is_not_there_is_an_error():
    if not torch.backends.mps.is_available():
        with pytest.raises(ValueError, match="device='mps' is not available"):
            make_accelerator("mps")
