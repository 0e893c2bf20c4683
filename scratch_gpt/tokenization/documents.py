"""Encode documents as ids followed by EOS; used by training, preparation and streaming."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from typing import NamedTuple

import numpy as np


CALL_BYTES = 2**20  # maximum text in one call of the tokenizer
CALLS_AHEAD = 2  # calls that are prepared while one is running

# encode texts as ids, without special tokens
EncodeBatch = Callable[[list[str]], Sequence[Sequence[int] | np.ndarray]]


class Encoded(NamedTuple):
    """Consecutive documents, joined, each followed by EOS."""

    ids: np.ndarray  # (tokens,) uint32
    lengths: np.ndarray  # (documents,) tokens of each document, EOS included
    bytes: np.ndarray  # (documents,) UTF-8 bytes of each document


def encode_documents(texts: Iterable[str], encode_batch: EncodeBatch, eos_token_id: int) -> Iterator[Encoded]:
    """Yield the ids of the documents, in order.

    The tokenizer encodes several documents per call, at most CALL_BYTES of text or one longer document. The ids do not
    depend on the grouping. While it encodes, the next documents are read, and the last ones are used.
    """
    calls: deque[tuple[Future[Sequence[Sequence[int] | np.ndarray]], list[int]]] = deque()
    with ThreadPoolExecutor(1, "encode") as pool:
        try:
            for batch, sizes in _batches(texts):
                calls.append((pool.submit(encode_batch, batch), sizes))
                if len(calls) > CALLS_AHEAD:
                    call, sizes = calls.popleft()
                    yield _join(call.result(), sizes, eos_token_id)
            while calls:
                call, sizes = calls.popleft()
                yield _join(call.result(), sizes, eos_token_id)
        finally:
            for call, _ in calls:
                call.cancel()  # after an error the others are not encoded


def _join(rows: Sequence[Sequence[int] | np.ndarray], sizes: list[int], eos_token_id: int) -> Encoded:
    lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows)) + 1
    ids = np.empty(int(lengths.sum()), dtype=np.uint32)
    is_end = np.zeros(len(ids), dtype=bool)
    is_end[np.cumsum(lengths) - 1] = True
    ids[is_end] = eos_token_id
    if isinstance(rows[0], np.ndarray):
        ids[~is_end] = np.concatenate(rows)
    else:
        ids[~is_end] = np.fromiter(chain.from_iterable(rows), dtype=np.uint32, count=len(ids) - len(rows))
    return Encoded(ids, lengths, np.array(sizes, dtype=np.int64))


def join_encoded(parts: Iterable[Encoded]) -> Encoded:
    """Return all documents of some parts in one."""
    empty = Encoded(np.empty(0, np.uint32), np.empty(0, np.int64), np.empty(0, np.int64))
    return Encoded(*(np.concatenate(values) for values in zip(empty, *parts, strict=True)))


def _batches(texts: Iterable[str]) -> Iterator[tuple[list[str], list[int]]]:
    batch, sizes, total = [], [], 0
    for text in texts:
        size = len(text.encode())
        if batch and total + size > CALL_BYTES:
            yield batch, sizes
            batch, sizes, total = [], [], 0
        batch.append(text)
        sizes.append(size)
        total += size
    if batch:
        yield batch, sizes


__all__ = ["EncodeBatch", "Encoded", "encode_documents", "join_encoded"]
