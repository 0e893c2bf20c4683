"""Rows, a model and an objective -> a trained model: the only training loop, on Accelerate.

One step is one optimizer update over a global batch of batch_size x accumulation_steps x processes rows. Which rows
those are is a function of (seed, step) alone (order.py), not of how the global batch is cut. Neither is the gradient:
every sum is divided once, by the count over all micro-batches and processes. Whatever else a step depends on is in
`Progress`, in the checkpoint, or a function of (seed, step, process): a run that was killed goes on as if it had not.
"""

import math
import shlex
import signal
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import tqdm
from torch import nn

from ..utils import watchdog
from .batches import Alter, Batch, Share, Steps, StreamedSteps, derive_seed, to_device
from .checkpoint_writer import Keeper, RunStopped, agree, guard_saves, last_good
from .checkpoints import list_checkpoints, load_checkpoint, prune, take_fields
from .fit_batch import fit_memory
from .metrics_log import Metrics
from .optimizers import clip_gradients
from .signals import StopSignals


@dataclass(frozen=True)
class Settings:
    """How a run goes, whatever its task. Of the limits, the first that is reached ends it; None is no limit."""

    batch_size: int  # rows per process and micro-batch
    accumulation_steps: int = 1
    max_steps: int | None = None
    epochs: float | None = None
    max_tokens: int | None = None  # targets, or what the objective counts as tokens
    max_seconds: float | None = None  # of this launch
    max_grad_norm: float | None = 1.0
    max_bad_steps: int = 5  # skipped ones in a row before the run stops
    eval_every: int | None = None  # steps; the first and the last are evaluated in any case
    patience: int | None = None  # evaluations without a new best before the run ends
    best_of: str = "eval_loss"
    checkpoint_every: int | None = None  # steps; the last is kept in any case
    keep: int = 2
    async_save: bool = False
    log_every: int = 10
    group_by_length: bool = False  # a step takes rows of like length (rows.lengths)
    workers: int = 0
    seed: int = 0


@dataclass
class Progress:
    """Where a run stands: what a resumed run needs besides weights and optimizer."""

    step: int = 0
    position: int = 0  # rows taken from the endless sequence of shuffled epochs
    tokens: int = 0  # targets learned from, or what the objective counts as tokens
    skipped_steps: int = 0  # whose loss or gradient was not finite
    skipped_in_a_row: int = 0
    evaluated_at: int | None = None  # the step of the last evaluation
    best_metric: float | None = None
    best_step: int | None = None
    evaluations_since_best: int = 0
    last_evaluation: dict[str, Any] = field(default_factory=dict)
    stopped_early: bool = False


class Diverged(RunStopped):
    """A run whose loss, gradients or weights are not finite any more."""


def planned_steps(settings: Settings, rows: int | None, processes: int, tokens_per_row: float) -> int:
    """The number of optimizer steps until the first limit (other than time) is reached; ValueError without one.

    `rows` is None for a stream, whose epochs nobody has counted.
    """
    global_batch = Share(settings.batch_size, settings.accumulation_steps, processes).global_batch
    limits = []
    if settings.max_steps is not None:
        limits.append(settings.max_steps)
    if settings.epochs is not None and rows is not None:
        limits.append(math.ceil(settings.epochs * rows / global_batch))
    if settings.max_tokens is not None:
        limits.append(math.ceil(settings.max_tokens / (tokens_per_row * global_batch)))
    if not limits:
        epochs = "max_steps, epochs=" if rows is not None else "max_steps"
        raise ValueError(f"No training length given: set {epochs} or max_tokens.")
    return min(limits)


# --- The loop ----------------------------------------------------------------------------------------------------


