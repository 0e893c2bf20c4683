"""Return reasons to remove a text: quality rules, block lists, perplexity. (privacy.py handles private data.)

Pure functions of a text. A comment next to each rule gives its measure. Every pattern takes linear time, also for a
line of 100 MB.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import filterfalse
from pathlib import Path

import numpy as np

from ...utils.foreign import time_limit
from ...utils.local_files import read_text_file
from .words import PLANES, SLICE, UNSPACED, is_repeated, runs_of_texts, slices


# --- Quality -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class QualityRules:
    """Limits that a text must satisfy; None disables a rule.

    The values are Gopher's (Rae et al. 2021, "Scaling Language Models", table A1), chosen for English web pages. Short
    rows (instructions, messages), books and other scripts need other values.
    """

    min_words: int | None = 50
    max_words: int | None = 100_000
    word_length: tuple[float, float] | None = (3, 10)  # range of the mean, in characters
    max_symbols: float | None = 0.1  # "#" and ellipses for each word
    min_alphabetic: float | None = 0.8  # the share of words with a letter
    max_bullets: float | None = 0.9  # the share of lines that start with a bullet
    max_ellipses: float | None = 0.3  # the share of lines that end with an ellipsis
    max_repeated_lines: float | None = 0.3  # the share of lines that occur earlier in the text
    max_repeated_words: float | None = 0.1  # the share of words in runs of ten that occur earlier in the text
    languages: tuple[str, ...] = ()  # ISO 639-1 codes that may stay; none: any


ENGLISH_WEB = QualityRules()
MATCH_SECONDS = 10  # time limit for one pattern of a block list in one text
LETTER = re.compile(r"[^\W\d_]")
BULLETS = ("-", "*", "\u2022", "\u2023", "\u25aa", "\u25cf")
ELLIPSES = ("...", "\u2026")


def quality_problem(text: str, *, rules: QualityRules = ENGLISH_WEB) -> str | None:
    """Return the first rule that a text breaks, or None.

    The rules are "too_short", "too_long", "word_length", "symbols", "not_words", "bullets", "ellipses", "repetition"
    and "language". Words are separated by white space.

    Raises:
        ValueError: `rules.languages` is set but the library that detects languages is not installed.
    """
    return quality_problems([text], rules=rules)[0]


def quality_problems(texts: Sequence[str], *, rules: QualityRules = ENGLISH_WEB) -> list[str | None]:
    """Return for each text what `quality_problem` returns, in less time."""
    problems = [_simple_problem(text, rules) for text in texts]
    if rules.max_repeated_words is not None:
        left = [k for k, problem in enumerate(problems) if problem is None]
        for k, share in zip(left, _repeated_shares([texts[k] for k in left]), strict=True):
            problems[k] = "repetition" if share > rules.max_repeated_words else None
    if rules.languages:
        for k, problem in enumerate(problems):
            if problem is None and detect_language(texts[k]) not in rules.languages:
                problems[k] = "language"
    return problems


def _simple_problem(text: str, rules: QualityRules) -> str | None:
    # The rules that need no hashes of words and no other library.
    tokens = text.split() if len(text) <= SLICE else None  # of a long text only after its words are counted
    n = sum(len(piece.split()) for _, piece in slices(text)) if tokens is None else len(tokens)
    if rules.min_words is not None and n < rules.min_words:
        return "too_short"
    if rules.max_words is not None and n > rules.max_words:
        return "too_long"
    tokens = text.split() if tokens is None else tokens
    n = max(n, 1)
    if rules.word_length is not None:
        shortest, longest = rules.word_length
        if not shortest <= len("".join(tokens)) / n <= longest:
            return "word_length"
    ellipses = sum(map(text.count, ELLIPSES))
    if rules.max_symbols is not None and text.count("#") + ellipses > rules.max_symbols * n:
        return "symbols"
    if rules.min_alphabetic is not None and _count_alphabetic(tokens) < rules.min_alphabetic * n:
        return "not_words"
    lines = [*filter(None, map(str.strip, text.splitlines()))]
    if rules.max_bullets is not None:
        first = [line[0] for line in lines]
        if sum(map(first.count, BULLETS)) > rules.max_bullets * len(lines):
            return "bullets"
    if rules.max_ellipses is not None and ellipses:
        if sum(line.endswith(ELLIPSES) for line in lines) > rules.max_ellipses * len(lines):
            return "ellipses"
    if rules.max_repeated_lines is not None and len(lines) - len({*lines}) > rules.max_repeated_lines * len(lines):
        return "repetition"
    return None


def _count_alphabetic(tokens: list[str]) -> int:
    # Most words consist of letters alone, which `isalpha` tells faster than a pattern.
    others = [*filterfalse(str.isalpha, tokens)]
    return len(tokens) - len(others) + sum(map(bool, map(LETTER.search, others)))


def _repeated_shares(texts: Sequence[str], run: int = 10) -> Iterator[float]:
    # Yield for each text the share of its words that belong to a run of ten words which occurs earlier in the text.
    for text_words, runs in runs_of_texts(texts, run):
        again = np.flatnonzero(is_repeated(runs))
        if not len(again):
            yield 0.0
            continue
        edges = np.zeros(len(text_words.hashes) + 1, dtype=np.int64)
        edges[again] += 1
        edges[again + run] -= 1
        yield float((np.cumsum(edges)[:-1] > 0).mean())


def detect_language(text: str) -> str:
    """Return the ISO 639-1 code of the language of a text's first 5,000 characters (py3langid: Lui and Baldwin 2012).

    Raises:
        ValueError: the library is not installed.
    """
    try:
        from py3langid.langid import classify
    except ImportError as error:
        raise ValueError(
            'Detecting languages needs the extra "languages": pip install "scratch_gpt[languages]"'
        ) from error
    return classify(text[:5000])[0]


# --- Block lists -------------------------------------------------------------------------------------------------


# Characters that are one word each (see words.py). A word of other characters must not have a letter next to it.
CHARACTERS = "".join(f"{chr(first)}-{chr(last)}" for first, last in (*UNSPACED, (PLANES, 0x10FFFF)))
BEGINS_WORD = rf"(?-i:(?<![^\W{CHARACTERS}])|(?=[{CHARACTERS}]))"
ENDS_WORD = rf"(?-i:(?![^\W{CHARACTERS}])|(?<=[{CHARACTERS}]))"


def load_block_list(path: str | Path) -> list[re.Pattern]:
    """Read a block list as patterns for `blocked_term`: one for all words, and one for each /regex/.

    Each line is a word, several words separated by spaces, or a /regex/. "#" at the start of a line or after a space
    begins a comment. Words match only complete words and ignore case; a /regex/ is used as written. In scripts without
    spaces between words (see words.py) a word matches at any position.

    Raises:
        ValueError: the file is missing or empty, or a pattern is not a valid regular expression.
    """
    try:
        lines = read_text_file(path).splitlines()
    except ValueError as error:
        raise ValueError(f"The block list {path} cannot be read: {error}") from error
    terms, patterns = [], []
    for number, line in enumerate(lines, start=1):
        term = re.split(r"(?:^|\s)#", line, maxsplit=1)[0].strip()
        if len(term) > 2 and term[0] == term[-1] == "/":
            try:
                patterns.append(re.compile(term[1:-1]))
            except re.error as error:
                raise ValueError(f"{path}, line {number}: {term} is not a valid pattern: {error}.") from error
        elif term:
            terms.append(r"\s+".join(map(re.escape, term.split())))
    if terms:
        longest_first = sorted(set(terms), key=lambda term: (-len(term), term))
        # For speed, check the first character of the words, which may be escaped, before the words.
        first = "".join(sorted({term[: 2 if term[0] == "\\" else 1] for term in terms}))
        word_pattern = rf"(?=[{first}]){BEGINS_WORD}(?:{'|'.join(longest_first)}){ENDS_WORD}"
        patterns.insert(0, re.compile(word_pattern, re.IGNORECASE))
    if not patterns:
        raise ValueError(f"The block list {path} contains no words. Write one word or /regex/ on each line.")
    return patterns


def blocked_term(text: str, patterns: Iterable[re.Pattern]) -> str | None:
    """Return the first match of a block list in a text, or None.

    Raises:
        ValueError: a pattern takes more than MATCH_SECONDS for this text.
    """
    for pattern in patterns:
        with time_limit(MATCH_SECONDS, f"Searching for /{pattern.pattern[:60]}/ of the block list in one text"):
            if match := pattern.search(text):
                return match[0]
    return None


# --- Perplexity --------------------------------------------------------------------------------------------------


def perplexity_outliers(losses: np.ndarray, *, sigmas: float = 3.0) -> np.ndarray:
    """Return which texts have a perplexity exp(loss) above mean + `sigmas` standard deviations: (n,) bool.

    The rule uses the perplexity, not its logarithm, so one extreme text can hide others; to find them, remove it and
    apply the rule again. NaN losses are ignored and never flagged.

    Args:
        losses: (n,) the mean loss per token of each text, in nats.
    """
    losses = np.asarray(losses, dtype=np.float64)
    scored = np.isfinite(losses)
    if not scored.any():
        return np.zeros(len(losses), dtype=bool)
    perplexity = np.exp(losses - losses[scored].max())  # scaled to avoid overflow; the rule does not depend on scale
    limit = perplexity[scored].mean() + sigmas * perplexity[scored].std()
    return scored & (perplexity > limit)


__all__ = [
    "ENGLISH_WEB",
    "QualityRules",
    "blocked_term",
    "detect_language",
    "load_block_list",
    "perplexity_outliers",
    "quality_problem",
    "quality_problems",
]
