"""Laws of the loop: the same gradient however a batch is cut, the same rows, a run that goes on where it stopped."""

import json
import math
from functools import partial

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from tiny import tiny_model

from scratch_gpt.checkpoints import find_checkpoint, list_checkpoints
from scratch_gpt.data.collate import collate_windows
from scratch_gpt.data.windows import Windows
from scratch_gpt.evaluation import language_metrics, mean_losses
from scratch_gpt.loop import (
    Settings,
    Steps,
    epoch_order,
    evaluation_batches,
    make_accelerator,
    planned_steps,
    train,
)
from scratch_gpt.metrics import read_metrics
from scratch_gpt.objectives import Objective, causal_lm
from scratch_gpt.optimizers import adamw, learning_rate_at


class UnevenRows:
    """Rows that ask different numbers of tokens, one of them none at all."""

    def __init__(self, count: int = 24):
        windows = Windows(np.random.default_rng(0).integers(0, 99, count * 8 + 1), 8)
        self.rows = [windows[k] for k in range(count)]
        for k, row in enumerate(self.rows):
            row["shift_labels"][: (0, 3, 6, 8)[k % 4]] = -100

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, k):
        return self.rows[k]


COLLATE = partial(collate_windows, length=8)


def run(
    folder, *, steps=3, rows=None, objective=causal_lm, model=None, sgd=False, every=None, resume_from=None, **settings
):
    """Train the tiny model in fp32; returns its weights, the progress and the metrics.

    With `sgd` weights move by the gradient itself. (AdamW divides by it, so that a gradient which is 0 in truth, as a
    key bias has, becomes a whole step in the direction of its rounding error.)
    """
    settings = Settings(**{"batch_size": 8, "log_every": 1, **settings})
    accelerator = Accelerator(cpu=True)
    rows = rows or UnevenRows()
    model = model or tiny_model().train()

    def evaluate(prepared):
        if callable(every):
            every()
        batches = evaluation_batches(accelerator, rows, COLLATE, settings.batch_size)
        return {"eval_loss": mean_losses(prepared, batches, causal_lm)["loss"]}

    optimizer = torch.optim.SGD(model.parameters()) if sgd else adamw(model, 1e-2, 0.1)
    model, progress = train(
        *(accelerator, model, optimizer, lambda step: learning_rate_at(step, 10, 1e-2, 2)),
        rows=rows,
        collate=COLLATE,
        objective=objective,
        settings=settings,
        steps=steps,
        output_dir=folder,
        evaluate=evaluate if every else None,
        resume_from=resume_from,
    )
    weights = {name: tensor.clone() for name, tensor in accelerator.unwrap_model(model).state_dict().items()}
    return weights, progress, read_metrics(folder / "metrics.jsonl")


def assert_close(a, b, tolerance):
    for name in a:
        assert (a[name] - b[name]).abs().max() < tolerance, name


# --- Which rows come when ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [(8, 1, 1), (4, 2, 1), (4, 1, 2), (1, 4, 2), (2, 2, 2)])
@pytest.mark.parametrize("epochs", [1, 3])
def test_each_row_comes_once_an_epoch_and_steps_do_not_depend_on_the_cut(cut, epochs):
    batch_size, accumulation, processes = cut
    rows = [{"input_ids": np.array([n]), "shift_labels": np.array([n])} for n in range(21)]  # 21 is no multiple of 8
    settings = Settings(batch_size=batch_size, accumulation_steps=accumulation, seed=5)
    per_step = []
    for step in range(math.ceil(21 * epochs / 8)):
        parts = [
            Steps(rows, collate_windows, settings, processes, rank, end=21 * epochs)[step] for rank in range(processes)
        ]
        assert len({len(part) for part in parts}) == 1  # all processes take part in each exchange of gradients
        seen = [int(i) for part in parts for batch, counted in part if counted for i in batch["input_ids"]]
        per_step.append(sorted(seen))
    order = [row for epoch in range(epochs) for row in epoch_order(21, 5, epoch)]
    assert per_step == [sorted(order[i : i + 8]) for i in range(0, len(order), 8)]
    assert sorted(order) == sorted(list(range(21)) * epochs)


def test_the_order_is_a_function_of_seed_and_epoch():
    assert epoch_order(50, 1, 0) == epoch_order.__wrapped__(50, 1, 0)
    assert len({tuple(epoch_order(50, seed, epoch)) for seed in (1, 2) for epoch in (0, 1)}) == 4


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


def test_out_of_memory_at_one_row_names_what_helps(tmp_path):
    def sums(model, batch):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    with pytest.raises(MemoryError, match="--gradient-checkpointing"):
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
    accelerator = Accelerator(cpu=True)
    loss = mean_losses(model, evaluation_batches(accelerator, rows, COLLATE, batch_size), causal_lm)["loss"]
    batch = COLLATE(rows.rows)
    with torch.no_grad():
        logits = model(batch["input_ids"]).logits
    truth = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["shift_labels"].flatten())
    assert loss == pytest.approx(truth.item(), abs=1e-5)
    assert model.training


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
    with pytest.raises(ValueError, match="how long to train"):
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


