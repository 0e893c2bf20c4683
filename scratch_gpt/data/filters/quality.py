"""One text -> why it goes: quality rules, block lists, perplexity. (What is private in it is privacy.py's.)

Pure functions: a text in, a reason out. What each rule counts and where its figure comes from stands beside
it. Every pattern here takes time in proportion to the text, a line of 100 MB included.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...utils.foreign import time_limit
from ...utils.local_files import read_text_file
from .words import PLANES, UNSPACED, is_repeated, run_hashes, slices, words


# --- Quality -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class QualityRules:
    """What a text has to satisfy; None leaves a rule out.

    The figures are Gopher's (Rae et al. 2021, "Scaling Language Models", table A1), made for English web pages: short
    rows (instructions, messages), books and other scripts need others.
    """

    min_words: int | None = 50
    max_words: int | None = 100_000
    word_length: tuple[float, float] | None = (3, 10)  # the mean, in characters
    max_symbols: float | None = 0.1  # "#" and ellipses for each word
    min_alphabetic: float | None = 0.8  # the share of words with a letter
    max_bullets: float | None = 0.9  # the share of lines that start with a bullet
    max_ellipses: float | None = 0.3  # the share of lines that end with an ellipsis
    max_repeated_lines: float | None = 0.3  # the share of lines that stood before
    max_repeated_words: float | None = 0.1  # the share of words in runs of ten that stood before
    languages: tuple[str, ...] = ()  # ISO 639-1 codes that may stay; none: any


ENGLISH_WEB = QualityRules()
MATCH_SECONDS = 10  # that one pattern of a block list has for one text
LETTER = re.compile(r"[^\W\d_]")
BULLETS = ("-", "*", "\u2022", "\u2023", "\u25aa", "\u25cf")
ELLIPSES = ("...", "\u2026")


def quality_problem(text: str, *, rules: QualityRules = ENGLISH_WEB) -> str | None:
    """Return the first rule a text breaks: "too_short", "too_long", "word_length", "symbols", "not_words", "bullets",
    "ellipses", "repetition" or "language"; None where it breaks none. Words are what white space separates.

    Raises:
        ValueError: languages asked for without the library that tells them apart.
    """
    n = sum(len(piece.split()) for _, piece in slices(text))
    if rules.min_words is not None and n < rules.min_words:
        return "too_short"
    if rules.max_words is not None and n > rules.max_words:
        return "too_long"
    tokens = text.split()
    n = max(n, 1)
    if rules.word_length is not None:
        shortest, longest = rules.word_length
        if not shortest <= sum(map(len, tokens)) / n <= longest:
            return "word_length"
    symbols = sum(map(text.count, ("#", *ELLIPSES)))
    if rules.max_symbols is not None and symbols > rules.max_symbols * n:
        return "symbols"
    if rules.min_alphabetic is not None and sum(map(bool, map(LETTER.search, tokens))) < rules.min_alphabetic * n:
        return "not_words"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if rules.max_bullets is not None and sum(x.startswith(BULLETS) for x in lines) > rules.max_bullets * len(lines):
        return "bullets"
    if rules.max_ellipses is not None and sum(x.endswith(ELLIPSES) for x in lines) > rules.max_ellipses * len(lines):
        return "ellipses"
    if rules.max_repeated_lines is not None and len(lines) - len({*lines}) > rules.max_repeated_lines * len(lines):
        return "repetition"
    if rules.max_repeated_words is not None and _repeated_share(text) > rules.max_repeated_words:
        return "repetition"
    if rules.languages and detect_language(text) not in rules.languages:
        return "language"
    return None


def _repeated_share(text: str, run: int = 10) -> float:
    # the share of a text's words that lie in a run of ten which stood further left
    hashes = words(text).hashes
    again = np.flatnonzero(is_repeated(run_hashes(hashes, run)))
    if not len(again):
        return 0.0
    edges = np.zeros(len(hashes) + 1, dtype=np.int64)
    edges[again] += 1
    edges[again + run] -= 1
    return float((np.cumsum(edges)[:-1] > 0).mean())


def detect_language(text: str) -> str:
    """Return the ISO 639-1 code of the language of a text's first 5,000 characters (py3langid: Lui and Baldwin 2012).

    Raises:
        ValueError: the library is not there.
    """
    try:
        from py3langid.langid import classify
    except ImportError as error:
        raise ValueError(
            'Telling languages apart needs the extra "languages": pip install "scratch_gpt[languages]"'
        ) from error
    return classify(text[:5000])[0]


# --- Block lists -------------------------------------------------------------------------------------------------


# Characters that are words by themselves, as words.py has it; a word of any other has no letter beside it.
CHARACTERS = "".join(f"{chr(first)}-{chr(last)}" for first, last in (*UNSPACED, (PLANES, 0x10FFFF)))
BEGINS_WORD = rf"(?-i:(?<![^\W{CHARACTERS}])|(?=[{CHARACTERS}]))"
ENDS_WORD = rf"(?-i:(?![^\W{CHARACTERS}])|(?<=[{CHARACTERS}]))"


def load_block_list(path: str | Path) -> list[re.Pattern]:
    """Read a block list as patterns for `blocked_term`: one for all words, and one for each /regex/.

    One word (or several, with a space between) or /regex/ a line; what stands behind a "#" at the start of a line or
    after a space is a comment. Words match whole and in any case, patterns as they are written. In scripts that put no
    space between words (see words.py) a word is found wherever it stands.

    Raises:
        ValueError: no such file, nothing in it, or a pattern that is none.
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
                raise ValueError(f"{path}, line {number}: {term} is no regular expression: {error}.") from error
        elif term:
            terms.append(r"\s+".join(map(re.escape, term.split())))
    if terms:
        longest_first = sorted(set(terms), key=lambda term: (-len(term), term))
        # A word's first character, which may be escaped, is looked at before the words: faster.
        first = "".join(sorted({term[: 2 if term[0] == "\\" else 1] for term in terms}))
        word_pattern = rf"(?=[{first}]){BEGINS_WORD}(?:{'|'.join(longest_first)}){ENDS_WORD}"
        patterns.insert(0, re.compile(word_pattern, re.IGNORECASE))
    if not patterns:
        raise ValueError(f"The block list {path} holds no word; write one word or /regex/ a line.")
    return patterns


def blocked_term(text: str, patterns: Iterable[re.Pattern]) -> str | None:
    """Return the first match of a block list in a text; None if there is none.

    Raises:
        ValueError: a pattern takes more than SECONDS for this text.
    """
    for pattern in patterns:
        with time_limit(MATCH_SECONDS, f"Looking for /{pattern.pattern[:60]}/ of the block list in one text"):
            if match := pattern.search(text):
                return match[0]
    return None


# --- Perplexity --------------------------------------------------------------------------------------------------


def perplexity_outliers(losses: np.ndarray, *, sigmas: float = 3.0) -> np.ndarray:
    """Return which texts have a perplexity exp(loss) above mean + `sigmas` standard deviations: (n,) bool.

    `losses` is (n,), the mean loss per token of each text, in nats.

    The perplexity itself, not its logarithm, so one very strange text can hide others; what is left can be scored
    again. A loss that is NaN was not scored: it is not flagged and does not count.
    """
    losses = np.asarray(losses, dtype=np.float64)
    scored = np.isfinite(losses)
    if not scored.any():
        return np.zeros(len(losses), dtype=bool)
    perplexity = np.exp(losses - losses[scored].max())  # up to a factor, which the rule does not see: no overflow
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
]
