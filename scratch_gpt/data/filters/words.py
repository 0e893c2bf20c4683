"""Hash the words and n-grams of texts to 64 bits in numpy, to find duplicates, repeated passages and overlaps.

A word is a run of letters, digits and marks, lower-cased; punctuation separates words. In scripts without spaces
between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese) each character is a word. With `signs` a sign is a word
too: Unicode's mathematical and other symbols, and `- * / # % & @ ^` if they are next to a digit or (except -) join two
words. C# and C++ are one word each; a hyphen, a dash and the markup of **bold** or # headings are not words. Hashes
are the same in every process.
"""

import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np


SLICE = 1 << 20  # characters processed at a time, which limits memory for long texts
BATCH = 1 << 17  # characters of several texts that are processed together; a longer text is processed alone
BETWEEN = "\0\0"  # characters between them: no part of a word, and to the signs next to them the end of a text
UNSPACED = ((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x3400, 0x9FFF), (0xF900, 0xFAFF))
PLANES = 0x20000  # code points in the table; each code point above (rare ideographs) is a word
SEPARATOR, INNER, ALONE = 0, 1, 2
MINUS, PLUS, SHARP = ord("-"), ord("+"), ord("#")
MINUSES = (0x2012, 0x2013, 0x2212)  # dashes and the minus sign, hashed like "-"
SOMETIMES, ALWAYS = 1, 2
BY_CONTEXT = "-*/#%&@^\u2012\u2013"  # punctuation that is a sign in some contexts
SYMBOLS = {"Sm", "Sc", "So"}  # Unicode categories that are always signs
HASH_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that it has an inverse modulo 2^64
INVERSE = np.uint64(pow(int(HASH_BASE), -1, 2**64))
WORD_BASE = np.uint64(0xD6E8FEB86659FD93)


class Words(NamedTuple):
    """The words of a text: (N,) each."""

    hashes: np.ndarray  # uint64
    starts: np.ndarray  # int64, position of a word's first character in the text
    ends: np.ndarray  # int64, position after its last character


