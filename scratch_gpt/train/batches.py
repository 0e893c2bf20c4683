"""(seed, step) -> the rows of that step, and which process takes which: the same order on any number of processes.

Rows come from an endless sequence of shuffled epochs (or, streamed, from lanes: data/streams.py). Step n takes the
next global batch of it. A place p in the sequence goes to process p % processes, whose share is cut into
micro-batches; so a global batch holds the same rows however many processes share it.
"""

import hashlib
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, IterableDataset

from ..utils import watchdog


Batch = dict[str, torch.Tensor]
Alter = Callable[[Any, int], Any]
WITHIN = 50  # batches whose rows are sorted together by length


def derive_seed(*parts: int) -> int:
    """A 63-bit seed that is a function of its parts, well mixed."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


def epoch_order(rows: int, seed: int, epoch: int) -> list[int]:
    """A permutation of range(rows), a function of its arguments alone."""
    generator = torch.Generator().manual_seed(derive_seed(seed, epoch))
    return torch.randperm(rows, generator=generator).tolist()


def like_lengths(order: list[int], lengths: Sequence[int], batch: int, seed: int) -> list[int]:
    """The order with rows of like length brought together, a batch at a time; the batches stay shuffled.

    Sorted is only within WITHIN batches' worth of rows, so that a batch is not the same in every epoch.
    """
    batches = []
    for start in range(0, len(order), WITHIN * batch):
        near = sorted(order[start : start + WITHIN * batch], key=lambda i: -lengths[i])
        batches += [near[i : i + batch] for i in range(0, len(near), batch)]
    generator = torch.Generator().manual_seed(seed)
    return [i for b in torch.randperm(len(batches), generator=generator).tolist() for i in batches[b]]


def deal(items: Sequence, batch_size: int, processes: int, rank: int) -> list[tuple[Sequence, bool]]:
    """The items of one process, cut into micro-batches of batch_size, as (items, counted).

    All processes get the same number, so that they stay in step: who has none left repeats one item, not counted.

    Example:
        >>> deal(["a", "b", "c", "d", "e"], batch_size=2, processes=2, rank=0)
        [(['a', 'c'], True), (['e'], True)]
        >>> deal(["a", "b", "c", "d", "e"], batch_size=2, processes=2, rank=1)
        [(['b', 'd'], True), (['a'], False)]
    """
    mine = items[rank::processes]
    most = -(-len(items) // processes)  # items of the first process
    chunks = [(mine[i : i + batch_size], True) for i in range(0, len(mine), batch_size)]
    missing = -(-most // batch_size) - len(chunks)
    return chunks + [(items[:1], False)] * missing


class Share(NamedTuple):
    """How the rows of a step are shared out."""

    batch_size: int  # rows per process and micro-batch
    accumulation_steps: int = 1
    processes: int = 1
    rank: int = 0

    @property
    def global_batch(self) -> int:
        """Rows of a step, over all micro-batches and processes."""
        return self.batch_size * self.accumulation_steps * self.processes

    def places(self, start: tuple[int, int], step: int) -> range:
        """What a step takes of a sequence that is entered at the (step, position) `start`."""
        first = start[1] + (step - start[0]) * self.global_batch
        return range(first, first + self.global_batch)


class Step(NamedTuple):
    """What one process does in one step, and where the sequence stands after it."""

    micro_batches: list[tuple[Batch, bool]]  # (batch, counted)
    position: int  # places taken from the endless sequence
    cursors: dict[str, Any]  # of this process' lanes; {} for rows with an index


class Steps:
    """`steps[n]` -> step n of one process, for rows with an index.

    Args:
        end: places of the endless sequence that there are at most; None is no limit.
        start: the (step, position) that the sequence is entered at.
        lengths: of the rows, where a step is to take rows of like length.
        alter: (row, place) -> the row as it is learned from there, a pure function.
    """

    def __init__(
        self,
        rows: Sequence,
        collate: Callable[[list], Batch],
        share: Share,
        seed: int,
        end: int | None = None,
        start: tuple[int, int] = (0, 0),
        lengths: Sequence[int] | None = None,
        alter: Alter | None = None,
    ):
        self.rows, self.collate, self.share, self.seed, self.end, self.start = rows, collate, share, seed, end, start
        self.lengths, self.alter = lengths, alter
        self._orders: dict[int, list[int]] = {}  # of the epochs at hand

    def places(self, step: int) -> range:
        """The places in the endless sequence that step n takes."""
        places = self.share.places(self.start, step)
        return places if self.end is None else range(places.start, min(places.stop, self.end))

    def index(self, place: int) -> int:
        """The number of the row at a place."""
        epoch, number = divmod(place, len(self.rows))
        if epoch not in self._orders:
            order = epoch_order(len(self.rows), self.seed, epoch)
            if self.lengths is not None:
                order = like_lengths(order, self.lengths, self.share.global_batch, derive_seed(self.seed, epoch, 1))
            self._orders = {**dict(list(self._orders.items())[-1:]), epoch: order}  # a step may span two epochs
        return self._orders[epoch][number]

    def indices(self, step: int) -> list[int]:
        """The row numbers of step n, over all processes."""
        return [self.index(place) for place in self.places(step)]

    def row(self, place: int) -> Any:
        """What is learned from at a place."""
        row = self.rows[self.index(place)]
        return row if self.alter is None else self.alter(row, place)

    def __getitem__(self, step: int) -> Step:
        dealt = deal(self.places(step), self.share.batch_size, self.share.processes, self.share.rank)
        batches = [(self.collate([self.row(place) for place in chunk]), counted) for chunk, counted in dealt]
        return Step(batches, self.places(step).stop, {})

    def loader(self, steps: int, workers: int, pin_memory: bool) -> Iterable[Step]:
        """Steps start ... `steps` - 1, prepared by `workers` processes."""
        return _loader(self, workers, pin_memory, sampler=range(self.start[0], steps))

    def describe(self, step: int) -> dict[str, Any]:
        """Which rows step n takes, for the record."""
        return {"rows": self.indices(step)}


class StreamedSteps(IterableDataset):
    """Steps from the lanes of a stream (data/streams.py), place p from lane p % lanes.

    Each process reads the lanes whose places are its own, so their number has to be a multiple of `processes`.
    """

    def __init__(
        self,
        stream: Any,
        collate: Callable[[list], Batch],
        share: Share,
        start: tuple[int, int] = (0, 0),
        cursors: dict[str, Any] | None = None,
        alter: Alter | None = None,
    ):
        if stream.lanes % share.processes:
            raise ValueError(
                f"{stream.lanes} stream lanes cannot be shared by {share.processes} processes. Choose a "
                "stream_lanes that is a multiple of them, and keep it for the whole run."
            )
        mine = map(str, range(share.rank, stream.lanes, share.processes))
        self.cursors = {lane: (cursors or {}).get(lane) for lane in mine}  # None is a lane's beginning
        self.stream, self.collate, self.share, self.start, self.steps = stream, collate, share, start, 0
        self.alter = alter

    def places(self, step: int) -> range:
        """The places in the run's sequence that step n takes."""
        return self.share.places(self.start, step)

    def __iter__(self) -> Iterator[Step]:
        cursors = dict(self.cursors)
        lanes = {name: self.stream.rows(int(name), cursor) for name, cursor in cursors.items()}
        for step in range(self.start[0], self.steps):
            rows = []
            for place in self.places(step):
                name = str(place % self.stream.lanes)
                if name in lanes:
                    row, cursors[name] = next(lanes[name])
                    rows.append(row if self.alter is None else self.alter(row, place))
            batches = [(self.collate(chunk), counted) for chunk, counted in deal(rows, self.share.batch_size, 1, 0)]
            yield Step(batches, self.places(step).stop, dict(cursors))

    def loader(self, steps: int, workers: int, pin_memory: bool) -> Iterable[Step]:
        """Steps start ... `steps` - 1; one worker process at most, since what it reads has an order."""
        self.steps = steps
        return _loader(self, min(workers, 1), pin_memory)

    def describe(self, step: int) -> dict[str, Any]:
        """Which places step n takes, for the record: a stream's rows have no numbers."""
        return {"places": [self.places(step).start, self.places(step).stop - 1]}


