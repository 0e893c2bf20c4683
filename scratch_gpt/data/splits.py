"""Choose the documents, or parts of documents, to hold out; the choice depends only on the data and the seed.

split_numbers   split documents of similar size by count
split_texts     split texts of any size: by count if each split then has its share and no text in common, else by bytes
split_groups    split rows by count, keeping rows with the same key together
"""

import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from itertools import islice, pairwise

import numpy as np


BORDER_SLACK = 0.2  # of the smallest share: how far a border may move to the end of a document, line or word
WINDOW = 10_000  # characters on each side of a border to search for the end of a line or word
TRIES = 200  # candidate positions to cut a document, nearest first
# Ends of lines, of words, and of phrases in scripts without spaces.
ENDS = (re.compile(r"\n+"), re.compile(r"\s+"), re.compile(r"[\u3001\u3002\uff01\uff0c\uff1f]+"))


def check_fractions(validation_fraction: float, test_fraction: float) -> dict[str, float]:
    """Return the fractions above 0 of "validation" and "test", by name.

    Raises:
        ValueError: a fraction is outside [0, 1), or the fractions leave nothing to train on.
    """
    fractions = {"validation": validation_fraction, "test": test_fraction}
    for name, fraction in fractions.items():
        if not 0 <= fraction < 1:
            raise ValueError(f"{name}_fraction must be at least 0 and less than 1, not {fraction}.")
    if sum(fractions.values()) >= 1:
        raise ValueError(
            f"validation_fraction {validation_fraction} and test_fraction {test_fraction} leave nothing to train on. "
            "Their sum must be below 1."
        )
    return {name: fraction for name, fraction in fractions.items() if fraction > 0}


def split_numbers(
    n: int, validation_fraction: float = 0.1, test_fraction: float = 0.0, seed: int = 0
) -> dict[str, np.ndarray]:
    """Return the sorted document numbers of each split: {"train", "validation", "test"}.

    Raises:
        ValueError: as `check_fractions`, or there are too few documents for the splits.
    """
    fractions = check_fractions(validation_fraction, test_fraction)
    if n < 1 + len(fractions):
        raise ValueError(f"{n} documents cannot be split into train, {' and '.join(fractions)}. Set a fraction to 0.")
    order = np.random.default_rng(seed).permutation(n)
    splits = {}
    for name, fraction in fractions.items():
        take = min(max(1, round(fraction * n)), len(order) - 1)
        if take == 0:
            raise ValueError(
                f"{n} documents are too few: no document is left for {name}. Lower a fraction, or set one to 0."
            )
        splits[name], order = np.sort(order[:take]), order[take:]
    return {"train": np.sort(order), **splits}


def is_near(share: float, target: float) -> bool:
    """Return whether a share is 0.5 to 1.5 times its target."""
    return 0.5 * target <= share <= 1.5 * target


def split_texts(
    sizes: np.ndarray,
    text_of: Callable[[int], str],
    validation_fraction: float = 0.1,
    test_fraction: float = 0.0,
    seed: int = 0,
    by_number: bool = False,
) -> tuple[dict[str, np.ndarray], list[tuple[int, str]]]:
    """Split texts so that each held-out split has about its share of the bytes.

    First, complete texts are split by count; a single text is cut by position. The result is used if each held-out
    share is near its target (`is_near`) and no text is in two splits. Otherwise the distinct texts are sorted by a
    hash of content and seed, and split by bytes: between two texts if that is near enough, else inside a text, at the
    end of a line or word if possible. Equal texts then stay together, and all copies of a text are cut at the same
    position.

    Args:
        sizes: (n,) bytes of each text in UTF-8.
        text_of: return the text with a number.
        by_number: always split by count.

    Returns:
        The sorted text numbers of {"train", "validation", "test"}, and the pieces of texts that were cut, each as
        (number of the text, piece). Piece k has the number n + k; a text that was cut is itself in no split.

    Raises:
        ValueError: as `check_fractions`, or there is too little text for the splits.
    """
    fractions = check_fractions(validation_fraction, test_fraction)
    n, pieces = len(sizes), []
    if not fractions:
        return {"train": np.arange(n)}, pieces
    if n == 1:
        numbers, pieces = _cut_by_position(text_of(0), fractions, keep_rest=not by_number)
    else:
        try:
            numbers = split_numbers(n, validation_fraction, test_fraction, seed)
        except ValueError:  # fewer texts than splits
            if by_number or n == 0:
                raise
            numbers = {}
    if by_number:
        return numbers, pieces
    all_sizes = np.array([*sizes, *(len(piece.encode()) for _, piece in pieces)])
    held_out = {name: all_sizes[numbers[name]].sum() / max(1, np.sum(sizes)) for name in fractions if name in numbers}
    has_text = all(piece.strip() for _, piece in pieces)
    is_kept = has_text and all(is_near(held_out.get(name, 0), fraction) for name, fraction in fractions.items())
    if is_kept and (pieces or not _is_text_shared(numbers, sizes, text_of)):
        return numbers, pieces
    return _split_by_bytes(sizes, text_of, fractions, seed)


