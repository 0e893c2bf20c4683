"""Find keys, tokens and passwords in text; the filter of texts and the scan before publishing share these patterns.

Every quantifier is bounded or possessive (a++), and a match starts only at the start of a word, so the time is linear.
"""

import base64
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator


# Kind of a key -> its pattern, from the start of a word.
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
# Every key contains one of these.
SHAPE_PARTS = ("hf_", "sk-", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "glpat-", "AKIA", "ASIA", "AIza")
SHAPE_PARTS += ("xox", "k_live_", "k_test_", "npm_", "pypi-", "SG.", "ya29.", "gsk_", "dckr_", "earer", "eyJ")
# ASCII, because text in a script without spaces may touch a key. First of all it tests the first letters, for speed.
WORD_BEGINS = r"(?=[ABSbdeghnprsxy][AEGIKSacefhikloprsy])(?<![A-Za-z0-9_])"
WORD_ENDS = r"(?![A-Za-z0-9_])"
BEGIN_PRIVATE = r"-----BEGIN (?:[A-Z0-9]{1,20} ){0,4}PRIVATE KEY(?: BLOCK)?-----"
PASSWORD = re.compile(  # https://user:password@host, except a template such as ${PASSWORD}
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
ASSIGNED = re.compile(  # a name with one of these endings, = or :, a value with a digit; not a tokenizer's token
    r"""
    (?=[kKpPsStT][aAeEoOwW][cCdDkKsSyY][eErRsS:=\s"'\\])  # key, pass, pwd, secr, toke: faster
    (?i:(?P<name>key|(?<!(?:bos|eos|unk|pad|sep|cls)_)(?<!mask_)token|secret|password|passwd|pwd))
    \\?["']?\s{0,3}(?::|=>?)\s{0,3}\\?(?P<quote>["']?)
    (?=[A-Za-z_./+=-]{0,200}[0-9])
    (?P<secret>[A-Za-z0-9_./+=-]{16,}+)
    """,
    re.VERBOSE,
)
# Words before `key` that make it the name of a secret, and not of a column.
OF_SECRETS = re.compile(
    r"(?i)(?<![A-Za-z0-9])(?:api|secret|access|auth|private|client|wandb)[ _-]?(?:(?:access|api)[ _-]?)?$"
)
OF_AWS = re.compile(r"(?=[a-z0-9/+]*[A-Z])(?=[A-Z0-9/+]*[a-z])[A-Za-z0-9/+]{40}")  # may look like a path
AWS_SECRET = re.compile(  # exactly 40 such characters after any name, in both cases, with a digit
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
MAX_EXPRESSION = 200  # largest number of characters of an expression in code
IDENTIFIERS = re.compile(r"=*[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*+", re.ASCII)
NAME_PARTS = re.compile(r"[A-Z]+(?![a-z])\d*|[A-Z]?[a-z]+\d*|\d+", re.ASCII)  # of a name: get, Key1, HTTP2
MIN_PART_LENGTH = 3.2  # smallest mean length of the parts
DIGIT_FIRST = re.compile(r"\d[A-Za-z]")  # a digit inside a word: base64decode
PART = re.compile(r"[A-Za-z]{1,15}\d{0,3}|\d{1,5}", re.ASCII)


def is_code(match: re.Match) -> bool:
    """Return whether a match of ASSIGNED is an expression in code, a path or a number instead of a key.

    A value is code if it is called or indexed, or if it is a name made of words without a quotation mark before it. A
    path is also made of words, with a slash or a dot, with or without quotation marks. A plain `key` or `token` may
    name a column, so numbers and names made of words do not count as keys there.
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
    """Return whether a match of AWS_SECRET is a name, a path, text in base64 or a line of longer base64."""
    value, start, end = match[0], match.start(), match.end()
    bits = -sum(count / 40 * math.log2(count / 40) for count in Counter(value).values())
    if len(RUNS.findall(value)) < LEAST_RUNS or bits < LEAST_BITS:
        return True
    if base64.b64decode(value).isascii():  # true for one in 10^9 of 30 random bytes
        return True
    before, behind = match.string[max(0, start - 120) : start], match.string[end : end + 120]
    return bool(LONGER[0].search(before) or LONGER[1].match(behind))


def _is_of_words(value: str) -> bool:
    # Parts are letters with at most three digits after them. Random characters give many parts of one or two letters.
    parts = NAME_PARTS.findall(value)
    if not all(map(PART.fullmatch, parts)) or len(DIGIT_FIRST.findall(value)) > 1 or "+" in value:
        return False
    short = [part for part in parts if len(part.rstrip("0123456789")) < 3]
    return 2 * len(short) < len(parts) and sum(map(len, parts)) >= MIN_PART_LENGTH * len(parts)


# Kind of a key, its pattern, and a function that recognizes false matches.
KEYS: list[tuple[str, re.Pattern, Callable[[re.Match], bool] | None]] = [
    *((kind, re.compile(f"{WORD_BEGINS}(?:{shape})"), None) for kind, shape in SHAPES.items()),
    ("a private key", re.compile(BEGIN_PRIVATE), None),
    ("a password in an address", PASSWORD, None),
    ("a password of .netrc", NETRC, None),
    ("a key or token", ASSIGNED, is_code),
    ("an AWS secret key", AWS_SECRET, is_not_random),
]


def find_keys(text: str) -> Iterator[tuple[int, str]]:
    """Yield the start and the kind (of KEYS) of each key in a text."""
    for kind, pattern, is_false_match in KEYS:
        for match in pattern.finditer(text):
            if is_false_match is None or not is_false_match(match):
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
