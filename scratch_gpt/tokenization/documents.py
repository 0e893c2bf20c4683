"""Encode documents as ids followed by EOS; used by training, preparation and streaming."""

from collections.abc import Callable, Iterable, Iterator


CALL_BYTES = 2**20  # maximum text in one call of the tokenizer

EncodeBatch = Callable[[list[str]], list[list[int]]]  # encode texts as ids, without special tokens


def encode_documents(
    texts: Iterable[str], encode_batch: EncodeBatch, eos_token_id: int
) -> Iterator[tuple[list[int], int]]:
    """Yield (ids followed by EOS, bytes of UTF-8) for each document, in order.

    The tokenizer encodes several documents per call, at most CALL_BYTES of text or one longer document. The ids do not
    depend on the grouping.
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
