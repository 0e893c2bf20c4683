"""Tokenize the documents of each split into one stream of ids."""

import hashlib
import json
from collections.abc import Iterator
from typing import NamedTuple, cast

import datasets
import numpy as np
import pyarrow as pa
from datasets.fingerprint import Hasher

from ...tokenization.documents import EncodeBatch, encode_documents, join_encoded
from ...tokenization.encoders import Encoder
from ...tokenization.tokenizer import fingerprint


class TokenStream(NamedTuple):
    """All documents of a split as one row of token ids, each document followed by EOS."""

    ids: np.ndarray  # (N,) uint16 or uint32
    ends: np.ndarray  # (documents,) the end of each document in `ids`
    bytes: int  # of UTF-8 text
    encoder: dict[str, str] | None = None  # what has encoded the text, if it was an `Encoder`

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

    def tokenize(batch: pa.Table) -> pa.Table:
        encoded = join_encoded(encode_documents(batch.column("text").to_pylist(), encode_batch, eos_token_id))
        offsets = np.append(0, np.cumsum(encoded.lengths))
        ids = pa.LargeListArray.from_arrays(offsets, encoded.ids)
        record = json.dumps(encode_batch.record if isinstance(encode_batch, Encoder) else None)
        columns = {"input_ids": ids, "bytes": pa.array(encoded.bytes)}
        return pa.table({**columns, "encoder": pa.array([record] * len(encoded.lengths))})

    # The key of the cache: the library that encodes does not change the ids.
    encoder = fingerprint(encode_batch.tokenizer) if isinstance(encode_batch, Encoder) else encode_batch
    key = Hasher.hash([documents._fingerprint, encoder, eos_token_id, "documents, encoder"])
    rows = documents.with_format("arrow").map(
        tokenize, batched=True, batch_size=100, remove_columns="text", desc=desc, new_fingerprint=key
    )
    batches = cast(Iterator[pa.Table], rows.with_format("arrow").iter(1000))
    parts, lengths, size, record = [], [], 0, "null"
    for batch in batches:
        columns = batch.combine_chunks()
        tokens = columns.column("input_ids").chunk(0)
        lengths.append(np.diff(tokens.offsets.to_numpy()))
        parts.append(tokens.flatten().to_numpy())
        size += int(columns.column("bytes").to_numpy().sum())
        record = columns.column("encoder")[-1].as_py()
    ids = np.concatenate(parts)
    ids = ids.astype(np.uint16) if ids.max() < 2**16 else ids
    return TokenStream(ids, np.cumsum(np.concatenate(lengths)), size, json.loads(record))


def joined_stream(documents: datasets.Dataset, encode_batch: EncodeBatch, joiner: str) -> TokenStream:
    """Tokenize all documents as one text with `joiner` between them, without EOS."""
    text = joiner.join(documents["text"])
    ids = np.asarray(encode_batch([text])[0], dtype=np.uint32)
    return TokenStream(ids, np.array([len(ids)]), len(text.encode()))


__all__ = ["TokenStream", "joined_stream", "token_stream"]
