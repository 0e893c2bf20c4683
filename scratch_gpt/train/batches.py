"""Choose the rows of each step and process: a function of (seed, step), in the same order on any number of processes.

Rows come from an endless sequence of shuffled epochs (or, streamed, from lanes: data/rows/streams.py). Step n takes
the next global batch of it. Position p in the sequence goes to process p % processes, and each process cuts its rows
into micro-batches. So a global batch holds the same rows for any number of processes.
"""

import hashlib
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from ..utils import watchdog


ItemT = TypeVar("ItemT")
Batch = dict[str, torch.Tensor]
Augment = Callable[[Any, int], Any]
SORTED_BATCHES = 50  # number of batches that are sorted together by length


def derive_seed(*parts: int) -> int:
    """Return a 63-bit seed: a hash of the parts."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


def epoch_order(rows: int, seed: int, epoch: int) -> list[int]:
    """Return a permutation of range(rows) that depends only on the arguments."""
    generator = torch.Generator().manual_seed(derive_seed(seed, epoch))
    return torch.randperm(rows, generator=generator).tolist()


def group_by_length(order: list[int], lengths: Sequence[int], batch: int, seed: int) -> list[int]:
    """Bring rows of similar length together, a batch at a time; the batches stay shuffled.

    Rows are sorted within SORTED_BATCHES batches, so that a batch differs between epochs.
    """
    batches = []
    for start in range(0, len(order), SORTED_BATCHES * batch):
        window = sorted(order[start : start + SORTED_BATCHES * batch], key=lambda i: -lengths[i])
        batches += [window[i : i + batch] for i in range(0, len(window), batch)]
    generator = torch.Generator().manual_seed(seed)
    return [i for b in torch.randperm(len(batches), generator=generator).tolist() for i in batches[b]]


def split_across_processes(
    items: Sequence[ItemT], batch_size: int, processes: int, rank: int
) -> list[tuple[Sequence[ItemT], bool]]:
    """Return the items of one process, cut into micro-batches of batch_size, as (items, is_counted).

    All processes get the same number of micro-batches: a process without items repeats one that does not count.

    Example:
        >>> split_across_processes(["a", "b", "c", "d", "e"], batch_size=2, processes=2, rank=0)
        [(['a', 'c'], True), (['e'], True)]
        >>> split_across_processes(["a", "b", "c", "d", "e"], batch_size=2, processes=2, rank=1)
        [(['b', 'd'], True), (['a'], False)]
    """
    own_items = items[rank::processes]
    largest = -(-len(items) // processes)  # items of the first process
    chunks = [(own_items[i : i + batch_size], True) for i in range(0, len(own_items), batch_size)]
    missing = -(-largest // batch_size) - len(chunks)
    return chunks + [(items[:1], False)] * missing


class BatchLayout(NamedTuple):
    """How the rows of a step are split into micro-batches and over processes."""

    batch_size: int  # rows per process and micro-batch
    accumulation_steps: int = 1
    processes: int = 1
    rank: int = 0

    @property
    def global_batch(self) -> int:
        """Return the rows of a step, over all micro-batches and processes."""
        return self.batch_size * self.accumulation_steps * self.processes

    def positions(self, start: tuple[int, int], step: int) -> range:
        """Return the positions of a step in a sequence that begins at the (step, position) `start`."""
        first = start[1] + (step - start[0]) * self.global_batch
        return range(first, first + self.global_batch)


class Step(NamedTuple):
    """The micro-batches of one process in one step, and the position after it."""

    micro_batches: list[tuple[Batch, bool]]  # (batch, is_counted)
    position: int  # rows taken from the endless sequence
    cursors: dict[str, Any]  # of this process' lanes; {} for rows with an index


class Steps:
    """The steps of one process, for rows with an index; `steps[n]` is step n.

    Args:
        end: last position of the endless sequence; None for no limit.
        start: the (step, position) that the sequence begins at.
        lengths: the lengths of the rows; a step then takes rows of similar length.
        augment: returns the row to learn from for (row, position); a pure function.
    """

    def __init__(
        self,
        rows: Sequence,
        collate: Callable[[list], Batch],
        layout: BatchLayout,
        seed: int,
        end: int | None = None,
        start: tuple[int, int] = (0, 0),
        lengths: Sequence[int] | None = None,
        augment: Augment | None = None,
    ):
        self.rows, self.collate, self.layout, self.seed, self.end, self.start = rows, collate, layout, seed, end, start
        self.lengths, self.augment = lengths, augment
        self._orders: dict[int, list[int]] = {}  # of the current epochs

    def positions(self, step: int) -> range:
        """Return the positions of step n in the endless sequence."""
        positions = self.layout.positions(self.start, step)
        return positions if self.end is None else range(positions.start, min(positions.stop, self.end))

    def index(self, position: int) -> int:
        """Return the number of the row at a position."""
        epoch, number = divmod(position, len(self.rows))
        if epoch not in self._orders:
            order = epoch_order(len(self.rows), self.seed, epoch)
            if self.lengths is not None:
                order = group_by_length(
                    order, self.lengths, self.layout.global_batch, derive_seed(self.seed, epoch, 1)
                )
            self._orders = {**dict(list(self._orders.items())[-1:]), epoch: order}  # a step may span two epochs
        return self._orders[epoch][number]

    def indices(self, step: int) -> list[int]:
        """Return the row numbers of step n, over all processes."""
        return [self.index(position) for position in self.positions(step)]

    def row(self, position: int) -> Any:
        """Return the row to learn from at a position."""
        row = self.rows[self.index(position)]
        return row if self.augment is None else self.augment(row, position)

    def __getitem__(self, step: int) -> Step:
        parts = split_across_processes(
            self.positions(step), self.layout.batch_size, self.layout.processes, self.layout.rank
        )
        batches = [
            (self.collate([self.row(position) for position in chunk]), is_counted) for chunk, is_counted in parts
        ]
        return Step(batches, self.positions(step).stop, {})

    def loader(self, steps: int, workers: int, pin_memory: bool) -> Iterable[Step]:
        """Return the steps from the start to `steps` - 1, prepared by `workers` processes."""
        return _loader(self, workers, pin_memory, sampler=range(self.start[0], steps))

    def describe(self, step: int) -> dict[str, Any]:
        """Return the rows of step n, for the record."""
        return {"rows": self.indices(step)}


class StreamedSteps(IterableDataset):
    """The steps of one process, from the lanes of a stream (data/rows/streams.py); position p is in lane p % lanes.

    Each process reads the lanes of its positions, so the number of lanes must be a multiple of `processes`.
    """

    def __init__(
        self,
        stream: Any,
        collate: Callable[[list], Batch],
        layout: BatchLayout,
        start: tuple[int, int] = (0, 0),
        cursors: dict[str, Any] | None = None,
        augment: Augment | None = None,
    ):
        if stream.lanes % layout.processes:
            raise ValueError(
                f"{stream.lanes} stream lanes cannot be shared by {layout.processes} processes. Choose stream_lanes "
                "as a multiple of the number of processes, and keep it for the whole run."
            )
        own_lanes = map(str, range(layout.rank, stream.lanes, layout.processes))
        self.cursors = {lane: (cursors or {}).get(lane) for lane in own_lanes}  # None: a lane's beginning
        self.stream, self.collate, self.layout, self.start, self.steps = stream, collate, layout, start, 0
        self.augment = augment

    def positions(self, step: int) -> range:
        """Return the positions of step n in the run's sequence."""
        return self.layout.positions(self.start, step)

    def __iter__(self) -> Iterator[Step]:
        cursors = dict(self.cursors)
        lanes = {name: self.stream.rows(int(name), cursor) for name, cursor in cursors.items()}
        for step in range(self.start[0], self.steps):
            rows = []
            for position in self.positions(step):
                name = str(position % self.stream.lanes)
                if name in lanes:
                    row, cursors[name] = next(lanes[name])
                    rows.append(row if self.augment is None else self.augment(row, position))
            batches = [
                (self.collate([*chunk]), is_counted)
                for chunk, is_counted in split_across_processes(rows, self.layout.batch_size, 1, 0)
            ]
            yield Step(batches, self.positions(step).stop, dict(cursors))

    def loader(self, steps: int, workers: int, pin_memory: bool) -> Iterable[Step]:
        """Return the steps from the start to `steps` - 1; at most one worker, because a stream is read in order."""
        self.steps = steps
        return _loader(self, min(workers, 1), pin_memory)

    def describe(self, step: int) -> dict[str, Any]:
        """Return the positions of step n, for the record: a stream's rows have no numbers."""
        return {"places": [self.positions(step).start, self.positions(step).stop - 1]}