def train(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    learning_rate: Callable[[int], float],
    rows: Any,
    collate: Callable[[list], Batch],
    objective: Any,
    settings: Settings,
    steps: int,
    output_dir: Path,
    evaluate: Callable[[nn.Module], dict[str, Any]] | None = None,
    on_evaluation: Callable[[nn.Module, Progress, bool], str] = lambda model, progress, is_best: "",
    resume_from: Path | None = None,
    best_is_there: bool = True,
    record: dict[str, Any] | None = None,
    model_files: dict[str, bytes] | None = None,
    save: Callable[[str, Callable[[], Any]], bool] | None = None,
    alter: Alter | None = None,
    peak_tokens_per_second: float | None = None,
) -> tuple[nn.Module, Progress]:
    """Train for `steps` steps; returns the prepared model and where it stands.

    Args:
        learning_rate: step, counted from 0 -> its rate.
        rows: indexable and sized, or a stream with lanes (data/streams.py); `collate` makes a batch of a list of
            them, `objective` (objectives.py) scores it.
        evaluate: model -> {"eval_loss": ..., ...}, before the first step, every `eval_every` steps and after the last.
        on_evaluation: called after each on every process, with whether it is the best so far; returns what to show.
        best_is_there: False where the weights of the checkpoint's best step are lost: the best is chosen anew.
        record: what made this run, as JSON; kept in its checkpoints.
        model_files: what a model folder has beside its weights; kept there too.
        save: see `guard_saves`.
        alter: (row, place in the run's sequence) -> the row as it is learned from there.
        peak_tokens_per_second: what all devices could do at most, where it is known: `mfu` is a share of it.

    Writes `metrics.jsonl` and `checkpoints/` into output_dir.

    Raises:
        RunStopped: a signal came (after the step under way was finished and saved), too many steps in a row could not
            be learned from, or nothing could be saved.
    """
    model, optimizer = accelerator.prepare(model, optimizer)
    progress, state, text = Progress(), {}, ""
    if resume_from is not None:
        state, text = load_checkpoint(resume_from, accelerator.unwrap_model(model), optimizer.optimizer)
        progress = take_fields(Progress, state["progress"])
        if not best_is_there:
            progress.best_metric, progress.best_step, progress.evaluations_since_best = None, None, 0
        if accelerator.scaler is not None and state["scaler"]:
            accelerator.scaler.load_state_dict(state["scaler"])
    save = save or guard_saves(accelerator, output_dir)
    file = output_dir / "metrics.jsonl"
    metrics = Metrics(accelerator, file, progress, text, state.get("metrics"), save, peak_tokens_per_second)
    seldom = 0.5 if sys.stderr.isatty() else 20  # seconds between updates: a log file keeps every one
    bar = tqdm(
        initial=progress.step, total=steps, desc="Training", unit="step", dynamic_ncols=True, mininterval=seldom
    )
    say = bar.write if accelerator.is_main_process else lambda text: None
    watch = Watch(evaluate, on_evaluation, settings, metrics, say)
    checkpoints = output_dir / "checkpoints"
    keep = Keeper(accelerator, model, optimizer, metrics, checkpoints, settings, record or {}, save, model_files)
    with StopSignals() as stop, bar:
        ends = watch.is_due(progress, steps) and watch(model, progress)  # also one that a signal came before
        cut = settings.batch_size, settings.accumulation_steps
        if progress.step < steps:
            cut = fit_memory(accelerator, model, optimizer, rows, collate, objective, *cut)
        share = Share(*cut, accelerator.num_processes, accelerator.process_index)
        source, cursors = _source(rows, collate, share, settings, progress, state.get("cursors", {}), alter)
        if resume_from is not None and (ends or progress.step >= steps):
            is_kept = resume_from in list_checkpoints(checkpoints) and asdict(progress) == state["progress"]
            if not is_kept:
                keep(progress, share, cursors)
            elif accelerator.is_main_process:  # a whole checkpoint is not written again
                prune(checkpoints, resume_from, settings.keep, progress.best_step)
        ahead = source.loader(progress.step if ends else steps, settings.workers, accelerator.device.type == "cuda")

        model.train()
        compiling = getattr(accelerator.unwrap_model(model), "_compiled_call_impl", None) is not None
        metrics.start_clock()
        for micro_batches, position, cursors in metrics.waiting(ahead):
            rate = learning_rate(progress.step)
            for group in optimizer.param_groups:
                group["lr"] = rate
            torch.manual_seed(derive_seed(settings.seed, progress.step, accelerator.process_index))  # dropout
            loss, tokens = _backward(accelerator, model, objective, micro_batches)
            grad_norm = _clip(accelerator, model, optimizer, settings.max_grad_norm or math.inf)
            late = settings.max_seconds is not None and metrics.seconds > settings.max_seconds
            loss, too_late, stops = agree(accelerator, loss, late, stop.received is not None)
            # Under fp16 the scaler meets gradients that are not finite by itself.
            is_good = math.isfinite(loss) and (math.isfinite(grad_norm) or accelerator.scaler is not None)
            if is_good:
                optimizer.step()
            optimizer.zero_grad()

            progress.position = position
            progress.step += 1
            watchdog.beat()
            bar.update()
            if compiling:
                say(f"The first step ended after {metrics.seconds:.0f} s, compilation and all before it included.")
                compiling = False
            if is_good:
                progress.tokens += tokens
                progress.skipped_in_a_row = 0
                if metrics.add_loss(loss):
                    which = source.describe(progress.step - 1)
                    metrics.write(progress, {"loss_spike": loss, "loss_mean": metrics.mean, **which})
            else:
                progress.skipped_steps += 1
                progress.skipped_in_a_row += 1
                which = source.describe(progress.step - 1)
                metrics.write(progress, {"skipped_steps": progress.skipped_steps, "grad_norm": grad_norm, **which})
                say(f"step {progress.step}: the loss or its gradient is not finite; the step is skipped.")
            if progress.skipped_in_a_row >= settings.max_bad_steps:
                keep.finish()
                what = f"{progress.skipped_in_a_row} steps in a row had a loss or gradient that is"
                raise Diverged(_diverged(what, progress, output_dir))

            ends = too_late or progress.step == steps
            ends = ends or (settings.max_tokens is not None and progress.tokens >= settings.max_tokens)
            if ends or _is_due(settings.log_every, progress.step):
                epoch = {} if hasattr(rows, "lanes") else {"epoch": progress.position / len(rows)}
                metrics.log(progress, bar, learning_rate=rate, grad_norm=grad_norm, **epoch)
            if not stops and watch.is_due(progress, progress.step if ends else steps):
                with metrics.pause():
                    ends = watch(model, progress) or ends
            progress.stopped_early = ends and progress.step < steps
            if ends or stops or _is_due(settings.checkpoint_every, progress.step):
                with metrics.checkpoint():
                    kept = watch.is_finite(progress) and keep(progress, share, cursors)
                if ends and not kept:
                    raise Diverged(_diverged("The weights or their evaluation are", progress, output_dir))
            if stops:
                keep.finish()
                raise RunStopped(*_stopped(stop.received, progress, output_dir))
            if ends:
                break
        keep.finish()
    return model, progress