def _is_text_shared(numbers: dict[str, np.ndarray], sizes: np.ndarray, text_of: Callable[[int], str]) -> bool:
    # Return whether two splits contain the same text. Only texts of a size that occurs in two splits are read.
    of_splits = [np.unique(sizes[indices]) for indices in numbers.values()]
    distinct_sizes, counts = np.unique(np.concatenate(of_splits), return_counts=True)
    split_of_digest: dict[bytes, str] = {}
    for name, indices in numbers.items():
        for number in indices[np.isin(sizes[indices], distinct_sizes[counts > 1])].tolist():
            if split_of_digest.setdefault(hashlib.sha256(text_of(number).encode()).digest(), name) != name:
                return True
    return False


def _cut_by_position(
    text: str, fractions: dict[str, float], keep_rest: bool
) -> tuple[dict[str, np.ndarray], list[tuple[int, str]]]:
    start = round(len(text) * (1 - sum(fractions.values())))
    pieces = [text[:start]]
    for fraction in fractions.values():
        end = start + round(len(text) * fraction)
        pieces.append(text[start:end])
        start = end
    pieces[-1] += text[start:] if keep_rest else ""  # rounding may leave characters at the end; by_number drops them
    return {name: np.array([1 + k]) for k, name in enumerate(["train", *fractions])}, [(0, piece) for piece in pieces]


def _split_by_bytes(
    sizes: np.ndarray, text_of: Callable[[int], str], fractions: dict[str, float], seed: int
) -> tuple[dict[str, np.ndarray], list[tuple[int, str]]]:
    copies: dict[bytes, list[int]] = {}
    for number in range(len(sizes)):
        copies.setdefault(_key(text_of(number), seed), []).append(number)
    groups = [copies[key] for key in sorted(copies)]
    ends = np.cumsum([sizes[group].sum() for group in groups])
    shares = {"train": 1 - sum(fractions.values()), **fractions}
    slack = BORDER_SLACK * min(shares.values()) * ends[-1]
    used_keys = set(copies)  # a piece should differ from every other text
    borders = [(0, 0)]  # (group, character) at which a split begins
    for target in np.cumsum([*shares.values()])[:-1] * ends[-1]:
        k = min(int(np.searchsorted(ends, target, side="right")), len(groups) - 1)
        start = ends[k - 1] if k else 0
        edge, place = min((k, start), (k + 1, ends[k]), key=lambda pair: abs(pair[1] - target))
        if abs(place - target) <= slack and (0, 0) < (edge, 0) < (len(groups), 0):
            borders.append((edge, 0))
            continue
        text, count = text_of(groups[k][0]), len(groups[k])
        before = borders[-1][1] if borders[-1][0] == k else 0
        borders.append((k, _place(text, before, (target - start) / count, slack / count, used_keys, seed)))
    borders.append((len(groups), 0))
    if any(after <= before for before, after in pairwise(borders)):
        raise ValueError(
            f"{ends[-1]} bytes of text cannot be split into train, {' and '.join(fractions)}. Add text, or set a "
            "fraction to 0."
        )
    numbers: dict[str, list[int]] = {name: [] for name in shares}
    pieces: list[tuple[int, str]] = []
    for name, (first, start), (last, stop) in zip(shares, borders[:-1], borders[1:], strict=True):
        for k in range(first, last + 1):
            begin, end = start if k == first else 0, stop if k == last else None
            if end == 0:
                continue
            if begin == 0 and end is None:
                numbers[name] += groups[k]
                continue
            piece = text_of(groups[k][0])[begin:end]
            numbers[name] += range(len(sizes) + len(pieces), len(sizes) + len(pieces) + len(groups[k]))
            pieces += [(number, piece) for number in groups[k]]
    return {
        name: np.array(sorted(numbers_of_split), dtype=np.int64) for name, numbers_of_split in numbers.items()
    }, pieces


