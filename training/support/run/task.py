"""What a recipe hands to the runner."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch

from scratch_gpt.train.objectives import Objective
from scratch_gpt.utils.plots import plot_loss


class Task(NamedTuple):
    """What a recipe builds.

    Of `rows`, "train" (a sequence, or a stream) is learned. "validation" is evaluated on the way, and with it "seen",
    a part of what is learned; "test" is scored once before the first step and once at the end. Each may be missing.
    """

    model: Any  # a PreTrainedModel
    tokenizer: Any
    rows: dict[str, Any]
    collate: Callable[[list], dict[str, torch.Tensor]]
    objective: Objective
    measure: Callable[..., tuple[dict[str, float], dict[str, Any]]]  # model, batches, reduce, split -> metrics, tables
    tokens_per_row: float
    manifest: dict[str, Any]  # of the data (data/manifest.py)
    next_steps: tuple[str, ...]  # a verb and its options; {folder} is the run's
    sample: Callable[[Any], str] | None = None  # model -> a text to look at after each evaluation
    group_by_length: bool = False
    alter: Callable[[Any, int], Any] | None = None  # (row, place) -> the row as it is learned from there
    draw: Callable[..., Any] = plot_loss  # metrics.jsonl's lines, file, title -> loss.png
    # model, tables of the test split -> what else is left, {file name: what writes it}; called on every process
    leave: Callable[[Any, dict[str, Any]], dict[str, Callable[[Path], Any]]] | None = None
    # accelerator, folder, save: what the rows still need before the first step; called on every process
    ready: Callable[[Any, Path, Callable], Any] = lambda accelerator, folder, save: None
    sequences: int = 1  # texts that a row has
    notices: Sequence[str] = ()  # what to say before training

    @property
    def facts(self) -> dict[str, Any]:
        """What of the data decides a run."""
        return {**self.manifest["splits"], "tokenizer": self.manifest["tokenizer"]["fingerprint"]}


class Start(NamedTuple):
    """Where a run is written and what it goes on from."""

    folder: Path
    resume_from: Path | None
    notices: list[str]
    saved: dict[str, Any] | None = None  # the state of the checkpoint
    best_is_there: bool = True  # whether model/, where the best is kept, is of the checkpoint's best step
    lock: Any = nullcontext()  # of the folder, on the first process
