"""A training run of the tiny model on rows with different numbers of targets."""

from dataclasses import replace
from functools import partial

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from tiny import tiny_model

from scratch_gpt.data.rows.collate import collate_rows
from scratch_gpt.data.rows.windows import Windows
from scratch_gpt.evaluation.losses import mean_losses
from scratch_gpt.runs.folder import read_metrics
from scratch_gpt.train import loop
from scratch_gpt.train.batches import BatchLayout, evaluation_batches
from scratch_gpt.train.checkpoint_writer import guard_saves
from scratch_gpt.train.loop import TrainingCallbacks, TrainingSettings, train_model
from scratch_gpt.train.objectives import causal_lm
from scratch_gpt.train.optimizers import learning_rate_at, make_optimizer


def run_recipe(module, *words) -> None:
    """Run a recipe in this process as in a new one: reset the settings that Accelerate keeps for a process."""
    AcceleratorState._reset_state()
    PartialState._reset_state()
    module.main([str(word) for word in words])


def script_evaluations(monkeypatch, losses: list[float]) -> list[float]:
    """Make a run's evaluations report `losses` in turn, then the last one; return a list of the measured losses.

    The best step and the end of patience then do not depend on rounding.
    """
    measured, create = [], loop.Evaluator.__init__

    def create_scripted(self, callbacks, *rest):
        def evaluate(model):
            values = callbacks.evaluate(model)
            measured.append(values["eval_loss"])
            return {**values, "eval_loss": losses[min(len(measured), len(losses)) - 1]}

        create(self, replace(callbacks, evaluate=evaluate), *rest)

    monkeypatch.setattr(loop.Evaluator, "__init__", create_scripted)
    return measured


class UnevenRows:
    """Rows with different numbers of targets; one in four has all 8, one in four 5, one 2, one none."""

    def __init__(self, count: int = 24):
        windows = Windows(np.random.default_rng(0).integers(0, 99, count * 8 + 1), 8)
        self.rows = [windows[k] for k in range(count)]
        for k, row in enumerate(self.rows):
            row["shift_labels"][: (0, 3, 6, 8)[k % 4]] = -100

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, k):
        return self.rows[k]


COLLATE = partial(collate_rows, length=8)


def run(
    folder,
    *,
    steps=3,
    rows=None,
    objective=causal_lm,
    model=None,
    sgd=False,
    optimizer="adamw",
    every=None,
    resume_from=None,
    collate=COLLATE,
    stop_on_save_error=True,
    **settings,
):
    """Train the tiny model in fp32; return its weights, the progress and the metrics.

    With `sgd` the update is proportional to the gradient. (AdamW normalizes it: a gradient that is 0 except for
    rounding, such as a key bias has, would become a full step in the direction of the rounding error.)
    """
    settings = TrainingSettings(**{"batch_size": 8, "log_every": 1, **settings})
    accelerator = Accelerator(cpu=True)
    rows = rows or UnevenRows()
    model = model or tiny_model().train()

    def evaluate(prepared):
        if callable(every):
            every()
        batches = evaluation_batches(rows, COLLATE, BatchLayout(settings.batch_size))
        return {"eval_loss": mean_losses(prepared, batches, causal_lm)["loss"]}

    optimizer = torch.optim.SGD(model.parameters()) if sgd else make_optimizer(model, 1e-2, 0.1, optimizer)
    model, progress = train_model(
        accelerator,
        model,
        optimizer,
        lambda step: learning_rate_at(step, 10, 1e-2, 2),
        rows=rows,
        collate=collate,
        objective=objective,
        settings=settings,
        steps=steps,
        output_dir=folder,
        callbacks=TrainingCallbacks(
            evaluate if every else None, save=guard_saves(accelerator, folder, stop_on_save_error)
        ),
        resume_from=resume_from,
    )
    weights = {name: tensor.clone() for name, tensor in accelerator.unwrap_model(model).state_dict().items()}
    return weights, progress, read_metrics(folder / "metrics.jsonl")