def _key(text: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed} {text}".encode()).digest()


def _place(text: str, before: int, target: float, slack: float, used_keys: set[bytes], seed: int) -> int:
    # Return the character after `before` at which to cut a text; target and slack are bytes. If possible, both pieces
    # contain text, differ from each other, and are not in `used_keys`.
    raw = text.encode()
    low, middle, high = (
        len(raw[: max(0, round(target + move))].decode(errors="ignore")) for move in (-slack, 0, slack)
    )
    places = [*islice(_places(text, max(low, middle - WINDOW), middle, min(high, middle + WINDOW)), TRIES)]
    for place in places:
        pieces = text[before:place], text[place:]
        keys = {_key(piece, seed) for piece in pieces}
        if all(piece.strip() for piece in pieces) and len(keys) == 2 and not keys & used_keys:
            used_keys |= keys
            return place
    return next((place for place in places if before < place < len(text)), 0)


def _places(text: str, low: int, middle: int, high: int) -> Iterator[int]:
    for ends in ENDS:
        yield from sorted((match.end() for match in ends.finditer(text, low, high)), key=lambda p: abs(p - middle))
    for place in sorted(range(low, high + 1), key=lambda p: abs(p - middle)):
        if not _joins(text, place):
            yield place
    yield middle


def _joins(text: str, place: int) -> bool:
    # Return whether a cut here would split a visible character: before an accent, at a joiner, or inside "\r\n".
    around = text[max(0, place - 1) : place + 1]
    return "\u200d" in around or around == "\r\n" or unicodedata.category(around[-1:] or " ")[0] == "M"


def split_groups(
    keys: Sequence[str], validation_fraction: float = 0.05, test_fraction: float = 0.1, seed: int = 0
) -> dict[str, np.ndarray]:
    """Return the sorted row numbers of {"train", "validation", "test"}; rows with the same key stay together.

    Each split has its exact share of the rows, unless the remaining groups are too large for its free rows. Groups are
    taken in the order of a hash of seed and key. A question that is held out in one file is therefore held out in
    another file with about the same questions (a few at the border may differ), so a model can be tuned on both.

    Raises:
        ValueError: as `check_fractions`, or there are too few distinct keys for the splits.

    Example:
        >>> splits = split_groups(["a", "a", "b", "c", "d", "e"], validation_fraction=0.3, test_fraction=0.0)
        >>> [len(rows) for rows in splits.values()]
        [4, 2]
    """
    fractions = check_fractions(validation_fraction, test_fraction)
    groups: dict[str, list[int]] = {}
    for number, key in enumerate(keys):
        groups.setdefault(key, []).append(number)
    room = {name: max(1, round(fraction * len(keys))) for name, fraction in reversed(fractions.items())}
    splits: dict[str, list[int]] = {"train": [], **{name: [] for name in fractions}}
    for key in sorted(groups, key=lambda key: hashlib.sha256(f"{seed} {key}".encode()).digest()):
        name = next((name for name, capacity in room.items() if len(groups[key]) <= capacity), "train")
        splits[name] += groups[key]
        if name in room:
            room[name] -= len(groups[key])
    if empty := [name for name, rows in splits.items() if not rows]:
        raise ValueError(
            f"{len(groups)} distinct texts in {len(keys)} rows leave nothing for {empty[0]}. Add rows, or set a "
            "fraction to 0."
        )
    return {name: np.array(sorted(rows), dtype=np.int64) for name, rows in splits.items()}


__all__ = ["check_fractions", "is_near", "split_groups", "split_numbers", "split_texts"]