def some_rows(rows: Any, count: int) -> list:
    """`count` rows to rehearse with, again and again where there are fewer: the longest, where lengths are known."""
    if hasattr(rows, "lanes"):
        return [next(rows.rows(0))[0]] * count
    some: Sequence[int] = range(min(count, len(rows)))
    if hasattr(rows, "lengths"):
        some = torch.as_tensor(rows.lengths).topk(len(some)).indices.tolist()
    return [rows[some[i % len(some)]] for i in range(count)]


def _loader(source, workers: int, pin_memory: bool, **options) -> DataLoader:
    # A generator of its own: opening a loader leaves the global random state alone.
    options = {**options, "pin_memory": pin_memory, "generator": torch.Generator()}
    return DataLoader(source, batch_size=None, num_workers=workers, worker_init_fn=_leave_signals, **options)


def _leave_signals(_worker: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # a signal to the whole group: the main process deals with it
        signal.signal(number, signal.SIG_IGN)


def evaluation_batches(
    rows: Sequence,
    collate: Callable[[list], Batch],
    share: Share,
    device: torch.device | str = "cpu",
    batches: int | None = None,
    workers: int = 0,
) -> Iterator[tuple[Batch, bool]]:
    """(batch, counted) over all rows in order, shared out over the processes; `batches` a process at most.

    Fewer than all are taken from everywhere at the same distance: data are often sorted.
    """
    n = len(rows) if batches is None else min(len(rows), batches * share.batch_size * share.processes)
    dealt = deal([k * len(rows) // n for k in range(n)], share.batch_size, share.processes, share.rank)
    mine = [chunk for chunk, _ in dealt]
    source = DataLoader(
        rows,
        batch_sampler=mine,
        collate_fn=collate,
        num_workers=workers,
        worker_init_fn=_leave_signals,
        generator=torch.Generator(),
    )
    for batch, (_, counted) in zip(source, dealt, strict=True):
        watchdog.beat()
        yield to_device(batch, device), counted


def to_device(batch: Batch, device: torch.device | str) -> Batch:
    """The batch where the model is."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


__all__ = [
    "Share",
    "Step",
    "Steps",
    "StreamedSteps",
    "deal",
    "derive_seed",
    "epoch_order",
    "evaluation_batches",
    "like_lengths",
    "some_rows",
    "to_device",
]
