"""Encode documents: texts -> the ids of each, ended by EOS. Training, preparation and streaming all do it here."""

from collections.abc import Callable, Iterable, Iterator


CALL_BYTES = 2**20  # of text in one call of the tokenizer

EncodeBatch = Callable[[list[str]], list[list[int]]]  # texts -> the ids of each, adding none


def encode_documents(
    texts: Iterable[str], encode_batch: EncodeBatch, eos_token_id: int
) -> Iterator[tuple[list[int], int]]:
    """Yield (ids ended by EOS, bytes of UTF-8) for each document, in order.

    A call of the tokenizer gets several documents, at most CALL_BYTES of text or one longer document. The ids do not
    depend on which documents share a call.
    """
    for batch, sizes in _batches(texts):
        for ids, size in zip(encode_batch(batch), sizes, strict=True):
            yield [*ids, eos_token_id], size


def _batches(texts: Iterable[str]) -> Iterator[tuple[list[str], list[int]]]:
    batch, sizes, total = [], [], 0
    for text in texts:
        size = len(text.encode())
        if batch and total + size > CALL_BYTES:
            yield batch, sizes
            batch, sizes, total = [], [], 0
        batch.append(text)
        sizes.append(size)
        total += size
    if batch:
        yield batch, sizes


__all__ = ["EncodeBatch", "encode_documents"]
