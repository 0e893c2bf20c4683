"""Tokenize the documents of each split into one stream of ids."""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast

import datasets
import numpy as np


class TokenStream(NamedTuple):
    """All documents of a split as one row of token ids, each ended by EOS."""

    ids: np.ndarray  # (N,) uint16 or uint32
    ends: np.ndarray  # (documents,) where each one ends
    bytes: int  # of UTF-8 text

    @property
    def sha256(self) -> str:
        """Return the SHA-256 of the ids, independent of their dtype."""
        return hashlib.sha256(self.ids.astype("<u4").tobytes()).hexdigest()


def token_stream(
    documents: datasets.Dataset, encode_batch: Callable[[list[str]], list[list[int]]], eos_token_id: int, desc: str
) -> TokenStream:
    """Tokenize each document, end it with EOS and join them in order.

    Args:
        encode_batch: texts -> ids, adding nothing.
        desc: what the progress bar says.
    """

    def tokenize(batch: dict[str, list[str]]) -> dict[str, list[Any]]:
        return {
            "input_ids": [[*ids, eos_token_id] for ids in encode_batch(batch["text"])],
            "bytes": [len(text.encode()) for text in batch["text"]],
        }

    rows = documents.map(tokenize, batched=True, batch_size=100, remove_columns="text", desc=desc)
    rows = rows.with_format("numpy")
    batches = cast(Iterator[dict[str, Any]], rows.iter(1000))
    chunks = [ids for batch in batches for ids in batch["input_ids"]]
    largest = max(int(ids.max()) for ids in chunks)
    ids = np.concatenate(chunks).astype(np.uint16 if largest < 2**16 else np.uint32)
    return TokenStream(ids, np.cumsum([len(chunk) for chunk in chunks]), int(np.sum(rows["bytes"][:])))


def joined_stream(
    documents: datasets.Dataset, encode_batch: Callable[[list[str]], list[list[int]]], joiner: str
) -> TokenStream:
    """Tokenize all documents as one text with `joiner` between them; there is no EOS."""
    text = joiner.join(documents["text"])
    ids = np.array(encode_batch([text])[0], dtype=np.uint32)
    return TokenStream(ids, np.array([len(ids)]), len(text.encode()))


__all__ = ["TokenStream", "joined_stream", "token_stream"]
