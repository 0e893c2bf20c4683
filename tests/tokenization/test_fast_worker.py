"""Test the messages of fast_worker.py: what is sent is received, and a broken stream is an end."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratch_gpt.tokenization import fast_worker


@given(st.lists(st.binary(max_size=20), max_size=5))
def test_what_is_sent_is_received(contents):
    stream = io.BytesIO()
    fast_worker.send(stream, {"do": "encode"}, *contents)
    stream.seek(0)
    header, received = fast_worker.receive(stream)
    assert header["do"] == "encode" and received == contents
    with pytest.raises(EOFError):
        fast_worker.receive(stream)


def test_a_message_that_breaks_off_is_an_end():
    stream = io.BytesIO()
    fast_worker.send(stream, {"do": "encode"}, b"some", b"bytes")
    whole = stream.getvalue()
    for length in range(len(whole)):
        with pytest.raises(EOFError):
            fast_worker.receive(io.BytesIO(whole[:length]))


@given(st.lists(st.binary(max_size=9), max_size=9))
def test_joined_parts_are_split_again(parts):
    lengths, content = fast_worker.join(parts)
    assert fast_worker.split(lengths, content) == parts


def test_arrays_are_joined_by_their_items():
    lengths, content = fast_worker.join(
        [np.array([1, 2], np.uint32), np.array([], np.uint32), np.array([3], np.uint32)]
    )
    ids = fast_worker.split(lengths, np.frombuffer(content, np.uint32))
    assert [part.tolist() for part in ids] == [[1, 2], [], [3]]
