"""The shapes of keys, tokens and passwords: one table for the filter of texts and for the scan before publishing.

Every quantifier is bounded or gives nothing back (a++), and a match starts only where a word does: linear time.
"""

import base64
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator


# What it is -> its shape, from the beginning of a word.
SHAPES = {
    "a Hugging Face token": r"hf_[A-Za-z0-9]{30,}+",
    "an OpenAI or Anthropic key": r"sk-(?=[A-Za-z_-]{0,80}[0-9])[A-Za-z0-9_-]{20,}+",
    "a GitHub token": r"gh[pousr]_[A-Za-z0-9]{36,}+|github_pat_[A-Za-z0-9_]{22,}+",
    "a GitLab token": r"glpat-[A-Za-z0-9_-]{20,}+",
    "an AWS key": r"(?:AKIA|ASIA)[0-9A-Z]{16}(?![A-Za-z0-9_])",
    "a Google key": r"AIza[A-Za-z0-9_-]{35}",
    "a Slack token": r"xox[abeprs]-[A-Za-z0-9-]{10,}+",
    "a Stripe key": r"[rs]k_(?:live|test)_[A-Za-z0-9]{16,}+",
    "an npm token": r"npm_(?=[A-Za-z]{0,80}[0-9])[A-Za-z0-9]{20,}+",
    "a PyPI token": r"pypi-(?=[A-Za-z_-]{0,200}[0-9])[A-Za-z0-9_-]{20,}+",
    "a SendGrid key": r"SG\.(?=[A-Za-z_-]{0,80}[0-9])[A-Za-z0-9_-]{16,}+(?:\.[A-Za-z0-9_-]{8,}+)?",
    "a Google token": r"ya29\.[A-Za-z0-9_-]{16,}+",
    "a Groq key": r"gsk_[A-Za-z0-9]{20,}+",
    "a Docker token": r"dckr_[op]at_[A-Za-z0-9_-]{16,}+",
    "a bearer token": r"[Bb]earer[ \t]{1,3}(?=[A-Za-z_.~+/-]{0,200}[0-9])[A-Za-z0-9_.~+/=-]{16,}+",
    "a JSON web token": r"(?<!-)eyJ[A-Za-z0-9_-]{8,}+\.eyJ[A-Za-z0-9_-]{8,}+\.[A-Za-z0-9_-]{8,}+",
}
# ASCII, as scripts without spaces may touch a key; first of all the letters that a shape begins with, which is faster.
WORD_BEGINS = r"(?=[ABSbdeghnprsxy][AEGIKSacefhikloprsy])(?<![A-Za-z0-9_])"
WORD_ENDS = r"(?![A-Za-z0-9_])"
BEGIN_PRIVATE = r"-----BEGIN (?:[A-Z0-9]{1,20} ){0,4}PRIVATE KEY(?: BLOCK)?-----"
PASSWORD = re.compile(  # https://user:password@host, but for a template such as ${PASSWORD}
    r"""
    ://(?<=[A-Za-z0-9]://)(?P<secret>[^\s/:@"'<>?\#]{0,100}:(?!\$[{A-Z(]|[{*\[]|%[s(])[^\s/"'<>?\#]{1,200})
    @(?=[A-Za-z0-9_\[\u0080-\U0010ffff])
    """,
    re.VERBOSE,
)
NETRC = re.compile(  # machine example.org login ada password ..., on one line or on several
    r"""
    (?=[md][ae][cf])(?<![A-Za-z0-9_])(?:machine\s{1,9}\S{1,200}|default)\s{1,9}
    login\s{1,9}\S{1,200}\s{1,9}password\s{1,9}(?P<secret>\S{4,200}+)
    """,
    re.VERBOSE,
)
ASSIGNED = re.compile(  # any name that ends so, = or :, and a value that holds a digit; a tokenizer's tokens are none
    r"""
    (?=[kKpPsStT][aAeEoOwW][cCdDkKsSyY][eErRsS:=\s"'\\])  # key, pass, pwd, secr, toke: faster
    (?i:(?P<name>key|(?<!(?:bos|eos|unk|pad|sep|cls)_)(?<!mask_)token|secret|password|passwd|pwd))
    \\?["']?\s{0,3}(?::|=>?)\s{0,3}\\?(?P<quote>["']?)
    (?=[A-Za-z_./+=-]{0,200}[0-9])
    (?P<secret>[A-Za-z0-9_./+=-]{16,}+)
    """,
    re.VERBOSE,
)
# What makes `key` the name of a secret, and not of a column.
OF_SECRETS = re.compile(
    r"(?i)(?<![A-Za-z0-9])(?:api|secret|access|auth|private|client|wandb)[ _-]?(?:(?:access|api)[ _-]?)?$"
)
OF_AWS = re.compile(r"(?=[a-z0-9/+]*[A-Z])(?=[A-Z0-9/+]*[a-z])[A-Za-z0-9/+]{40}")  # may look like a path
AWS_SECRET = re.compile(  # 40 such characters alone, whatever their name: of both cases, with a digit
    r"""
    (?=[A-Za-z0-9/+]{40})(?<![A-Za-z0-9/+_.-])
    (?=[A-Z0-9/+]{0,39}[a-z])(?=[a-z0-9/+]{0,39}[A-Z])(?=[A-Za-z/+]{0,39}[0-9])
    [A-Za-z0-9/+]{40}(?![A-Za-z0-9/+_=-]|\.[A-Za-z0-9_])
    """,
    re.VERBOSE,
)
RUNS = re.compile(r"[A-Z]+|[a-z]+|[0-9]+|[/+]+")
LEAST_RUNS, LEAST_BITS = 17, 4.4  # of one kind, and per character; names and paths of 40 characters have 12 to 15 runs
LONGER = re.compile(r"[A-Za-z0-9/+]{41}[\s\"'\\,+nrb]{0,40}$"), re.compile(r"[\s\"'\\,+nrb]{0,40}[A-Za-z0-9/+]{41}")
NUMBER = re.compile(r"[0-9_./+=-]*(?:e[0-9+-]+)?", re.IGNORECASE)
MAX_EXPRESSION = 200  # characters that an expression in code has at most
IDENTIFIERS = re.compile(r"=*[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*+", re.ASCII)
NAME_PARTS = re.compile(r"[A-Z]+(?![a-z])\d*|[A-Z]?[a-z]+\d*|\d+", re.ASCII)  # of a name: get, Key1, HTTP2
MIN_PART_LENGTH = 3.2  # mean length of the parts at least
DIGIT_FIRST = re.compile(r"\d[A-Za-z]")  # a digit inside a word: base64decode
PART = re.compile(r"[A-Za-z]{1,15}\d{0,3}|\d{1,5}", re.ASCII)


