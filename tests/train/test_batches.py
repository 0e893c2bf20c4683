"""Test batches: each row comes once per epoch, however a batch is split."""

import math

import numpy as np
import pytest

from scratch_gpt.data.rows.collate import collate_rows
from scratch_gpt.train.batches import BatchLayout, Steps, epoch_order, evaluation_batches, group_by_length


@pytest.mark.parametrize("cut", [(8, 1, 1), (4, 2, 1), (4, 1, 2), (1, 4, 2), (2, 2, 2)])
@pytest.mark.parametrize("epochs", [1, 3])
def test_each_row_comes_once_per_epoch_and_steps_do_not_depend_on_the_split(cut, epochs):
    batch_size, accumulation, processes = cut
    # 21 is not a multiple of 8.
    rows = [{"input_ids": np.array([n]), "shift_labels": np.array([n])} for n in range(21)]
    per_step = []
    for step in range(math.ceil(21 * epochs / 8)):
        parts = [
            Steps(rows, collate_rows, BatchLayout(batch_size, accumulation, processes, rank), 5, 21 * epochs)[step][0]
            for rank in range(processes)
        ]
        assert len({len(part) for part in parts}) == 1  # every process has a part in each exchange of gradients
        seen = [int(i) for part in parts for batch, counted in part if counted for i in batch["input_ids"]]
        per_step.append(sorted(seen))
    order = [row for epoch in range(epochs) for row in epoch_order(21, 5, epoch)]
    assert per_step == [sorted(order[i : i + 8]) for i in range(0, len(order), 8)]
    assert sorted(order) == sorted(list(range(21)) * epochs)


def test_the_order_is_a_function_of_seed_and_epoch():
    assert epoch_order(50, 1, 0) == epoch_order(50, 1, 0)
    assert len({tuple(epoch_order(50, seed, epoch)) for seed in (1, 2) for epoch in (0, 1)}) == 4


def test_batches_of_similar_length_have_each_row_once_and_little_padding():
    lengths = [int(n) for n in np.random.default_rng(0).integers(1, 100, 203)]
    order = group_by_length(epoch_order(203, 1, 0), lengths, batch=8, seed=3)
    assert sorted(order) == list(range(203))
    assert order == group_by_length(epoch_order(203, 1, 0), lengths, batch=8, seed=3)
    assert order != group_by_length(epoch_order(203, 1, 0), lengths, batch=8, seed=4)

    def filling(order):
        batches = [[lengths[i] for i in order[k : k + 8]] for k in range(0, len(order), 8)]
        return sum(len(batch) * max(batch) - sum(batch) for batch in batches)

    assert filling(order) < filling(epoch_order(203, 1, 0)) / 5


def test_rows_grouped_by_length_do_not_depend_on_the_split_of_the_batch():
    rows = [{"input_ids": np.arange(n + 1), "shift_labels": np.arange(n + 1)} for n in range(21)]
    lengths = [n + 1 for n in range(21)]
    whole = Steps(rows, collate_rows, BatchLayout(8), 5, lengths=lengths)
    cut = Steps(rows, collate_rows, BatchLayout(2, 2, 2), 5, lengths=lengths)
    assert [whole.indices(step) for step in range(6)] == [cut.indices(step) for step in range(6)]


def test_a_row_is_augmented_by_its_position_however_the_batch_is_split():
    rows = [{"input_ids": np.array([n]), "shift_labels": np.array([n])} for n in range(21)]
    augment = lambda row, place: {**row, "input_ids": row["input_ids"] + 100 * place}  # noqa: E731
    for step in range(6):
        seen = set()
        for rank in range(2):
            source = Steps(rows, collate_rows, BatchLayout(2, 2, 2, rank), 5, augment=augment)
            seen |= {int(i) for batch, _ in source[step].micro_batches for i in batch["input_ids"]}
        expected = zip(source.positions(step), source.indices(step), strict=True)
        assert seen == {row + 100 * place for place, row in expected}


def test_a_limited_number_of_batches_is_spread_evenly_over_the_rows():
    rows = [{"input_ids": np.array([n]), "shift_labels": np.array([n])} for n in range(100)]
    for processes in (1, 2):
        seen = []
        for rank in range(processes):
            batches = evaluation_batches(rows, collate_rows, BatchLayout(5, 1, processes, rank), batches=2)
            seen += [int(n) for batch, counted in batches if counted for n in batch["input_ids"]]
        n = 10 * processes
        assert sorted(seen) == [*range(0, 100, 100 // n)]
    batches = evaluation_batches(rows, collate_rows, BatchLayout(5), batches=50)
    assert sorted(int(n) for batch, _ in batches for n in batch["input_ids"]) == [*range(100)]
