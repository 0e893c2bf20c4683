"""Tokenize the documents of each split into one stream of ids."""

import hashlib
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import datasets
import numpy as np

from ...tokenization.documents import EncodeBatch, encode_documents


class TokenStream(NamedTuple):
    """All documents of a split as one row of token ids, each document followed by EOS."""

    ids: np.ndarray  # (N,) uint16 or uint32
    ends: np.ndarray  # (documents,) the end of each document in `ids`
    bytes: int  # of UTF-8 text

    @property
    def sha256(self) -> str:
        """Return the SHA-256 of the ids, independent of their dtype."""
        return hashlib.sha256(self.ids.astype("<u4").tobytes()).hexdigest()


def token_stream(documents: datasets.Dataset, encode_batch: EncodeBatch, eos_token_id: int, desc: str) -> TokenStream:
    """Tokenize the documents, add EOS to each, and join them in order.

    Args:
        encode_batch: encode texts as ids, without special tokens.
        desc: the label of the progress bar.
    """

    def tokenize(batch: dict[str, list[str]]) -> dict[str, list[Any]]:
        ids, sizes = zip(*encode_documents(batch["text"], encode_batch, eos_token_id), strict=True)
        return {"input_ids": list(ids), "bytes": list(sizes)}

    rows = documents.map(tokenize, batched=True, batch_size=100, remove_columns="text", desc=desc)
    rows = rows.with_format("numpy")
    batches = cast(Iterator[dict[str, Any]], rows.iter(1000))
    parts, lengths = [], []
    for batch in batches:
        lengths += map(len, batch["input_ids"])
        parts.append(np.concatenate(batch["input_ids"]).astype(np.uint32))  # half the memory of int64
    ids = np.concatenate(parts)
    ids = ids.astype(np.uint16) if ids.max() < 2**16 else ids
    return TokenStream(ids, np.cumsum(lengths), int(np.sum(rows["bytes"][:])))


def joined_stream(documents: datasets.Dataset, encode_batch: EncodeBatch, joiner: str) -> TokenStream:
    """Tokenize all documents as one text with `joiner` between them, without EOS."""
    text = joiner.join(documents["text"])
    ids = np.array(encode_batch([text])[0], dtype=np.uint32)
    return TokenStream(ids, np.array([len(ids)]), len(text.encode()))


__all__ = ["TokenStream", "joined_stream", "token_stream"]
