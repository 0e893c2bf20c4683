"""Texts -> 64-bit hashes of their words and n-grams, in numpy: what duplicates, passages and overlaps are found by.

A word is a run of letters, digits and marks, lower-cased; punctuation separates. In scripts that put no space between
words (Chinese, Japanese, Thai, Lao, Khmer, Burmese) each character is a word. Hashes are the same in every process.
"""

import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np


SLICE = 1 << 20  # characters worked on at a time: the memory a text takes does not depend on its length
UNSPACED = ((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x3400, 0x9FFF), (0xF900, 0xFAFF))
PLANES = 0x20000  # code points that are looked up one by one; those above (rare ideographs) are words by themselves
SEPARATOR, INNER, ALONE = 0, 1, 2
BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that it has an inverse modulo 2^64
INVERSE = np.uint64(pow(int(BASE), -1, 2**64))
WORD_BASE = np.uint64(0xD6E8FEB86659FD93)


class Words(NamedTuple):
    """The words of a text: (N,) each."""

    hashes: np.ndarray  # uint64
    starts: np.ndarray  # int64, where a word starts in the text, in characters
    ends: np.ndarray  # int64, behind its last character


def words(text: str) -> Words:
    """Text -> its words, in linear time."""
    parts = [_words_of_slice(piece, start) for start, piece in slices(text)]
    return Words(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def slices(text: str) -> Iterator[tuple[int, str]]:
    """(start, piece) of at most SLICE characters, cut behind a space where there is one in the piece's last half."""
    start = 0
    while True:
        end = start + SLICE
        if end < len(text):
            space = text.rfind(" ", start + SLICE // 2, end)
            end = space + 1 if space >= 0 else end
        yield start, text[start:end]
        start = end
        if start >= len(text):
            return


def run_hashes(hashes: np.ndarray, n: int) -> np.ndarray:
    """(N,) word hashes -> (N - n + 1,), one for each run of n words; log n passes, by doubling (none: empty)."""
    if len(hashes) < n:
        return hashes[:0]
    total, length = None, 0  # what the low bits of n have given so far
    block, block_power, block_length = hashes, WORD_BASE, 1  # the hashes of runs of 1, 2, 4, ... words
    with np.errstate(over="ignore"):
        while True:
            if n & block_length:
                if total is None:
                    total = block
                else:
                    last = len(hashes) - (length + block_length) + 1
                    total = total[:last] * block_power + block[length : length + last]
                length += block_length
            if block_length * 2 > n:
                return mix(total)
            block = block[:-block_length] * block_power + block[block_length:]
            block_power, block_length = block_power * block_power, block_length * 2


def document_ngrams(texts: Sequence[str], n: int) -> tuple[np.ndarray, np.ndarray]:
    """Texts -> the hashes of all their n-grams joined, and (texts + 1,) where each text's start.

    A text of fewer than n words has one, of all its words; one without words has the hash of its characters.
    """
    parts = [words(unicodedata.normalize("NFC", text)).hashes for text in texts]
    grams = [run_hashes(part, min(n, max(1, len(part)))) for part in parts]
    for number, gram in enumerate(grams):
        if not len(gram):
            points = np.frombuffer("".join(texts[number].split()).encode("utf-32-le", "surrogatepass"), np.uint32)
            points = np.append(points, 0).astype(np.uint64)
            grams[number] = run_hashes(mix(points), len(points))
    return np.concatenate(grams), np.cumsum([0, *map(len, grams)])


def comes_again(hashes: np.ndarray) -> np.ndarray:
    """(N,) -> (N,) bool, whether the same hash stands further left."""
    order = np.argsort(hashes, kind="stable")
    again = np.zeros(len(hashes), dtype=bool)
    again[order[1:]] = hashes[order[1:]] == hashes[order[:-1]]
    return again


def mix(values: np.ndarray) -> np.ndarray:
    """Spread uint64 over all 64 bits (the finaliser of splitmix64: Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        values = values + BASE
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return values ^ (values >> np.uint64(31))


def _words_of_slice(text: str, offset: int) -> Words:
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    kinds, values = _tables()
    near = np.minimum(points, PLANES)
    kind = kinds[near]
    inner = kind == INNER
    after_inner, before_inner = np.zeros_like(inner), np.zeros_like(inner)
    after_inner[1:], before_inner[:-1] = inner[:-1], inner[1:]
    alone = kind == ALONE
    starts = np.flatnonzero(alone | (inner & ~after_inner))
    ends = np.flatnonzero(alone | (inner & ~before_inner)) + 1
    if not len(starts):
        return Words(np.empty(0, np.uint64), starts, ends)
    value = np.where(points < PLANES, values[near], mix(points.astype(np.uint64)))
    with np.errstate(over="ignore"):
        # sum of value * BASE^place over a word's characters, moved back to the word's own start; separators are 0
        sums = np.add.reduceat(value * _powers(int(BASE))[: len(value)], starts)
        hashes = mix(sums * _powers(int(INVERSE))[starts])
    return Words(hashes, starts + offset, ends + offset)


@cache
def _powers(base: int) -> np.ndarray:
    powers = np.full(SLICE, base, dtype=np.uint64)
    powers[0] = 1
    with np.errstate(over="ignore"):
        return np.multiply.accumulate(powers)


@cache
def _tables() -> tuple[np.ndarray, np.ndarray]:
    # for each code point: what it is in a word, and its lower case, mixed (0 where it separates)
    kinds, values = np.full(PLANES + 1, ALONE, dtype=np.uint8), np.zeros(PLANES + 1, dtype=np.uint64)
    for point in range(PLANES):
        character = chr(point)
        is_inner = character.isalnum() or unicodedata.category(character)[0] == "M"
        lower = character.lower()
        kinds[point] = INNER if is_inner else SEPARATOR
        values[point] = ord(lower) if is_inner and len(lower) == 1 else point * is_inner
    for first, last in UNSPACED:
        span = kinds[first : last + 1]
        span[span == INNER] = ALONE
    values[:PLANES] = np.where(kinds[:PLANES] == SEPARATOR, np.uint64(0), mix(values[:PLANES]))
    return kinds, values


__all__ = ["PLANES", "UNSPACED", "Words", "comes_again", "document_ngrams", "mix", "run_hashes", "slices", "words"]
