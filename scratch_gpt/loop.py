"""Rows, a model and an objective -> a trained model: the only training loop, on Accelerate.

One step is one optimizer update over a global batch of batch_size x accumulation_steps x processes rows. Which rows
those are is a function of (seed, step) alone, not of how the global batch is cut. Neither is the gradient: every sum
is divided once, by the count over all micro-batches and processes.
"""

import gc
import hashlib
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import parse_flag_from_env, tqdm
from accelerate.utils.memory import should_reduce_batch_size
from torch import nn
from torch.utils.data import DataLoader

from .checkpoints import check_fits, load_checkpoint, save_checkpoint
from .metrics import Metrics


Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Settings:
    """How a run goes, whatever its task. Of the limits, the first that is reached ends it; None is no limit."""

    batch_size: int  # rows per process and micro-batch
    accumulation_steps: int = 1
    max_steps: int | None = None
    epochs: float | None = None
    max_tokens: int | None = None  # targets
    max_seconds: float | None = None
    max_grad_norm: float | None = 1.0
    eval_every: int | None = None  # steps; the first and the last are evaluated in any case
    patience: int | None = None  # evaluations without a new best before the run ends
    best_of: str = "eval_loss"
    checkpoint_every: int | None = None  # steps; the last is kept in any case
    keep: int = 2
    log_every: int = 10
    workers: int = 0
    seed: int = 0


@dataclass
class Progress:
    """Where a run stands: what a resumed run needs besides weights and optimizer."""

    step: int = 0
    position: int = 0  # rows taken from the endless sequence of shuffled epochs
    tokens: int = 0  # targets learned from
    best_metric: float | None = None
    best_step: int | None = None
    evaluations_since_best: int = 0
    last_evaluation: dict[str, float] = field(default_factory=dict)
    stopped_early: bool = False


# --- Starting ----------------------------------------------------------------------------------------------------


def best_precision(device: str) -> str:
    """What the device does well: "bf16" where it is native, else "no", which is fp32."""
    if device == "cpu":
        able = torch.cpu.get_capabilities()
        return "bf16" if able.get("avx512_bf16") or able.get("amx_bf16") else "no"
    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    return "no"


def make_accelerator(
    device: str = "auto",
    mixed_precision: str = "auto",
    expect_processes: int | None = None,
    report_to: str | None = None,
    output_dir: Path | None = None,
) -> Accelerator:
    """The Accelerator of this launch.

    Raises:
        ValueError: a device that is not there, or another number of processes than was asked for.
    """
    found = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if parse_flag_from_env("ACCELERATE_USE_CPU"):  # what `use_cpu: true` in a launch file becomes
        found = "cpu"
    device = found if device == "auto" else device
    if device not in ("cpu", found):
        raise ValueError(f"device {device} was asked for, but this machine has {found}. Give --device {found}.")
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if expect_processes is not None and launched != expect_processes:
        raise ValueError(
            f"expect_processes is {expect_processes}, but {launched} started. (`accelerate launch --cpu "
            "--num_processes N` always starts one.) Launch as the README shows for several processes."
        )
    if mixed_precision == "fp16" and device == "cpu":
        raise ValueError("mixed_precision fp16 needs a GPU; on a CPU give bf16 or no.")
    accelerator = Accelerator(
        cpu=device == "cpu",
        mixed_precision=best_precision(device) if mixed_precision == "auto" else mixed_precision,
        log_with=report_to,
        project_dir=str(output_dir) if report_to else None,
    )
    if accelerator.num_processes != launched:
        raise ValueError(f"{launched} processes were launched, but they do not form one group of {launched}.")
    return accelerator


# --- Which rows come when ----------------------------------------------------------------------------------------


