"""One text -> why it goes, or what it becomes: quality rules, private data masked, block lists, perplexity.

Pure functions: a text in, a reason or a text out. What each rule counts and where its figure comes from stands beside
it. Every pattern here takes time in proportion to the text, a line of 100 MB included.
"""

import ipaddress
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .words import PLANES, UNSPACED, comes_again, run_hashes, slices, words


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
LETTER = re.compile(r"[^\W\d_]")
BULLETS = ("-", "*", "\u2022", "\u2023", "\u25aa", "\u25cf")
ELLIPSES = ("...", "\u2026")


def quality_problem(text: str, *, rules: QualityRules = ENGLISH_WEB) -> str | None:
    """The first rule a text breaks: "too_short", "too_long", "word_length", "symbols", "not_words", "bullets",
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
    again = np.flatnonzero(comes_again(run_hashes(hashes, run)))
    if not len(again):
        return 0.0
    edges = np.zeros(len(hashes) + 1, dtype=np.int64)
    edges[again] += 1
    edges[again + run] -= 1
    return float((np.cumsum(edges)[:-1] > 0).mean())


def detect_language(text: str) -> str:
    """The ISO 639-1 code of a text's language, read off its first 5,000 characters (py3langid: Lui and Baldwin 2012).

    Raises:
        ValueError: the library is not there.
    """
    try:
        from py3langid.langid import classify
    except ImportError as error:
        raise ValueError(
            'Telling languages apart needs the extra "languages": pip install -e ".[languages]"'
        ) from error
    return classify(text[:5000])[0]


# --- Privacy -----------------------------------------------------------------------------------------------------


# Every quantifier is bounded or gives nothing back (a++), and a match starts only where a word does: linear time.
KEY = re.compile(
    r"""
    -----BEGIN\ (?:[A-Z0-9]{1,20}\ ){0,4}PRIVATE\ KEY(?:\ BLOCK)?-----(?:[^-]++|-(?!----))*+
    -----END\ [A-Z0-9 ]{1,60}-----
    | (?<![A-Za-z0-9_]) (?:
        (?:AKIA|ASIA)[0-9A-Z]{16}                                      # AWS access key id
        | gh[pousr]_[A-Za-z0-9]{36,}+                               # GitHub
        | github_pat_[A-Za-z0-9_]{22,}+
        | glpat-[A-Za-z0-9_-]{20,}+                                 # GitLab
        | hf_[A-Za-z0-9]{30,}+                                      # Hugging Face
        | sk-(?=[A-Za-z_-]{0,80}[0-9])[A-Za-z0-9_-]{20,}+           # OpenAI, Anthropic and alike
        | [rs]k_(?:live|test)_[A-Za-z0-9]{16,}+                     # Stripe
        | xox[abeprs]-[A-Za-z0-9-]{10,}+                            # Slack
        | AIza[A-Za-z0-9_-]{35}                                        # Google
        | (?<!-)eyJ[A-Za-z0-9_-]{8,}+\.eyJ[A-Za-z0-9_-]{8,}+\.[A-Za-z0-9_-]{8,}+  # JSON web token
      ) (?![A-Za-z0-9_])
    """,
    re.VERBOSE,
)
ASSIGNED_KEY = re.compile(  # api_key = "..."; the value has to hold a letter and a digit
    r"""
    (?=[acpstACPST])(?<![A-Za-z0-9])
    (?P<kept>(?i:(?:api|secret|access|auth|private|client)[_-]?(?:access[_-]?)?(?:key|token|secret)|token)
    ["']?\s{0,3}(?::|=>?)\s{0,3}["']?)
    (?=[A-Za-z_./+=-]{0,200}[0-9])(?=[0-9_./+=-]{0,200}[A-Za-z])
    [A-Za-z0-9_./+=-]{16,}+
    """,
    re.VERBOSE,
)
LETTERS = r"A-Za-z\u00c0-\u052f\u1e00-\u1fff"  # of scripts that put spaces between words: Latin, Greek, Cyrillic
EMAIL = re.compile(
    rf"(?<![{LETTERS}0-9._%+-])(?!git@)[{LETTERS}0-9._%+-]{{1,64}}+"
    rf"@(?:[{LETTERS}0-9-]{{1,63}}+\.){{1,8}}(?:xn--[a-z0-9]{{2,59}}|[A-Za-z]{{2,24}}|[{LETTERS}]{{2,24}})"
    r"(?!-?[A-Za-z0-9])"
)
# What may not touch a number is ASCII: one between Chinese characters, which know no spaces, is one too.
OCTET = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
IPV4 = re.compile(rf"(?=\d)(?<![\w.])(?<![A-Za-z0-9]/){OCTET}(?:\.{OCTET}){{3}}(?!\w|\.\d|-[A-Za-z])", re.ASCII)
IPV6 = re.compile(
    r"""
    (?=[0-9A-Fa-f:])(?<![\w.])(?:
        [0-9A-Fa-f]{1,4}(?:::?[0-9A-Fa-f]{1,4}){1,7}+(?:::)?+           # 2001:db8::17, 2001:db8::
        | ::[0-9A-Fa-f]{1,4}(?::[0-9A-Fa-f]{1,4}){1,6}+                # ::ffff:0:17
    )(?!\w|:[\w:])
    """,
    re.VERBOSE | re.ASCII,
)
PHONE = re.compile(
    r"""
    (?=[+(0-9])(?:
    \+(?<![\w+]\+)
    (?!(?:19|20)\d\d[-/.](?:0[1-9]|1[0-2])[-/.](?:0[1-9]|[12]\d|3[01])(?!-?\d))  # the date of a line that a diff adds
    (?!(?:0?[1-9]|[12]\d|3[01])[-/.](?:0?[1-9]|1[0-2])[-/.](?:19|20)\d\d(?![ -]?\d))
    [1-9](?:
        (?:[ ()-]{0,2}\d){7,14}(?!\d)                                  # +44 20 7946 0958 (E.164: 8 to 15 digits)
        | (?:[ ()-]{0,2}\d){1,6}[ ]?/[ ]?\d(?:[ -]?\d){3,11}(?!\d)     # +49 30/1234567
        | \d{0,2}(?:\.\d{2,4}){2,4}(?=x\d|(?!\w|\.\d))                 # +1.212.555.0123
      )(?:x\d{1,5}(?!\w))?
    | (?<![\w.+-])(?:
        (?:1[ .-])?(?:\(\d{3}\)[ ]?\d{3}[ .-]|\d{3}-\d{3}-|\d{3}\.\d{3}\.)\d{4}  # (212) 555-0123, 212-555-0123
        | (?:\(0[1-9]\d{1,3}\)|0[1-9]\d{1,3})[ -]\d{3,4}[ -]?\d{3,4}    # 020 7946 0958, (0151) 234 5678
        | (?P<pairs>0[1-9](?:[ .-]\d\d){4})                            # 01 23 45 67 89, and no pair behind it
          (?![ ](?:\d[0-9A-Fa-f]|[A-Fa-f]\d)(?!\w))
      )(?:x\d{1,5})?(?![\w-]|\.\d)                                     # 212-555-0123x45
    )
    """,
    re.VERBOSE | re.ASCII,
)
# telephone numbers and versions where a word says so
DIGITS = re.compile(r"(?=[+(0-9])(?<![\w.+-])\+?\(?\d(?:[ ()./-]{0,2}\d){6,14}(?!\d)(?:x\d{1,5}(?!\w))?", re.ASCII)
SAYS_PHONE = re.compile(
    rf"(?<![{LETTERS}0-9_])(?!PHONE\])(?i:tel(?:ephone)?|phone|mobile|cell|fax|whatsapp)\W{{0,3}}"  # not [PHONE]
    r"(?i:no\W{0,3}|number\W{0,3})?$"
)
SAYS_VERSION = re.compile(r"(?i)\b(?:version|ver|revision|rev|release|section|sect|sec|chapter|clause|build)\W{1,3}$")
DATE = re.compile(r"(?:\d\d?/\d\d?/\d{4}|\d{4}/\d\d?/\d\d?)(?!\d)")
ENDS_GROUP = re.compile(r"(?:(?<!\w)[0-9A-Fa-f]{1,4}|:):$", re.ASCII)  # of an address that begins further left
ENDS_PAIR = re.compile(r"(?<![A-Za-z0-9])(?:\d[0-9A-Fa-f]|[A-Fa-f]\d|[A-Fa-f]{2} [A-Fa-f]{2}) $")


def _before(match: re.Match) -> str:
    return match.string[max(0, match.start() - 24) : match.start()]


def _is_version(match: re.Match) -> bool:
    # 1.2.3.4 can be either: with a word for it before it, or four numbers below 10, it is a version or a section
    return len(match[0]) == len("1.2.3.4") or bool(SAYS_VERSION.search(_before(match)))


def _is_no_address(match: re.Match) -> bool:
    # a time of day, C++'s or Haskell's ::, a MAC address; an IPv6 address of a machine has a digit and two groups
    groups = [group for group in match[0].split(":") if group]
    if match[0].count(":") < 2 or len(groups) < 2 or not any(map(str.isdigit, match[0])):
        return True
    try:
        ipaddress.IPv6Address(match[0])
    except ValueError:
        return True
    return bool(ENDS_GROUP.search(_before(match)))


def _is_row_of_pairs(match: re.Match) -> bool:
    # 01 02 03 04 05 behind another pair, of a hex dump too, or behind a word for versions
    before = _before(match)
    return match["pairs"] is not None and bool(ENDS_PAIR.search(before) or SAYS_VERSION.search(before))


def _is_no_phone(match: re.Match) -> bool:
    return bool(DATE.match(match[0])) or not SAYS_PHONE.search(_before(match))


# kind -> patterns, each with what every match holds (looked for first: faster), and which matches stay
MASKS: dict[str, list[tuple[re.Pattern, str, Callable[[re.Match], bool] | None]]] = {
    "key": [(KEY, "", None), (ASSIGNED_KEY, "", None)],
    "email": [(EMAIL, "@", None)],
    "ip": [(IPV4, ".", _is_version), (IPV6, ":", _is_no_address)],
    "phone": [(PHONE, "", _is_row_of_pairs), (DIGITS, "", _is_no_phone)],
}
KINDS = tuple(MASKS)
UNBREAKING = {"\u00a0": " ", "\u202f": " ", "\u2010": "-", "\u2011": "-"}  # spaces and hyphens that no line breaks at


def mask_private(
    text: str,
    *,
    kinds: Collection[str] = KINDS,
    find_names: Callable[[str], Iterable[tuple[int, int]]] | None = None,
) -> tuple[str, dict[str, int]]:
    """Text -> the text with private data masked, and how often: {"key": 0, "email": 2, "ip": 0, "phone": 1}.

    "[KEY]" stands for keys and tokens of known shape, private key blocks and what is assigned to `api_key` and alike,
    "[EMAIL]", "[IP]" and "[PHONE]" for what they say. What stays: 1.2.3.4 (four numbers below 10) and addresses that a
    word such as "version" stands before; telephone numbers without a country code, an area code with its usual
    separators or a word such as "tel" before them.

    Args:
        find_names: text -> the (start, end) of people's names, which become "[NAME]" and are counted as "name";
            `names.names_finder` makes one from a named-entity model.

    Raises:
        ValueError: an unknown kind.
    """
    unknown = set(kinds) - set(KINDS)
    if unknown:
        raise ValueError(f"Nothing masks {', '.join(sorted(unknown))}; there are {', '.join(KINDS)}.")
    counts = dict.fromkeys(kinds, 0)
    if find_names is not None:
        pieces, end = [], 0
        for start, stop in sorted(find_names(text)):
            if start >= end:
                pieces += [text[end:start], "[NAME]"]
                end = stop
        text, counts["name"] = "".join([*pieces, text[end:]]), len(pieces) // 2

    for kind in (kind for kind in KINDS if kind in kinds):
        for pattern, needle, stays in MASKS[kind]:
            kept, end = [], 0
            for match in pattern.finditer(_with_usual_breaks(text)) if needle in text else ():
                if stays is None or not stays(match):
                    start = match.end("kept") if "kept" in pattern.groupindex else match.start()
                    kept += [text[end:start], f"[{kind.upper()}]"]
                    end = match.end()
            text, counts[kind] = "".join([*kept, text[end:]]), counts[kind] + len(kept) // 2
    return text, counts


def _with_usual_breaks(text: str) -> str:
    # as long as the text, so that what is found in one stands there in the other
    for unbreaking, usual in UNBREAKING.items():
        text = text.replace(unbreaking, usual)
    return text


# --- Block lists -------------------------------------------------------------------------------------------------


# Characters that are words by themselves, as words.py has it; a word of any other has no letter beside it.
CHARACTERS = "".join(f"{chr(first)}-{chr(last)}" for first, last in (*UNSPACED, (PLANES, 0x10FFFF)))
BEGINS_WORD = rf"(?-i:(?<![^\W{CHARACTERS}])|(?=[{CHARACTERS}]))"
ENDS_WORD = rf"(?-i:(?![^\W{CHARACTERS}])|(?<=[{CHARACTERS}]))"


def load_block_list(path: str | Path) -> list[re.Pattern]:
    """A file of words -> what `blocked_term` looks for, the words in one pattern and each /regex/ in its own.

    One word (or several, with a space between) or /regex/ a line; what stands behind a "#" at the start of a line or
    after a space is a comment. Words match whole and in any case, patterns as they are written. In scripts that put no
    space between words (see words.py) a word is found wherever it stands.

    Raises:
        ValueError: no such file, nothing in it, or a pattern that is none.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
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
        first = "".join(sorted({re.match(r"\\?.", term)[0] for term in terms}))  # looked at before the words: faster
        whole = rf"(?=[{first}]){BEGINS_WORD}(?:{'|'.join(longest_first)}){ENDS_WORD}"
        patterns.insert(0, re.compile(whole, re.IGNORECASE))
    if not patterns:
        raise ValueError(f"The block list {path} holds no word; write one word or /regex/ a line.")
    return patterns


def blocked_term(text: str, patterns: Iterable[re.Pattern]) -> str | None:
    """The first term of a block list that is found in a text, as it stands there; None where there is none."""
    found = (pattern.search(text) for pattern in patterns)
    return next((match[0] for match in found if match), None)


# --- Perplexity --------------------------------------------------------------------------------------------------


def perplexity_outliers(losses: np.ndarray, *, sigmas: float = 3.0) -> np.ndarray:
    """(n,) mean loss per token of each text, in nats -> (n,) bool: whose perplexity exp(loss) is above mean + 3 sigma.

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
    "KINDS",
    "QualityRules",
    "blocked_term",
    "detect_language",
    "load_block_list",
    "mask_private",
    "perplexity_outliers",
    "quality_problem",
]
