"""Test encoding documents: each ends in EOS, its bytes are counted, and calls of the tokenizer are bounded."""

import threading

import numpy as np
import pytest

from scratch_gpt.data.prepared.writing import encode_part
from scratch_gpt.tokenization import documents
from scratch_gpt.tokenization.documents import encode_documents


TEXTS = ["ab", "", "\u00e9" * 3, "c" * 9, "d"]


def encode_bytes(texts):
    return [list(text.encode()) for text in texts]


def documents_of(parts):
    return [ids.tolist() for part in parts for ids in np.split(part.ids, np.cumsum(part.lengths)[:-1])]


@pytest.mark.parametrize("kind", [list, lambda ids: np.array(ids, dtype=np.uint32)])
def test_each_document_ends_in_eos_and_its_bytes_are_counted(kind):
    parts = [*encode_documents(iter(TEXTS), lambda texts: [kind(ids) for ids in encode_bytes(texts)], 0)]
    assert [bytes(ids) for ids in documents_of(parts)] == [text.encode() + b"\0" for text in TEXTS]
    assert [size for part in parts for size in part.bytes.tolist()] == [2, 0, 6, 9, 1]
    assert [*encode_documents([], encode_bytes, 0)] == []


@pytest.mark.parametrize(("limit", "calls"), [(8, [3, 1, 1]), (1, [1, 1, 1, 1, 1]), (100, [5])])
def test_a_call_of_the_tokenizer_has_a_limit_that_changes_no_ids(limit, calls, monkeypatch):
    expected, sizes = documents_of(encode_documents(TEXTS, encode_bytes, 0)), []
    monkeypatch.setattr(documents, "CALL_BYTES", limit)

    def encode_batch(texts):
        sizes.append(len(texts))
        return encode_bytes(texts)

    assert documents_of(encode_documents(TEXTS, encode_batch, 0)) == expected and sizes == calls


@pytest.mark.parametrize("limit", [1, 100])
def test_a_part_of_a_preparation_has_the_same_ids(limit, monkeypatch):
    monkeypatch.setattr(documents, "CALL_BYTES", limit)
    table = encode_part(TEXTS, encode_bytes, 0, 256)
    assert table.column("input_ids").to_pylist() == documents_of(encode_documents(TEXTS, encode_bytes, 0))
    assert table.column("bytes").to_pylist() == [2, 0, 6, 9, 1]
    assert table.column("input_ids").chunk(0).values.to_numpy().dtype == np.uint16
    assert len(encode_part([], encode_bytes, 0, 256)) == 0


def test_documents_are_read_while_others_are_encoded(monkeypatch):
    monkeypatch.setattr(documents, "CALL_BYTES", 1)
    is_read = threading.Event()

    def texts():
        yield from ("a", "b")
        is_read.set()
        yield "c"

    def encode_batch(batch):
        assert is_read.wait(10)  # the first call is made before the last text is read
        return encode_bytes(batch)

    assert len(documents_of(encode_documents(texts(), encode_batch, 0))) == 3


def test_an_error_of_the_tokenizer_is_raised_at_its_documents(monkeypatch):
    monkeypatch.setattr(documents, "CALL_BYTES", 1)

    def encode_batch(batch):
        if batch == ["c" * 9]:
            raise ValueError("cannot encode")
        return encode_bytes(batch)

    parts = encode_documents([*TEXTS, *TEXTS], encode_batch, 0)
    assert [len(next(parts).lengths) for _ in range(3)] == [1, 1, 1]
    with pytest.raises(ValueError, match="cannot encode"):
        next(parts)
