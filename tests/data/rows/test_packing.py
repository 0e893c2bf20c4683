"""Test packing: no token is lost, each except a document's first is a target once, documents do not see others."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_model

from scratch_gpt.data.rows.collate import collate_rows
from scratch_gpt.data.rows.packing import GROUP, PackedRows, best_fit
from scratch_gpt.data.rows.windows import IGNORED
from scratch_gpt.train.objectives import causal_lm


documents = st.lists(st.integers(1, 30), min_size=1, max_size=20)


def joined(lengths: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return documents in which token t of document d is 1000 * d + t, so that every token is unique."""
    ids = np.concatenate([1000 * d + np.arange(n) for d, n in enumerate(lengths)])
    return ids.astype(np.uint32), np.cumsum(lengths)


@given(lengths=documents, max_length=st.integers(1, 16), pack=st.booleans())
@settings(deadline=None)
def test_no_token_is_lost_and_each_except_a_documents_first_is_a_target_once(lengths, max_length, pack):
    ids, ends = joined(lengths)
    rows = PackedRows(ids, ends, max_length, pack=pack)
    every = [rows[k] for k in range(len(rows))]
    assert sorted(token for row in every for token in row["input_ids"]) == sorted(ids.tolist())
    targets = [label for row in every for label in row["shift_labels"] if label != IGNORED]
    assert sorted(targets) == [token for token in sorted(ids.tolist()) if token % 1000 > 0]
    assert rows.lengths.tolist() == [len(row["input_ids"]) for row in every]
    assert rows.asked_per_row == pytest.approx(len(targets) / len(rows))
    for row in every:
        assert 1 <= len(row["input_ids"]) <= max_length
        for token, label in zip(row["input_ids"], row["shift_labels"], strict=True):
            assert label in (IGNORED, token + 1)  # the next token of the same document


@given(lengths=documents, max_length=st.integers(1, 16))
@settings(deadline=None)
def test_positions_restart_at_each_piece(lengths, max_length):
    rows = PackedRows(*joined(lengths), max_length)
    for k in range(len(rows)):
        row = rows[k]
        for t, (token, position) in enumerate(zip(row["input_ids"], row["position_ids"], strict=True)):
            assert position == (token % 1000) % max_length
            assert position == 0 or token == row["input_ids"][t - 1] + 1


@given(lengths=st.lists(st.integers(1, 50), max_size=60), capacity=st.integers(50, 80))
@settings(deadline=None)
def test_best_fit_puts_each_item_into_one_row_and_wastes_little(lengths, capacity):
    rows = best_fit(lengths, capacity)
    assert sorted(item for row in rows for item in row) == list(range(len(lengths)))
    sums = [sum(lengths[item] for item in row) for row in rows]
    assert all(total <= capacity for total in sums)
    assert len(rows) <= 11 / 9 * max(1, -(-sum(lengths) // capacity)) + 4 or min(sums) * 2 > capacity
    assert sum(2 * total <= capacity for total in sums) <= 1  # two such rows would have been packed into one


def test_best_fit_takes_the_fullest_row_that_has_room():
    # After 7 and 6, the free spaces are 3 and 4: an item of 3 goes to the row of 7, although the other has room too.
    assert best_fit([7, 6, 3, 4], 10) == [[0, 2], [1, 3]]


def test_a_row_is_filled_up_to_exactly_max_length():
    rows = PackedRows(*joined([4, 2, 3, 3]), 6)
    assert rows.lengths.tolist() == [6, 6] and rows.padding_share == 0


def test_shares_of_padding_and_of_cut_tokens():
    rows = PackedRows(*joined([9, 2]), 6)  # 6 | 3 + 2
    assert len(rows) == 2
    assert rows.padding_share == pytest.approx(1 / 12)
    assert rows.cut_share == pytest.approx(9 / 11)


def test_memory_is_bounded_by_packing_in_groups():
    lengths = [3] * (GROUP + 5)
    rows = PackedRows(np.zeros(sum(lengths), dtype=np.uint16), np.cumsum(lengths), 6)
    assert rows.lengths.sum() == sum(lengths)
    assert len(rows) == -(-GROUP // 2) + 3


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_packed_document_has_the_logits_of_the_separate_document(attention):
    model = tiny_model(attention=attention)
    lengths = [7, 5, 12, 1, 4]
    ids = np.random.default_rng(0).integers(1, 99, sum(lengths))
    ends = np.cumsum(lengths)
    rows = PackedRows(ids, ends, 16)
    packed = collate_rows([rows[k] for k in range(len(rows))], length=16)
    # A forward with shift_labels returns no logits.
    read = {name: packed[name] for name in ("input_ids", "position_ids")}
    together = model(**read, use_cache=False).logits
    seen = 0
    for b, k in enumerate(range(len(rows))):
        starts = [*np.flatnonzero(rows[k]["position_ids"] == 0), len(rows[k]["input_ids"])]
        for start, end in zip(starts, starts[1:], strict=False):
            alone = model(packed["input_ids"][b : b + 1, start:end], use_cache=False).logits
            torch.testing.assert_close(together[b, start:end], alone[0], rtol=0, atol=1e-5)
            seen += end - start
    assert seen == sum(lengths)


def test_a_packed_batch_has_the_loss_of_its_separate_documents():
    model = tiny_model(attention="sdpa")
    lengths = [7, 5, 12, 1, 4]
    ids = np.random.default_rng(0).integers(1, 99, sum(lengths))
    packed, alone = (PackedRows(ids, np.cumsum(lengths), 16, pack=pack) for pack in (True, False))
    losses = [
        causal_lm.sums(model, collate_rows([rows[k] for k in range(len(rows))]))["loss"] for rows in (packed, alone)
    ]
    torch.testing.assert_close(*losses)


@pytest.mark.parametrize(("changes", "message"), [({"max_length": 0}, "at least 1"), ({"ends": []}, "No documents")])
def test_impossible_rows_are_errors(changes, message):
    with pytest.raises(ValueError, match=message):
        PackedRows(**{"ids": np.arange(4), "ends": [4], "max_length": 4, **changes})