def derive_seed(*parts: int) -> int:
    """A 63-bit seed that is a function of its parts, well mixed."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


@lru_cache(maxsize=2)
def epoch_order(rows: int, seed: int, epoch: int) -> list[int]:
    """A permutation of range(rows), a function of its arguments alone."""
    generator = torch.Generator().manual_seed(derive_seed(seed, epoch))
    return torch.randperm(rows, generator=generator).tolist()


def deal(indices: Sequence[int], batch_size: int, processes: int, rank: int) -> list[tuple[Sequence[int], bool]]:
    """Cut indices into chunks of batch_size; chunk m * processes + r is the m-th of process r, as (chunk, counted).

    All processes get the same number, so that they stay in step: who has none left repeats one row, not counted.
    """
    chunks = [indices[i : i + batch_size] for i in range(0, len(indices), batch_size)]
    mine = chunks[rank::processes]
    missing = -(-len(chunks) // processes) - len(mine)
    return [(chunk, True) for chunk in mine] + [(indices[:1], False)] * missing


class Steps:
    """`steps[n]` -> the micro-batches of step n for one process, as (batch, counted) pairs.

    The rows of an endless sequence of shuffled epochs, `end` of them at most, `global_batch` a step, dealt out to the
    processes by `deal`.
    """

    def __init__(
        self,
        rows: Sequence,
        collate: Callable[[list], Batch],
        settings: Settings,
        processes: int = 1,
        rank: int = 0,
        end: int | None = None,
        start: tuple[int, int] = (0, 0),  # (step, position) that the sequence is entered at
    ):
        self.rows, self.collate, self.seed = rows, collate, settings.seed
        self.batch_size, self.processes, self.rank = settings.batch_size, processes, rank
        self.global_batch = settings.batch_size * settings.accumulation_steps * processes
        self.end, self.start = end, start

    def positions(self, step: int) -> range:
        """The places in the endless sequence that step n takes its rows from."""
        first = self.start[1] + (step - self.start[0]) * self.global_batch
        last = first + self.global_batch
        return range(first, last if self.end is None else min(last, self.end))

    def __getitem__(self, step: int) -> list[tuple[Batch, bool]]:
        n = len(self.rows)
        indices = [epoch_order(n, self.seed, place // n)[place % n] for place in self.positions(step)]
        dealt = deal(indices, self.batch_size, self.processes, self.rank)
        return [(self.collate([self.rows[i] for i in chunk]), counted) for chunk, counted in dealt]


def data_fingerprint(settings: Settings, rows: Sequence) -> dict[str, int]:
    """What decides which rows come when: a run can only go on with the same."""
    return {"seed": settings.seed, "rows": len(rows)}


def evaluation_batches(
    accelerator: Accelerator,
    rows: Sequence,
    collate: Callable[[list], Batch],
    batch_size: int,
    batches: int | None = None,
    workers: int = 0,
) -> Iterator[tuple[Batch, bool]]:
    """(batch, counted) over all rows in order, shared out over the processes; `batches` a process at most."""
    n = len(rows) if batches is None else min(len(rows), batches * batch_size * accelerator.num_processes)
    dealt = deal(range(n), batch_size, accelerator.num_processes, accelerator.process_index)
    mine = [chunk for chunk, _ in dealt]
    source = DataLoader(rows, batch_sampler=mine, collate_fn=collate, num_workers=workers, generator=torch.Generator())
    for batch, (_, counted) in zip(source, dealt, strict=True):
        yield to_device(batch, accelerator.device), counted


def to_device(batch: Batch, device: torch.device) -> Batch:
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def planned_steps(settings: Settings, rows: int, processes: int, tokens_per_row: float) -> int:
    """The number of optimizer steps until the first limit (other than time) is reached; ValueError without one."""
    global_batch = settings.batch_size * settings.accumulation_steps * processes
    limits = []
    if settings.max_steps is not None:
        limits.append(settings.max_steps)
    if settings.epochs is not None:
        limits.append(math.ceil(settings.epochs * rows / global_batch))
    if settings.max_tokens is not None:
        limits.append(math.ceil(settings.max_tokens / (tokens_per_row * global_batch)))
    if not limits:
        raise ValueError("Nothing says how long to train: give --max-steps, --epochs or --max-tokens.")
    return min(limits)


# --- The loop ----------------------------------------------------------------------------------------------------


def train(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    learning_rate: Callable[[int], float],
    rows: Sequence,
    collate: Callable[[list], Batch],
    objective: Any,
    settings: Settings,
    steps: int,
    output_dir: Path,
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
    on_evaluation: Callable[[nn.Module, Progress, bool], str] = lambda model, progress, is_best: "",
    resume_from: Path | None = None,
) -> tuple[nn.Module, Progress]:
    """Train for `steps` steps; returns the prepared model and where it stands.

    Args:
        learning_rate: step, counted from 0 -> its rate.
        rows: indexable and sized; `collate` makes a batch of a list of them, `objective` (objectives.py) scores it.
        evaluate: model -> {"eval_loss": ..., ...}, before the first step, every `eval_every` steps and after the last.
        on_evaluation: called after each on every process, with whether it is the best so far; returns what to show.

    Writes `metrics.jsonl` and `checkpoints/` into output_dir.
    """
    model, optimizer = accelerator.prepare(model, optimizer)
    progress = Progress()
    fingerprint = data_fingerprint(settings, rows)
    if resume_from is not None:
        progress = _resume(resume_from, accelerator.unwrap_model(model), optimizer, fingerprint)
    metrics = Metrics(accelerator, output_dir / "metrics.jsonl", progress)
    seldom = 0.5 if sys.stderr.isatty() else 20  # seconds between updates: a log file keeps every one
    bar = tqdm(
        initial=progress.step, total=steps, desc="Training", unit="step", dynamic_ncols=True, mininterval=seldom
    )
    watch = Watch(accelerator, evaluate, on_evaluation, settings, metrics, bar)
    if progress.step == 0:
        watch(model, progress)
    if progress.step < steps:
        settings = _fit_memory(accelerator, model, optimizer, rows, collate, objective, settings)

    end = None if settings.epochs is None else math.ceil(settings.epochs * len(rows))
    source = Steps(
        *(rows, collate, settings, accelerator.num_processes, accelerator.process_index, end),
        start=(progress.step, progress.position),
    )
    ahead = DataLoader(
        source,
        batch_size=None,
        sampler=range(progress.step, steps),
        num_workers=settings.workers,
        pin_memory=accelerator.device.type == "cuda",
        generator=torch.Generator(),  # its own: opening a loader leaves the global random state alone
    )
    model.train()
    metrics.start_clock()
    for micro_batches in ahead:
        late = settings.max_seconds is not None and metrics.seconds > settings.max_seconds
        counts, too_late = _totals(accelerator, objective, micro_batches, late)
        rate = learning_rate(progress.step)
        for group in optimizer.param_groups:
            group["lr"] = rate

        torch.manual_seed(derive_seed(settings.seed, progress.step, accelerator.process_index))  # dropout
        for n, (batch, counted) in enumerate(micro_batches, start=1):
            with nullcontext() if n == len(micro_batches) else accelerator.no_sync(model):
                sums = objective.sums(model, to_device(batch, accelerator.device))
                loss = sum(sums[name] * counted / counts[name] for name in sums)
                accelerator.backward(loss * accelerator.num_processes)  # DDP takes the mean over processes
            metrics.add_loss(loss)
        grad_norm = accelerator.clip_grad_norm_(model.parameters(), settings.max_grad_norm or math.inf)
        optimizer.step()
        optimizer.zero_grad()

        progress.position = source.positions(progress.step).stop
        progress.step += 1
        progress.tokens += counts["loss"]
        ends = too_late or progress.step == steps
        ends = ends or (settings.max_tokens is not None and progress.tokens >= settings.max_tokens)
        bar.update()
        if ends or _is_due(settings.log_every, progress.step):
            metrics.log(progress, bar, learning_rate=rate, grad_norm=grad_norm, epoch=progress.position / len(rows))
        if ends or _is_due(settings.eval_every, progress.step):
            with metrics.pause():
                ends = watch(model, progress) or ends
        progress.stopped_early = ends and progress.step < steps
        if ends or _is_due(settings.checkpoint_every, progress.step):
            with metrics.pause():
                _checkpoint(accelerator, model, optimizer, progress, fingerprint, output_dir, settings.keep)
        if ends:
            break
    bar.close()
    return model, progress


def _is_due(every: int | None, step: int) -> bool:
    return bool(every) and step % every == 0


def _totals(accelerator: Accelerator, objective, micro_batches: list, late: bool) -> tuple[dict[str, int], bool]:
    """What a step asks over all micro-batches and processes (1 where nothing), and whether any process is late."""
    counts: dict[str, int] = {}
    for batch, counted in micro_batches:
        for name, count in objective.counts(batch).items():
            counts[name] = counts.get(name, 0) + int(count) * counted
    if accelerator.num_processes > 1:
        totals = torch.tensor([*counts.values(), int(late)], device=accelerator.device)
        *sums, late = accelerator.reduce(totals, "sum").tolist()
        counts = dict(zip(counts, sums, strict=True))
    return {name: max(count, 1) for name, count in counts.items()}, bool(late)


def _fit_memory(accelerator, model, optimizer, rows, collate, objective, settings: Settings) -> Settings:
    """Rehearse one micro-batch; while it does not fit, halve it and accumulate twice as often (the same gradient).

    Before the first step, so that all processes decide together. The optimizer's state is set aside meanwhile.
    """
    while True:
        full = collate([rows[i % len(rows)] for i in range(settings.batch_size)])
        fits = int(_rehearse(accelerator, model, objective, full))
        optimizer.zero_grad()
        if int(accelerator.reduce(torch.tensor(fits, device=accelerator.device), "sum")) == accelerator.num_processes:
            return settings
        gc.collect()
        if accelerator.device.type == "cuda":
            torch.cuda.empty_cache()
        if settings.batch_size == 1:
            raise MemoryError(
                "Out of memory with a single row. What helps: --gradient-checkpointing true, a smaller --max-length, "
                "--mixed-precision bf16, a smaller model."
            )
        cut = next(n for n in range(2, settings.batch_size + 1) if settings.batch_size % n == 0)
        changed = {"batch_size": settings.batch_size // cut, "accumulation_steps": settings.accumulation_steps * cut}
        accelerator.print(
            f"Out of memory at batch_size {settings.batch_size}: going on with batch_size {changed['batch_size']} and "
            f"accumulation_steps {changed['accumulation_steps']}, which gives the same gradient."
        )
        settings = replace(settings, **changed)


def _rehearse(accelerator, model, objective, batch: Batch) -> bool:
    """Whether forward, backward and the optimizer's state have room; what was taken is free again on return."""
    try:
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        _state = [torch.empty_like(parameter) for parameter in trained for _ in range(2)]
        with accelerator.no_sync(model):
            sums = objective.sums(model, to_device(batch, accelerator.device))
            accelerator.backward(sum(sums.values()) * 0.0)
    except RuntimeError as error:
        if not should_reduce_batch_size(error):
            raise
        return False
    return True