def _source(rows, collate, share: Share, settings: Settings, progress: Progress, cursors: dict[str, Any], alter):
    """The steps of this process from where the run stands, and where its lanes of a stream stand."""
    start = (progress.step, progress.position)
    if hasattr(rows, "lanes"):
        source = StreamedSteps(rows, collate, share, start, cursors, alter)
        return source, source.cursors
    end = None if settings.epochs is None else math.ceil(settings.epochs * len(rows))
    lengths = rows.lengths if settings.group_by_length else None
    return Steps(rows, collate, share, settings.seed, end, start, lengths, alter), {}


def _backward(accelerator: Accelerator, model, objective, micro_batches: list) -> tuple[torch.Tensor, int]:
    """A step's gradient, and this process' share of its mean loss; and what it learned from, over all processes."""
    counts = _count(accelerator, objective, micro_batches)
    means = _baselines(accelerator, model, objective, micro_batches, counts)
    loss = torch.zeros((), device=accelerator.device)
    for n, (batch, counted) in enumerate(micro_batches, start=1):
        with nullcontext() if n == len(micro_batches) else accelerator.no_sync(model):
            sums = objective.sums(model, to_device(batch, accelerator.device) | means)
            part = sum(sums[name] * counted / counts[name] for name in sums)
            # DDP takes the mean over processes, and backward divides by the accumulation that Accelerate was told of.
            accelerator.backward(part * accelerator.num_processes * accelerator.gradient_accumulation_steps)
        loss += part.detach()
    return loss, int(counts.get("tokens", counts["loss"]))


