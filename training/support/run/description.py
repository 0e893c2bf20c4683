"""Describe a run in a few lines before it trains."""

from typing import TYPE_CHECKING

from scratch_gpt.finetuning.trainable import count_parameters, trainable_line
from scratch_gpt.train.loop import TrainingSettings
from scratch_gpt.utils.wording import plural
from scratch_gpt_training.support.options import Run
from scratch_gpt_training.support.run.defaults import EPOCHS
from scratch_gpt_training.support.run.task import Task


if TYPE_CHECKING:
    from accelerate import Accelerator


def describe_run(run: Run, task: Task, settings: TrainingSettings, steps: int, accelerator: "Accelerator") -> str:
    """Return the lines to print before training: model, trained parameters, data, steps."""
    config, parameters = task.model.config, count_parameters(task.model)[1]
    precision = "fp32" if accelerator.mixed_precision == "no" else accelerator.mixed_precision
    processes = plural(accelerator.num_processes, "process", "processes")
    lines = [
        f"Model: {parameters:,} parameters ({config.num_hidden_layers} layers, {config.hidden_size} wide, vocabulary "
        f"{config.vocab_size:,}), {accelerator.device.type}, {processes}, precision {precision}"
    ]
    if run.tune != "full":
        lines.append(trainable_line(task.model))
    rows = settings.batch_size * settings.accumulation_steps * accelerator.num_processes
    tokens = steps * rows * task.tokens_per_row
    lines += task.description
    lines.append(
        f"Training: {plural(steps, 'step')}, {plural(rows, 'row')} each; at most {tokens:,.0f} tokens; "
        f"seed {run.seed}."
    )
    if run.epochs is None and (settings.epochs or 0) > EPOCHS:
        lines.append(f"Epochs: {settings.epochs:g}, because {EPOCHS} have fewer than {run.MIN_STEPS:,} steps.")
    return "\n".join(lines)


__all__ = ["describe_run"]
