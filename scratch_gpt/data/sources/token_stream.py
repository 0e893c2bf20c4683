"""Tokenize the documents of each split into one stream of ids."""

import hashlib
from collections.abc import Callable
from typing import NamedTuple

import datasets
import numpy as np


class TokenStream(NamedTuple):
    """All documents of a split as one row of token ids, each ended by EOS."""

    ids: np.ndarray  # (N,) uint16 or uint32
    ends: np.ndarray  # (documents,) where each one ends
    bytes: int  # of UTF-8 text

    @property
    def sha256(self) -> str:
        """Of the ids, whatever type they are held in."""
        return hashlib.sha256(self.ids.astype("<u4").tobytes()).hexdigest()


def token_stream(
    documents: datasets.Dataset, encode_batch: Callable[[list[str]], list[list[int]]], eos_token_id: int, desc: str
) -> TokenStream:
    """Tokenise each document, end it with EOS and join them in order.

    Args:
        encode_batch: texts -> ids, adding nothing.
        desc: what the progress bar says.
    """

    def tokenize(batch: dict) -> dict:
        return {
            "input_ids": [[*ids, eos_token_id] for ids in encode_batch(batch["text"])],
            "bytes": [len(text.encode()) for text in batch["text"]],
        }

    rows = documents.map(tokenize, batched=True, batch_size=100, remove_columns="text", desc=desc)
    rows = rows.with_format("numpy")
    chunks = [ids for batch in rows.iter(1000) for ids in batch["input_ids"]]
    largest = max(int(ids.max()) for ids in chunks)
    ids = np.concatenate(chunks).astype(np.uint16 if largest < 2**16 else np.uint32)
    return TokenStream(ids, np.cumsum([len(chunk) for chunk in chunks]), int(np.sum(rows["bytes"][:])))


def joined_stream(
    documents: datasets.Dataset, encode_batch: Callable[[list[str]], list[list[int]]], joiner: str
) -> TokenStream:
    """All documents as one text, `joiner` between them, tokenised as a whole; no EOS anywhere."""
    text = joiner.join(documents["text"])
    ids = np.array(encode_batch([text])[0], dtype=np.uint32)
    return TokenStream(ids, np.array([len(ids)]), len(text.encode()))


__all__ = ["TokenStream", "joined_stream", "token_stream"]
