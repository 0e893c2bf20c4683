"""Test batches: short rows are padded with positions without a target, and there are few batch lengths."""

import numpy as np
import pytest
import torch

from scratch_gpt.data.rows.collate import collate_rows
from scratch_gpt.data.rows.windows import Windows


def test_short_rows_are_padded_with_positions_without_target():
    windows = Windows(np.arange(10, 17), 4)
    batch = collate_rows([windows[0], windows[1]], pad_token_id=1, length=4)
    assert batch["input_ids"].tolist() == [[10, 11, 12, 13], [14, 15, 1, 1]]
    assert batch["shift_labels"].tolist() == [[11, 12, 13, 14], [15, 16, -100, -100]]
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())


@pytest.mark.parametrize(
    ("longest", "max_length", "T"), [(3, None, 3), (3, 64, 8), (8, 64, 8), (9, 64, 16), (9, 12, 12)]
)
def test_padded_batches_have_few_lengths(longest, max_length, T):
    rows = [{"input_ids": np.arange(n), "shift_labels": np.arange(n)} for n in (1, longest)]
    batch = collate_rows(rows, pad_token_id=7, max_length=max_length)
    assert batch["input_ids"].shape == (2, T) and (batch["shift_labels"][1, longest:] == -100).all()