def sample_rows(rows: Any, count: int) -> list:
    """Return `count` rows to test memory with, the longest if lengths are known; repeated if there are fewer."""
    if hasattr(rows, "lanes"):
        return [next(rows.rows(0))[0]] * count
    numbers: Sequence[int] = range(min(count, len(rows)))
    if hasattr(rows, "lengths"):
        numbers = torch.as_tensor(rows.lengths).topk(len(numbers)).indices.tolist()
    return [rows[numbers[i % len(numbers)]] for i in range(count)]


def _loader(source, workers: int, pin_memory: bool, **options) -> DataLoader:
    # A separate generator: opening a loader does not change the global random state.
    options = {**options, "pin_memory": pin_memory, "generator": torch.Generator()}
    return DataLoader(source, batch_size=None, num_workers=workers, worker_init_fn=_leave_signals, **options)


def _leave_signals(_worker: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to the whole group: the main process handles it
        signal.signal(number, signal.SIG_IGN)


def evaluation_batches(
    rows: Sequence,
    collate: Callable[[list], Batch],
    layout: BatchLayout,
    device: torch.device | str = "cpu",
    batches: int | None = None,
    workers: int = 0,
) -> Iterator[tuple[Batch, bool]]:
    """Yield (batch, is_counted) over all rows in order, split over the processes; at most `batches` per process.

    With a limit, rows are taken at even spacing, because data are often sorted.
    """
    n = len(rows) if batches is None else min(len(rows), batches * layout.batch_size * layout.processes)
    parts = split_across_processes(
        [k * len(rows) // n for k in range(n)], layout.batch_size, layout.processes, layout.rank
    )
    source = DataLoader(
        cast(Dataset, rows),  # torch takes any sequence
        batch_sampler=[[*numbers] for numbers, _ in parts],
        collate_fn=collate,
        num_workers=workers,
        worker_init_fn=_leave_signals,
        generator=torch.Generator(),
    )
    for batch, (_, is_counted) in zip(source, parts, strict=True):
        watchdog.beat()
        yield to_device(batch, device), is_counted


def to_device(batch: Batch, device: torch.device | str) -> Batch:
    """Return the batch on the model's device."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


__all__ = [
    "Augment",
    "Batch",
    "BatchLayout",
    "Step",
    "Steps",
    "StreamedSteps",
    "derive_seed",
    "epoch_order",
    "evaluation_batches",
    "group_by_length",
    "sample_rows",
    "split_across_processes",
    "to_device",
]