def _is_due(every: int | None, step: int) -> bool:
    return bool(every) and step % every == 0


def _clip(accelerator: Accelerator, model: nn.Module, optimizer, max_norm: float) -> float:
    """The gradient's norm before it is clipped."""
    norm = clip_gradients(model.parameters(), optimizer.optimizer, max_norm, otherwise=accelerator.clip_grad_norm_)
    return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)  # FSDP's is spread over processes


def _count(accelerator: Accelerator, objective, micro_batches: list) -> dict[str, float]:
    """What a step asks over all micro-batches and processes (1 where nothing), a weighted count as a fraction."""
    counts: dict[str, float] = {}
    for batch, counted in micro_batches:
        for name, count in objective.counts(batch).items():
            counts[name] = counts.get(name, 0) + count.item() * counted
    if accelerator.num_processes > 1:
        totals = torch.tensor([*counts.values()], device=accelerator.device)
        counts = dict(zip(counts, accelerator.reduce(totals, "sum").tolist(), strict=True))
    return {name: count or 1 for name, count in counts.items()}


@torch.no_grad()
def _baselines(accelerator: Accelerator, model, objective, micro_batches: list, counts) -> dict[str, torch.Tensor]:
    """What the objective measures a step's losses from: means over all micro-batches and processes, 0-d each."""
    totals: dict[str, torch.Tensor] = {}
    for batch, counted in micro_batches if objective.baselines else []:
        for name, total in objective.baselines(model, to_device(batch, accelerator.device)).items():
            totals[name] = totals.get(name, 0) + total * counted
    return {name: accelerator.reduce(total, "sum") / counts[name] for name, total in totals.items()}


def _stopped(received: signal.Signals | None, progress: Progress, output_dir: Path) -> tuple[str, int]:
    number = received or signal.SIGTERM  # it came to another process
    return (
        f"stopped by {number.name} after step {progress.step}. {last_good(output_dir)} To continue: the same launch with "
        f"config={shlex.quote(f'{output_dir}/run.yaml')} resume='latest'",
        128 + number,
    )


def _diverged(what: str, progress: Progress, output_dir: Path) -> str:
    return (
        f"{what} not finite after step {progress.step}; metrics.jsonl names the rows of skipped steps. "
        f"{last_good(output_dir)} Resume from there with a lower learning_rate and allow_changed=True, or look at "
        "those rows."
    )


# --- Watching and keeping ----------------------------------------------------------------------------------------


class Watch:
    """Evaluate, record, remember the best; `watch(model, progress)` is True where patience has run out."""

    def __init__(self, evaluate, on_evaluation, settings: Settings, metrics: Metrics, say: Callable[[str], None]):
        self.evaluate, self.on_evaluation = evaluate, on_evaluation
        self.settings, self.metrics, self.say = settings, metrics, say

    def is_due(self, progress: Progress, last_step: int) -> bool:
        """Whether this step is to be evaluated and has not been."""
        due = progress.step in (0, last_step) or _is_due(self.settings.eval_every, progress.step)
        return self.evaluate is not None and due and progress.evaluated_at != progress.step

    def is_finite(self, progress: Progress) -> bool:
        """Whether the evaluation of this step, if there was one, says that the model still works."""
        evaluated = progress.evaluated_at == progress.step
        return not evaluated or math.isfinite(progress.last_evaluation[self.settings.best_of])

    def __call__(self, model: nn.Module, progress: Progress) -> bool:
        values = self.evaluate(model)
        self.metrics.write(progress, values)
        progress.evaluated_at, progress.last_evaluation = progress.step, values
        value = values[self.settings.best_of]
        is_best = math.isfinite(value) and (progress.best_metric is None or value < progress.best_metric)
        if is_best:
            progress.best_metric, progress.best_step, progress.evaluations_since_best = value, progress.step, 0
        else:
            progress.evaluations_since_best += 1
        text = self.on_evaluation(model, progress, is_best)
        if text:
            self.say(text)
        patience = self.settings.patience
        return patience is not None and progress.evaluations_since_best >= patience


__all__ = [
    "Diverged",
    "Progress",
    "RunStopped",
    "Settings",
    "guard_saves",
    "planned_steps",
    "train",
]