def words(text: str, signs: bool = False) -> Words:
    """Return the words of a text, with `signs` also its signs, in linear time."""
    parts = []
    for start, piece in slices(text):
        end = start + len(piece)
        around = (text[max(0, start - 2) : start], text[end : end + 2]) if signs else None
        parts.append(_words_of_slice(piece, start, around))
    return Words(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def runs_of_texts(texts: Sequence[str], n: int, signs: bool = False) -> Iterator[tuple[Words, np.ndarray]]:
    """Yield the words of each text, and the hashes of its runs of n words (see `run_hashes`).

    Short texts are joined and processed together, which takes less time.
    """
    batch, size = [], 0
    for text in texts:
        if batch and size + len(text) > BATCH:
            yield from _runs_of_batch(batch, n, signs)
            batch, size = [], 0
        batch.append(text)
        size += len(text) + len(BETWEEN)
    yield from _runs_of_batch(batch, n, signs)


def _runs_of_batch(texts: Sequence[str], n: int, signs: bool) -> Iterator[tuple[Words, np.ndarray]]:
    joined = words(BETWEEN.join(texts), signs)
    runs = run_hashes(joined.hashes, n)
    offsets = np.cumsum([0, *(len(text) + len(BETWEEN) for text in texts)])
    bounds = np.searchsorted(joined.starts, offsets).tolist()
    for offset, first, stop in zip(offsets.tolist(), bounds, bounds[1:], strict=False):
        hashes, starts, ends = (column[first:stop] for column in joined)
        yield Words(hashes, starts - offset, ends - offset), runs[first : max(first, stop - n + 1)]


def slices(text: str) -> Iterator[tuple[int, str]]:
    """Yield (start, piece) of at most SLICE characters, cut after a space if there is one in the piece's last half."""
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
    """Return a hash for each run of n words, (N - n + 1,), from (N,) word hashes, in log n passes; empty if N < n."""
    if len(hashes) < n:
        return hashes[:0]
    total, length = None, 0  # hashes of the runs for the low bits of n so far, and their length
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
                assert total is not None  # n has a highest bit
                return mix_bits(total)
            block = block[:-block_length] * block_power + block[block_length:]
            block_power, block_length = block_power * block_power, block_length * 2


def document_ngrams(texts: Sequence[str], n: int, signs: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Return the hashes of all word n-grams of the texts in one array, and the offsets of each text: (texts + 1,).

    A text of fewer than n words has one hash, of all its words; a text without words has the hash of its characters.
    """
    grams = []
    for text_words, runs in runs_of_texts([unicodedata.normalize("NFC", text) for text in texts], n, signs):
        count = len(text_words.hashes)
        grams.append(runs if len(runs) or not count else run_hashes(text_words.hashes, count))
    for number, gram in enumerate(grams):
        if not len(gram):
            points = np.frombuffer("".join(texts[number].split()).encode("utf-32-le", "surrogatepass"), np.uint32)
            points = np.append(points, 0).astype(np.uint64)
            grams[number] = run_hashes(mix_bits(points), len(points))
    return np.concatenate(grams), np.cumsum([0, *map(len, grams)])


def is_repeated(hashes: np.ndarray) -> np.ndarray:
    """Return whether each of (N,) hashes occurs earlier in the array: (N,) bool."""
    order = np.argsort(hashes, kind="stable")
    repeated = np.zeros(len(hashes), dtype=bool)
    repeated[order[1:]] = hashes[order[1:]] == hashes[order[:-1]]
    return repeated


def mix_bits(values: np.ndarray) -> np.ndarray:
    """Spread uint64 over all 64 bits (the finalizer of splitmix64: Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        values = values + HASH_BASE
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return values ^ (values >> np.uint64(31))


def _words_of_slice(text: str, offset: int, around: tuple[str, str] | None) -> Words:
    points = _points(text)
    kinds, values = _tables()
    near = np.minimum(points, PLANES)
    kind, value = kinds[near], values[near]
    beyond = np.flatnonzero(points >= PLANES)
    value[beyond] = mix_bits(points[beyond].astype(np.uint64))
    if around is not None:
        sign_positions, ends_word = _signs(
            np.concatenate([_points(around[0].rjust(2)), points, _points(around[1].ljust(2))])
        )
        sign = points[sign_positions]
        kind[sign_positions] = np.where(ends_word, INNER, ALONE)
        value[sign_positions] = mix_bits(np.where(_is_minus(sign), MINUS, sign).astype(np.uint64))
    inner = kind == INNER
    after_inner, before_inner = np.zeros_like(inner), np.zeros_like(inner)
    after_inner[1:], before_inner[:-1] = inner[:-1], inner[1:]
    alone = kind == ALONE
    starts = np.flatnonzero(alone | (inner & ~after_inner))
    ends = np.flatnonzero(alone | (inner & ~before_inner)) + 1
    if not len(starts):
        return Words(np.empty(0, np.uint64), starts, ends)
    with np.errstate(over="ignore"):
        # Sum value * HASH_BASE^position over a word's characters, then divide by HASH_BASE^start. Separators are 0.
        sums = np.add.reduceat(value * _powers(int(HASH_BASE))[: len(value)], starts)
        hashes = mix_bits(sums * _powers(int(INVERSE))[starts])
    return Words(hashes, starts + offset, ends + offset)


def _points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)


def _signs(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    # Return the positions of signs among the inner N of (2 + N + 2,) code points, and whether each ends a word (C#).
    kinds, signs = _tables()[0], _sign_table()
    positions = np.flatnonzero(signs[np.minimum(points[2:-2], PLANES)]) + 2
    sign = points[positions]
    # On each side of a sign (-1 left, 1 right): is there a word, a word after a space, a digit, a word after a plus?
    neighbors = {}
    for side in (-1, 1):
        first, second = points[positions + side], points[positions + 2 * side]
        spaced = first == ord(" ")
        in_word = [kinds[np.minimum(point, PLANES)] != SEPARATOR for point in (first, second)]
        digit = [(point >= ord("0")) & (point <= ord("9")) for point in (first, second)]
        after_plus = (first == PLUS) & in_word[1]
        neighbors[side] = in_word[0], spaced & in_word[1], digit[0] | (spaced & digit[1]), after_plus
    word_left, left_apart, left_digit, doubled = neighbors[-1]
    word_right, right_apart, right_digit, _ = neighbors[1]
    joins = (word_left & word_right) | (left_apart & right_apart)
    is_dash = (sign == MINUS) | _is_minus(sign)
    ends_word = ~word_right & ((word_left & ((sign == SHARP) | (sign == PLUS))) | (doubled & (sign == PLUS)))
    counts = left_digit | right_digit | (joins & ~is_dash) | ends_word | (signs[np.minimum(sign, PLANES)] == ALWAYS)
    return positions[counts] - 2, ends_word[counts]


def _is_minus(points: np.ndarray) -> np.ndarray:
    return np.logical_or.reduce([points == minus for minus in MINUSES])


@cache
def _sign_table() -> np.ndarray:
    table = np.zeros(PLANES + 1, dtype=np.uint8)
    for point in range(PLANES):
        character = chr(point)
        is_symbol = unicodedata.category(character) in SYMBOLS
        table[point] = ALWAYS if is_symbol else SOMETIMES if character in BY_CONTEXT else 0
    return table


@cache
def _powers(base: int) -> np.ndarray:
    powers = np.full(SLICE, base, dtype=np.uint64)
    powers[0] = 1
    with np.errstate(over="ignore"):
        return np.multiply.accumulate(powers)


@cache
def _tables() -> tuple[np.ndarray, np.ndarray]:
    # For each code point: its kind (separator, part of a word, or word) and its mixed lower case (0 for a separator).
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
    values[:PLANES] = np.where(kinds[:PLANES] == SEPARATOR, np.uint64(0), mix_bits(values[:PLANES]))
    return kinds, values


__all__ = [
    "PLANES",
    "UNSPACED",
    "Words",
    "document_ngrams",
    "is_repeated",
    "mix_bits",
    "run_hashes",
    "runs_of_texts",
    "slices",
    "words",
]
