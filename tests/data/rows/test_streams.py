"""Test streaming: every token comes once per epoch, in an order independent of processes, and can resume anywhere."""

from itertools import islice

import numpy as np
import pytest

from scratch_gpt.data.rows.streams import DOCUMENT_BLOCK, TokenLanes
from scratch_gpt.train.batches import BatchLayout, StreamedSteps


T = 5
CORPUS = [[f"{shard * 1000 + n}" for n in range(3 * DOCUMENT_BLOCK + 7 * shard)] for shard in range(3)]


def read(shard, start):
    return iter(CORPUS[shard][start:])


def lanes(count, shards=3, seed=0):
    def encode(texts):
        return [[int(text)] * (1 + int(text) % 3) for text in texts]

    return TokenLanes(read, shards, encode, eos_token_id=9999, max_length=T, lanes=count, seed=seed)


@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_an_epoch_over_all_lanes_has_every_document_once(count):
    seen = []
    for lane in range(count):
        stream, own = lanes(count), []
        for row, cursor in stream.rows(lane):
            if cursor["epoch"] == 1:
                break
            own += row["input_ids"].tolist()
        # tokens carried into the next epoch were read in this one
        own += cursor["carry"]
        seen += [token for token in own if token != 9999]
    expected = sorted(int(t) for shard in CORPUS for t in shard for _ in range(1 + int(t) % 3))
    assert sorted(seen) == expected


@pytest.mark.parametrize("count", [2, 6])
def test_windows_continue_exactly_from_a_cursor(count):
    for lane in range(count):
        rows = list(islice(lanes(count).rows(lane), 300))
        for k in (0, 1, 57, 130, 298):
            again = list(islice(lanes(count).rows(lane, rows[k][1]), 300 - k - 1))
            for (one, a), (other, b) in zip(rows[k + 1 :], again, strict=True):
                assert a == b and np.array_equal(one["input_ids"], other["input_ids"])


def test_joined_windows_are_the_lanes_stream_and_targets_are_the_next_tokens():
    rows = [row for row, _ in islice(lanes(2).rows(1), 200)]
    for one, other in zip(rows, rows[1:], strict=False):
        assert one["shift_labels"][-1] == other["input_ids"][0]
        assert np.array_equal(one["input_ids"][1:], one["shift_labels"][:-1])


@pytest.mark.parametrize("cut", [(4, 3, 1), (2, 3, 2), (6, 2, 1), (2, 1, 6)])
def test_a_step_has_the_same_rows_on_any_number_of_processes(cut):
    def collate(rows):
        return {"input_ids": np.stack([row["input_ids"] for row in rows])}

    def steps(batch_size, accumulation, processes):
        found = []
        for rank in range(processes):
            source = StreamedSteps(lanes(6), collate, BatchLayout(batch_size, accumulation, processes, rank))
            found.append([step.micro_batches for step in source.loader(4, workers=0, pin_memory=False)])
        rows = [
            [r for parts in (f[n] for f in found) for b, _ in parts for r in b["input_ids"].tolist()] for n in range(4)
        ]
        return [sorted(step) for step in rows]

    assert steps(*cut) == steps(12, 1, 1)


def test_lanes_that_cannot_be_shared_or_are_empty_are_errors():
    with pytest.raises(ValueError, match="6 stream lanes cannot be shared by 4 processes"):
        StreamedSteps(lanes(6), None, BatchLayout(1, 1, 4, 0))
    with pytest.raises(ValueError, match="Lane 12 of 13 has no documents"):
        next(lanes(13).rows(12))
