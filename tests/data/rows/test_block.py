"""Test blocks of rows: they hold the same rows as `rows[k]`."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratch_gpt.data.rows.block import ranges
from scratch_gpt.data.rows.packing import PackedRows
from scratch_gpt.data.rows.windows import Windows


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 9)), max_size=9))
def test_ranges_are_those_of_python(pairs):
    starts, lengths = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    assert ranges(starts, lengths).tolist() == [n for start, length in pairs for n in range(start, start + length)]


@pytest.mark.parametrize("max_length", [1, 4, 7])
@pytest.mark.parametrize("kind", ["pack", "pad", 1, 3, 4, 9, (3, "context"), (1, "context")])
def test_a_block_holds_the_same_rows(kind, max_length):
    lengths = [3, 1, 9, 2, 14, 1, 1, 5]
    ids = np.arange(sum(lengths), dtype=np.uint16)
    if kind in ("pack", "pad"):
        rows = PackedRows(ids, np.cumsum(lengths), max_length, pack=kind == "pack")
    else:
        stride, overlap = kind if isinstance(kind, tuple) else (kind, "ask")
        rows = Windows(ids, max_length, stride, overlap)
    for first in range(len(rows)):
        for stop in range(first + 1, len(rows) + 1):
            block = rows.block(first, stop)
            singles = [rows[k] for k in range(first, stop)]
            assert block.lengths.tolist() == [len(row["input_ids"]) for row in singles]
            for name in singles[0]:
                assert getattr(block, name).tolist() == [id for row in singles for id in row[name].tolist()]