def test_schedule_warms_up_and_falls_to_the_floor():
    rates = [learning_rate_at(step, 100, 1.0, warmup_steps=10, floor=0.1) for step in range(101)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == 1.0
    assert all(a >= b for a, b in zip(rates[10:], rates[11:], strict=False))
    assert rates[55] == pytest.approx(0.55) and rates[100] == pytest.approx(0.1)
    assert {learning_rate_at(step, 9, 1.0, floor=1.0) for step in range(9)} == {1.0}


def test_only_matrices_decay_and_each_parameter_is_in_one_group():
    model = tiny_model()
    groups = adamw(model, 1e-3, 0.1).param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert all(p.dim() >= 2 for p in groups[0]["params"]) and all(p.dim() < 2 for p in groups[1]["params"])
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_tokens_per_second_leave_evaluations_out_and_count_every_step(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("scratch_gpt.metrics.time.perf_counter", lambda: now[0])

    def pass_seconds(seconds):
        now[0] += seconds

    def sums(model, batch):
        pass_seconds(model.training)  # one second a step
        return causal_lm.sums(model, batch)

    options = {"every": lambda: pass_seconds(50), "eval_every": 2, "checkpoint_every": 1, "log_every": 3}
    metrics = run(tmp_path, steps=6, objective=Objective(causal_lm.counts, sums), **options)[2]
    lines = [line for line in metrics if "loss" in line]
    assert [line["tokens_per_second"] for line in lines] == pytest.approx(
        [lines[0]["tokens"] / 3, (lines[1]["tokens"] - lines[0]["tokens"]) / 3]
    )


# --- Going on ----------------------------------------------------------------------------------------------------


def test_a_resumed_run_goes_on_where_it_stopped(tmp_path):
    options = {"steps": 6, "every": 1, "eval_every": 2, "checkpoint_every": 2, "keep": 9}
    dropout = {"resid_dropout": 0.1}
    straight = run(tmp_path / "a", model=tiny_model(**dropout).train(), **options)
    run(tmp_path / "b", model=tiny_model(**dropout).train(), **options)
    for path in list_checkpoints(tmp_path / "b" / "checkpoints")[1:]:  # as if it had been killed after step 3
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    path, skipped = find_checkpoint(tmp_path / "b" / "checkpoints")
    assert (path.name, skipped) == ("step-2", [])
    resumed = run(tmp_path / "b", model=tiny_model(seed=7, **dropout).train(), resume_from=path, **options)
    assert all(torch.equal(straight[0][name], resumed[0][name]) for name in straight[0])
    assert straight[1] == resumed[1]
    exact = [{k: v for k, v in line.items() if not k.endswith("_per_second")} for line in straight[2]]
    assert exact == [{k: v for k, v in line.items() if not k.endswith("_per_second")} for line in resumed[2]]


def test_a_damaged_checkpoint_is_passed_over_and_named(tmp_path):
    run(tmp_path, steps=3, checkpoint_every=1, keep=2)
    folder = tmp_path / "checkpoints"
    assert [path.name for path in list_checkpoints(folder)] == ["step-2", "step-3"]  # keep=2
    weights = folder / "step-3" / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # one bit
    path, skipped = find_checkpoint(folder)
    assert path.name == "step-2" and skipped == ["step-3 is damaged: model.safetensors is not what was written"]
    (folder / "step-2" / "optimizer.safetensors").unlink()
    with pytest.raises(ValueError, match="No checkpoint in .* is whole"):
        find_checkpoint(folder)
    assert find_checkpoint(tmp_path / "none") == (None, [])


def test_going_back_to_an_earlier_step_leaves_the_later_ones_behind(tmp_path):
    run(tmp_path, steps=6, checkpoint_every=2, keep=9)
    folder = tmp_path / "checkpoints"
    run(tmp_path, steps=3, checkpoint_every=1, keep=2, resume_from=folder / "step-2")
    assert [path.name for path in list_checkpoints(folder)] == ["step-2", "step-3"]


def test_resuming_another_order_of_data_is_refused(tmp_path):
    run(tmp_path, steps=2)
    path, _ = find_checkpoint(tmp_path / "checkpoints")
    with pytest.raises(ValueError, match="seed 0, this run has 1"):
        run(tmp_path, steps=4, seed=1, resume_from=path)
    with pytest.raises(ValueError, match="belongs to another model"):
        run(tmp_path, steps=4, model=tiny_model(num_hidden_layers=1).train(), resume_from=path)


def test_metrics_survive_a_broken_last_line(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text(json.dumps({"step": 1}) + "\n" + '{"step": 2, "lo')
    assert read_metrics(file) == [{"step": 1}]


# --- The launch --------------------------------------------------------------------------------------------------


def test_a_launch_without_the_processes_it_was_asked_for_is_an_error():
    with pytest.raises(ValueError, match="expect_processes is 2, but 1 started"):
        make_accelerator("cpu", expect_processes=2)


def test_a_device_that_is_not_there_is_an_error():
    if not torch.backends.mps.is_available():
        with pytest.raises(ValueError, match="device mps was asked for"):
            make_accelerator("mps")
