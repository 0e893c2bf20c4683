"""Test writing: documents joined in any order are sliced like one array."""

import numpy as np

from scratch_gpt.data.prepared.writing import Joined, Tokens, encode_part


def test_documents_joined_in_any_order_are_sliced_like_one_array():
    tables = [encode_part(["aa", "b", "", "cccc"], lambda some: [[*text.encode()] for text in some], 0, 256)]
    corpora = [Tokens(tables), Tokens(tables * 2)]
    source, document = np.array([1, 0, 1, 0]), np.array([7, 1, 2, 0])
    joined = Joined(corpora, source, document)
    whole = np.concatenate([corpora[s][int(d)] for s, d in zip(source, document, strict=True)])
    assert bytes(whole.astype(np.uint8)) == b"cccc\0b\0\0aa\0"
    assert joined.ends.tolist() == [5, 7, 8, 11]
    for start in range(len(whole) + 1):
        for stop in range(start, len(whole) + 2):
            assert joined[start:stop].tolist() == whole[start:stop].tolist()
