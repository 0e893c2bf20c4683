"""One text -> why it goes, or what it becomes: quality rules, private data masked, block lists, perplexity.

Pure functions: a text in, a reason or a text out. What each rule counts and where its figure comes from stands beside
it. Every pattern here takes time in proportion to the text, a line of 100 MB included.
"""

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from .words import run_hashes, words


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


def quality_problem(text: str, *, rules: QualityRules | None = None) -> str | None:
    """The first rule a text breaks, or None: "too_short", "too_long", "word_length", "symbols", "not_words", "bullets",
    "ellipses", "repetition" or "language".

    Raises:
        ValueError: languages asked for without the library that tells them apart.
    """
    raise NotImplementedError


# --- Privacy -----------------------------------------------------------------------------------------------------


KINDS = ("key", "email", "ip", "phone")


def mask_private(
    text: str,
    *,
    kinds: Collection[str] = KINDS,
    find_names: Callable[[str], Iterable[tuple[int, int]]] | None = None,
) -> tuple[str, dict[str, int]]:
    """Text -> the text with private data replaced, and how often: {"key": 0, "email": 2, ...}."""
    raise NotImplementedError


# --- Block lists -------------------------------------------------------------------------------------------------


def load_block_list(path: str | Path) -> list[re.Pattern]:
    """A file of words and /patterns/ -> what `blocked_term` looks for."""
    raise NotImplementedError


def blocked_term(text: str, patterns: Iterable[re.Pattern]) -> str | None:
    """The first word of a block list that stands in a text, as it stands there; None where there is none."""
    raise NotImplementedError


# --- Perplexity --------------------------------------------------------------------------------------------------


def perplexity_outliers(losses: np.ndarray, *, sigmas: float = 3.0) -> np.ndarray:
    """(n,) mean loss per token of each text, in nats -> (n,) bool, whether its perplexity is an outlier."""
    raise NotImplementedError


__all__ = [
    "KINDS",
    "QualityRules",
    "blocked_term",
    "load_block_list",
    "mask_private",
    "perplexity_outliers",
    "quality_problem",
]