# --- Watching and keeping ------------------------------------------------------------------------------------


class Watch:
    """Evaluate, record, remember the best; `watch(model, progress)` is True where patience has run out."""

    def __init__(self, accelerator, evaluate, on_evaluation, settings: Settings, metrics: Metrics, bar):
        self.accelerator, self.evaluate, self.on_evaluation = accelerator, evaluate, on_evaluation
        self.settings, self.metrics, self.bar = settings, metrics, bar

    def __call__(self, model: nn.Module, progress: Progress) -> bool:
        if self.evaluate is None:
            return False
        values = self.evaluate(model)
        self.metrics.write(progress, values)
        progress.last_evaluation = values
        best = values[self.settings.best_of]
        is_best = progress.best_metric is None or best < progress.best_metric
        if is_best:
            progress.best_metric, progress.best_step, progress.evaluations_since_best = best, progress.step, 0
        else:
            progress.evaluations_since_best += 1
        text = self.on_evaluation(model, progress, is_best)
        if text and self.accelerator.is_main_process:
            self.bar.write(text)
        patience = self.settings.patience
        return patience is not None and progress.evaluations_since_best >= patience


def _checkpoint(accelerator, model, optimizer, progress: Progress, fingerprint: dict, output_dir: Path, keep: int):
    if accelerator.is_main_process:
        state = {"progress": asdict(progress), "fingerprint": fingerprint}
        unwrapped = accelerator.unwrap_model(model)
        save_checkpoint(output_dir / "checkpoints", progress.step, unwrapped, optimizer.optimizer, state, keep)
    accelerator.wait_for_everyone()


def _resume(path: Path, model: nn.Module, optimizer, fingerprint: dict) -> Progress:
    check_fits(path, model, fingerprint)
    state = load_checkpoint(path, model, optimizer.optimizer)
    return Progress(**state["progress"])


__all__ = [
    "Progress",
    "Settings",
    "Steps",
    "best_precision",
    "data_fingerprint",
    "evaluation_batches",
    "make_accelerator",
    "planned_steps",
    "train",
]
