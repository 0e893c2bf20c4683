"""Test windows: no token is lost, every label is the next token, and masked inputs keep their targets."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scratch_gpt.data.rows.windows import IGNORED, Windows, mask_inputs, require_full_window
from scratch_gpt.data.sources.documents import open_documents
from scratch_gpt.data.sources.token_stream import token_stream
from scratch_gpt.tokenization.tokenizer import encode_batch, load_tokenizer


def target_positions(windows: Windows) -> list[int]:
    """Return the stream positions of all targets, in the order of the windows."""
    found = []
    for k in range(len(windows)):
        row = windows[k]
        start = k * windows.stride
        found += [start + t + 1 for t, label in enumerate(row["shift_labels"]) if label != IGNORED]
    return found


streams = st.integers(2, 60).map(lambda n: np.arange(100, 100 + n, dtype=np.uint16))


lengths = st.integers(1, 20)


@given(ids=streams, max_length=lengths)
@settings(deadline=None)
def test_joined_at_stride_max_length_windows_are_the_stream(ids, max_length):
    windows = Windows(ids, max_length)
    joined = np.concatenate([windows[k]["input_ids"] for k in range(len(windows))])
    assert joined.tolist() == ids[:-1].tolist()
    assert target_positions(windows) == list(range(1, len(ids)))


@given(ids=streams, max_length=lengths, stride=lengths)
@settings(deadline=None)
def test_every_label_is_the_next_token_and_context_is_a_target_once(ids, max_length, stride):
    windows = Windows(ids, max_length, stride, overlap="context")
    for k in range(len(windows)):
        row = windows[k]
        assert 1 <= len(row["input_ids"]) <= max_length
        for t, label in enumerate(row["shift_labels"]):
            assert row["input_ids"][t] == ids[k * stride + t]
            assert label in (IGNORED, ids[k * stride + t + 1])
    if stride <= max_length:
        assert target_positions(windows) == list(range(1, len(ids)))  # each once, although windows overlap
    else:
        assert len(set(target_positions(windows))) == len(target_positions(windows))  # gaps, but no repetition


@given(ids=streams, max_length=lengths, stride=lengths)
@settings(deadline=None)
def test_every_token_is_a_target_in_overlapping_windows(ids, max_length, stride):
    if stride <= max_length:
        assert set(target_positions(Windows(ids, max_length, stride))) == set(range(1, len(ids)))


@given(ids=streams, max_length=lengths, stride=lengths)
@settings(deadline=None)
def test_drop_tail_keeps_full_windows_only(ids, max_length, stride):
    if len(ids) <= max_length:
        with pytest.raises(ValueError, match=f"The text has {len(ids):,} tokens?, but one window needs"):
            Windows(ids, max_length, stride, drop_tail=True)
        return
    windows = Windows(ids, max_length, stride, drop_tail=True)
    assert all(len(windows[k]["input_ids"]) == max_length for k in range(len(windows)))
    whole = Windows(ids, max_length, stride)
    assert len(whole) - len(windows) in (0, 1)


def test_windows_of_the_verdict_give_the_numbers_of_the_book(data):
    gpt2 = load_tokenizer(data / "gpt2-tokenizer")
    story = open_documents(str(data / "the-verdict.txt")).rows
    stream = token_stream(story, lambda texts: encode_batch(gpt2, texts), 50256, "the-verdict")
    assert (len(stream.ids), stream.bytes, len(stream.ends)) == (5146, 20479, 1)  # 5,145 tokens and EOS
    four, one = Windows(stream.ids, 4, 4), Windows(stream.ids, 4, 1)
    assert four[0]["input_ids"].tolist() == [40, 367, 2885, 1464]
    assert four[0]["shift_labels"].tolist() == [367, 2885, 1464, 1807]
    assert four[1]["input_ids"].tolist() == [1807, 3619, 402, 271]
    assert one[0]["input_ids"].tolist() == [40, 367, 2885, 1464]
    assert one[1]["input_ids"].tolist() == [367, 2885, 1464, 1807]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_length": 0}, "at least 1"),
        ({"stride": 0}, "at least 1"),
        ({"overlap": "forget"}, "'ask' or 'context'"),
        ({"ids": np.array([5])}, "The text has 1 token, but one window needs 2"),
    ],
)
def test_invalid_windows_are_errors(changes, message):
    with pytest.raises(ValueError, match=message):
        Windows(**{"ids": np.arange(9), "max_length": 4, **changes})


def test_a_split_without_a_full_window_is_an_error_with_the_tokens_needed():
    require_full_window(np.arange(5), 4, "train")
    with pytest.raises(ValueError, match=r"validation split has 4 tokens.*needs 5"):
        require_full_window(np.arange(4), 4, "validation")


@given(n=st.integers(1, 40), place=st.integers(0, 1000), most=st.integers(1, 3))
@settings(deadline=None)
def test_masked_inputs_change_one_to_three_tokens_and_no_target(n, place, most):
    row = {"input_ids": np.arange(5, 5 + n), "shift_labels": np.arange(6, 6 + n)}
    masked = mask_inputs(row, place, mask_token_id=0, most=most, seed=7)
    changed = np.flatnonzero(masked["input_ids"] != row["input_ids"])
    assert min(n, 1) <= len(changed) <= most and (masked["input_ids"][changed] == 0).all()
    assert masked["shift_labels"].tolist() == row["shift_labels"].tolist()
    again = mask_inputs(row, place, mask_token_id=0, most=most, seed=7)
    assert again["input_ids"].tolist() == masked["input_ids"].tolist()
    assert row["input_ids"].tolist() == list(range(5, 5 + n))  # the row is not changed


def test_a_row_is_masked_differently_at_each_place():
    row = {"input_ids": np.arange(5, 45), "shift_labels": np.arange(6, 46)}
    found = {tuple(mask_inputs(row, place, mask_token_id=0)["input_ids"]) for place in range(20)}
    assert len(found) > 15