def is_code(match: re.Match) -> bool:
    """Return whether the value that ASSIGNED has found is an expression in code, a path or a number instead of a key.

    Code is what is called or indexed, and names made of words where no quotation mark stands before them. A path is
    made of words too, with a slash or a dot, in quotation marks or not. A `key` or `token` whose name says no more
    than that may be a column's: names made of words, and numbers, are no keys there.
    """
    value, behind = match["secret"], match.string[match.end("secret") : match.end("secret") + 1]
    before = match.string[max(0, match.start() - 24) : match.start()]
    is_bare = match["name"].lower() in ("key", "token") and not OF_SECRETS.search(before)
    if is_bare and NUMBER.fullmatch(value):
        return True
    if len(value) > MAX_EXPRESSION or (not is_bare and OF_AWS.fullmatch(value)):
        return False
    is_name = IDENTIFIERS.fullmatch(value) is not None
    if is_name and behind in ("(", "["):
        return True
    is_column = is_bare and (match["name"].lower() == "key" or before[-1:].isalnum() or before[-1:] in ("_", "-"))
    if (
        (is_column and re.search("[_-]", value))
        or (is_name and not match["quote"])
        or "/" in value
        or "." in value.rstrip(".")
    ):
        return _is_of_words(value)
    return False


def is_not_random(match: re.Match) -> bool:
    """Return whether what AWS_SECRET has found is a name, a path, text in base64 or a line of longer base64."""
    value, start, end = match[0], match.start(), match.end()
    bits = -sum(count / 40 * math.log2(count / 40) for count in Counter(value).values())
    if len(RUNS.findall(value)) < LEAST_RUNS or bits < LEAST_BITS:
        return True
    if base64.b64decode(value).isascii():  # of 30 random bytes one in 10^9
        return True
    before, behind = match.string[max(0, start - 120) : start], match.string[end : end + 120]
    return bool(LONGER[0].search(before) or LONGER[1].match(behind))


def _is_of_words(value: str) -> bool:
    # letters with at most three digits behind them, and few parts: random characters make many, of a letter or two
    parts = NAME_PARTS.findall(value)
    if not all(map(PART.fullmatch, parts)) or len(DIGIT_FIRST.findall(value)) > 1 or "+" in value:
        return False
    short = [part for part in parts if len(part.rstrip("0123456789")) < 3]
    return 2 * len(short) < len(parts) and sum(map(len, parts)) >= MIN_PART_LENGTH * len(parts)


# What it is, its pattern, and which of its matches are no key.
KEYS: list[tuple[str, re.Pattern, Callable[[re.Match], bool] | None]] = [
    *((kind, re.compile(f"{WORD_BEGINS}(?:{shape})"), None) for kind, shape in SHAPES.items()),
    ("a private key", re.compile(BEGIN_PRIVATE), None),
    ("a password in an address", PASSWORD, None),
    ("a password of .netrc", NETRC, None),
    ("a key or token", ASSIGNED, is_code),
    ("an AWS secret key", AWS_SECRET, is_not_random),
]


def find_keys(text: str) -> Iterator[tuple[int, str]]:
    """Yield where each key in a text begins, and what of KEYS it is."""
    for kind, pattern, is_no_key in KEYS:
        for match in pattern.finditer(text):
            if is_no_key is None or not is_no_key(match):
                yield match.start(), kind


__all__ = [
    "ASSIGNED",
    "AWS_SECRET",
    "BEGIN_PRIVATE",
    "KEYS",
    "NETRC",
    "PASSWORD",
    "SHAPES",
    "WORD_BEGINS",
    "WORD_ENDS",
    "find_keys",
    "is_code",
    "is_not_random",
]
