"""Define the task that a recipe builds, and the start of a run."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from scratch_gpt.train.objectives import Objective
from scratch_gpt.utils.plots import plot_loss


if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def _nothing_to_prepare(accelerator: "Accelerator", folder: Path, save: Callable) -> None:
    pass


class Hooks(NamedTuple):
    """Optional functions of a task."""

    sample_text: "Callable[[PreTrainedModel], str] | None" = None  # returns a text sampled from the model
    sample_method: str = "greedy"  # how that text is decoded
    augment: Callable[[Any, int], Any] | None = None  # (row, position in the run's sequence) -> the row to train on
    plot: Callable[..., Any] = plot_loss  # (lines of metrics.jsonl, file, title) -> loss.png
    # (model, tables of the test split) -> {file name: function that writes it}; called on every process
    extra_outputs: Callable[[Any, dict[str, Any]], dict[str, Callable[[Path], Any]]] | None = None
    # (accelerator, folder, save): complete the rows before the first step; called on every process
    before_training: "Callable[[Accelerator, Path, Callable], Any]" = _nothing_to_prepare


class Task(NamedTuple):
    """Everything that a recipe hands to the runner.

    `rows` has the splits. "train" (a sequence, or a stream) is trained on; "validation" and "seen", a part of "train",
    are evaluated during training; "test" is scored before the first step and at the end. All but "train" are
    optional.
    """

    model: Any  # a PreTrainedModel with our config
    tokenizer: "PreTrainedTokenizerBase"
    rows: dict[str, Any]
    collate: Callable[[list], dict[str, torch.Tensor]]
    objective: Objective
    measure: Callable[..., tuple[dict[str, float], dict[str, Any]]]  # model, batches, reduce, split -> metrics, tables
    tokens_per_row: float
    manifest: dict[str, Any]  # of the data (data/manifest.py)
    description: Sequence[str]  # lines about the data, printed before training
    next_steps: tuple[str, ...]  # a verb and its options; {folder} is the run's
    notices: Sequence[str] = ()  # lines printed before the description
    group_by_length: bool = False
    sequences_per_row: int = 1
    hooks: Hooks = Hooks()

    @property
    def facts(self) -> dict[str, Any]:
        """Return the facts about the data that decide a run."""
        return {**self.manifest["splits"], "tokenizer": self.manifest["tokenizer"]["fingerprint"]}


class Start(NamedTuple):
    """The folder that a run writes, and the checkpoint that it resumes."""

    folder: Path
    resume_from: Path | None
    notices: list[str]
    saved: dict[str, Any] | None = None  # the state of the checkpoint
    has_best: bool = True  # whether model/ holds the weights of the checkpoint's best step
    lock: AbstractContextManager[Any] = nullcontext()  # of the folder, on the first process
