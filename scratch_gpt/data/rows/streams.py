"""Stream a corpus that does not fit in memory as endless lanes of windows, which can be resumed at any window.

    shards   files of the corpus, each a sequence of documents           (shuffled by seed, lane and epoch)
    blocks   DOCUMENT_BLOCK consecutive documents of a shard    (shuffled by seed, lane, epoch, shard, block)
    lane     its shards, or every m-th block of a shard shared by m lanes; documents are joined, each followed by EOS,
             and cut into windows; tokens after a block's last full window are carried over to the next block

Row p of the run is the next window of lane p % lanes (train/batches.py), so the order does not depend on the number of
processes. A cursor is a small dict that restores the exact position; a shuffle buffer could not be restored this way.
"""

from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np

from ...tokenization.documents import EncodeBatch, encode_documents, join_encoded


DOCUMENT_BLOCK = 32  # documents


class TokenLanes:
    """Endless lanes of windows; `rows(lane, cursor)` yields the windows of one lane after a cursor.

    Args:
        read: yield the documents of shard number `shard`, beginning with number `start`: read(shard, start).
        encode_batch: encode texts as ids, without special tokens.

    Raises:
        ValueError: a lane has no documents (raised when it is read).
    """

    def __init__(
        self,
        read: Callable[[int, int], Iterator[str]],
        shards: int,
        encode_batch: EncodeBatch,
        eos_token_id: int,
        max_length: int,
        lanes: int = 8,
        seed: int = 0,
    ):
        self.read, self.shards, self.encode_batch, self.eos_token_id = read, shards, encode_batch, eos_token_id
        self.max_length, self.lanes, self.seed = max_length, lanes, seed

    def rows(self, lane: int, cursor: dict[str, Any] | None = None) -> Iterator[tuple[dict, dict[str, Any]]]:
        """Yield ({"input_ids": (T,), "shift_labels": (T,)}, cursor after the window) for each window."""
        T = self.max_length
        position = cursor or {"epoch": 0, "turn": 0, "block": None, "given": 0, "carry": []}
        windows_done, carry = (
            position["given"],
            position["carry"],
        )  # windows of the first block that were already used; ids carried over to that block
        for epoch, turn, block, ids in self._blocks(lane, position["epoch"], position["turn"], position["block"]):
            ids = np.concatenate([np.array(carry, dtype=np.int64), ids])
            windows = max(0, len(ids) - 1) // T
            for k in range(windows_done, windows):
                window = ids[k * T : (k + 1) * T + 1]
                next_cursor = {"epoch": epoch, "turn": turn, "block": block, "given": k + 1, "carry": carry}
                yield {"input_ids": window[:-1], "shift_labels": window[1:]}, next_cursor
            windows_done, carry = 0, ids[windows * T :].tolist()

    def _blocks(
        self, lane: int, epoch: int, turn: int, block: int | None
    ) -> Iterator[tuple[int, int, int, np.ndarray]]:
        # Yield (epoch, turn, block, ids of the block) endlessly; a turn is an index into the epoch's order of shards.
        own_shards = list(range(lane, self.shards, self.lanes)) or [lane % self.shards]
        sharers = max(1, len(range(lane % self.shards, self.lanes, self.shards)))
        first = lane // self.shards if sharers > 1 else 0
        while True:
            order = np.random.default_rng([self.seed, lane, epoch]).permutation(own_shards)
            has_documents = block is not None
            for place in range(turn, len(order)):
                number = first if block is None else block
                documents = self.read(int(order[place]), number * DOCUMENT_BLOCK)
                while texts := list(islice(documents, DOCUMENT_BLOCK)):
                    has_documents = True
                    yield epoch, place, number, self._encode(texts, lane, epoch, int(order[place]), number)
                    number += sharers
                    deque(islice(documents, (sharers - 1) * DOCUMENT_BLOCK), maxlen=0)  # the other lanes' blocks
                block = None
            if not has_documents:
                raise ValueError(
                    f"Lane {lane} of {self.lanes} has no documents: lanes take blocks of {DOCUMENT_BLOCK} documents. "
                    "Give fewer stream_lanes, or turn streaming off: a small corpus fits into memory."
                )
            epoch, turn = epoch + 1, 0

    def _encode(self, texts: list[str], lane: int, *where: int) -> np.ndarray:
        order = np.random.default_rng([self.seed, lane, *where]).permutation(len(texts))
        texts = [texts[i] for i in order if texts[i] and not texts[i].isspace()]
        return join_encoded(encode_documents(texts, self.encode_batch, self.eos_token_id)).ids


__all__ = ["DOCUMENT_BLOCK", "TokenLanes"]
