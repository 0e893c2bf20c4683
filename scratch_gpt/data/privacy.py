"""One text -> the text with private data masked: addresses, telephone numbers, keys, people's names.

Pure functions over patterns, what each looks for beside it. Every pattern here takes time in proportion to the text, a
line of 100 MB included.
"""

import ipaddress
import re
from collections.abc import Callable, Collection, Iterable


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


__all__ = ["KINDS", "mask_private"]
