"""Mask private data in texts: addresses, keys, telephone and account numbers, people's names.

Pure functions and patterns; a comment next to each pattern shows what it matches. Every pattern takes linear time,
also for a line of 100 MB.
"""

import ipaddress
import re
from collections.abc import Callable, Collection, Iterable
from typing import Any, NamedTuple

from ...utils.key_shapes import (
    ASSIGNED,
    AWS_SECRET,
    BEGIN_PRIVATE,
    NETRC,
    PASSWORD,
    SHAPE_PARTS,
    SHAPES,
    WORD_BEGINS,
    WORD_ENDS,
    is_code,
    is_not_random,
)


# For linear time every quantifier is bounded or possessive (a++), and a match can only start at the start of a word.
KEY = re.compile(f"{WORD_BEGINS}(?:{'|'.join(SHAPES.values())}){WORD_ENDS}")
BREAK = r"(?:[ \t]*+(?:\r?\n|(?:\\[nr]){1,2}))"  # the end of a line, or its spelling in JSON
BASE64_LINE = rf"{BREAK}[ \t]*+[A-Za-z0-9+/]{{LEAST,}}+={{0,2}}(?=[ \t]*+(?:[\r\n\\\"'`<,]|$))"  # only base64
PRIVATE_KEY = re.compile(  # up to its END line, or all lines of base64 if the END line is missing
    rf"{BEGIN_PRIVATE}(?:(?:[^-]++|-(?!----))*+-----END [A-Z0-9 ]{{1,60}}-----"
    rf"|(?:{BREAK}[A-Za-z-]{{1,40}}+:[^\r\n\\]{{0,200}}+)*+(?:{BREAK}(?={BREAK}))*+"
    rf"(?:{BASE64_LINE.replace('LEAST', '6')}(?:{BASE64_LINE.replace('LEAST', '1')})*+"
    r"|(?:[ \t]{0,4}[A-Za-z0-9+/]{24,}+={0,2})++))"
)
LETTERS = r"A-Za-z\u00c0-\u052f\u1e00-\u1fff"  # Latin, Greek, Cyrillic: scripts with spaces between words
EMAIL = re.compile(
    rf"(?<![{LETTERS}0-9._%+-])(?!git@)[{LETTERS}0-9._%+-]{{1,64}}+"
    rf"@(?P<host>(?:[{LETTERS}0-9-]{{1,63}}+\.){{1,8}})"
    rf"(?P<top>xn--[a-z0-9]{{2,59}}|[A-Za-z]{{2,24}}|[{LETTERS}]{{2,24}})(?!-?[A-Za-z0-9])"
)
# ENDINGS are endings of files and units that are not top-level domains, BOTH those that are also top-level domains.
ENDINGS = set(
    """
    7z aab apk app avif bak bash bat bin bmp br bz2 cfg cjs ckpt class conf cpp crt css csv cts dat db deb desktop
    dll dmg doc docker docx ear eot epub exe flac fla gguf gif go gql gradle gz h heic hpp htm html icns ico ini
    ipynb iso jar java jpeg jpg js json jsonl jsx key kt ktx less lock log lua lz4 map mdx mjs mkv mount mp3 mp4 msi
    mts npy npz obj odt ogg onnx orig otf parquet patch pcap pdf pem php pkl plist png ppt pptx proto psd pth pyc pyi
    pyx rar raw rb rpm rst safetensors sass scala scss service slice snap socket sql sqlite src stl svelte svg swf
    swift target tar tex tgz tif tiff timer tmp toml tpl ts tsv tsx ttf txt vue war wasm wav webm webp whl woff xcf
    xhtml xls xlsx xml xsd xz yaml yml zip zst
    """.split()
)
BOTH = {"ai", "cc", "md", "mk", "ml", "mov", "pl", "ps", "pt", "py", "rs", "sh", "so"}
TAG = re.compile(  # a picture's scale (@2x) or a version
    r"(?i)(?:v?\d{1,9}(?:[._-]\w{1,20}){0,4}|\d{1,4}(?:\.\d{1,4})?x"
    r"|latest|next|main|master|head|trunk|stable|beta|alpha|canary|nightly|dev|edge|release|current|old|new|final)\."
)
VERSION = re.compile(r"v?\d{1,9}\.(?:\d{1,9}|x)(?:\.|-|$)")
COMMON_DOMAINS = {"com", "org", "net", "edu", "gov", "mil", "int", "info", "biz"}
# ASCII makes \w match only ASCII letters, so that a number between Chinese characters is found: they have no spaces.
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
        | (?P<pairs>0[1-9](?:[ .-]\d\d){4})                            # 01 23 45 67 89, without another pair after it
          (?![ ](?:\d[0-9A-Fa-f]|[A-Fa-f]\d)(?!\w))
      )(?:x\d{1,5})?(?![\w-]|\.\d)                                     # 212-555-0123x45
    )
    """,
    re.VERBOSE | re.ASCII,
)
# Any telephone number, matched only after a word such as "tel".
DIGITS = re.compile(r"(?=[+(0-9])(?<![\w.+-])\+?\(?\d(?:[ ()./-]{0,2}\d){6,14}(?!\d)(?:x\d{1,5}(?!\w))?", re.ASCII)
SAYS_PHONE = re.compile(
    rf"(?<![{LETTERS}0-9_])(?!PHONE\])(?i:tel(?:ephone)?|phone|mobile|cell|fax|whatsapp)\W{{0,3}}"  # not [PHONE]
    r"(?i:no\W{0,3}|number\W{0,3})?$"
)
SAYS_SSN = re.compile(r"(?i)(?<![A-Za-z0-9])(?:ssn|social security(?: (?:no|number|#))?)(?: is)?\W{0,3}$")
# Payment card numbers, with or without groups.
PAYMENT_CARD = re.compile(
    r"""
    (?=[2-6])(?<![\w.+-])(?<!\d[ ])(?<![0-9A-Fa-f]{4}[ ])(?:  # a hex dump
        \d{13,19} | \d{4}([ -])\d{4}\1\d{4}\1\d{4}(?:\1\d{1,3})? | \d{4}([ -])\d{6}\2\d{4,5}
    )(?![\w-]|[.]\d|[ ]\d|[ ][0-9A-Fa-f]{4}(?!\w))
    """,
    re.VERBOSE | re.ASCII,
)
ISSUERS = re.compile(  # the first digits and the lengths of each issuer's numbers
    r"4(?:\d{12}|\d{15}|\d{18})|(?:5[1-5]\d\d|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d{12}|3[47]\d{13}"
    r"|3(?:0[0-5]|[689]\d)\d{11}|35(?:2[89]|[3-8]\d)\d{12}|6(?:011|5\d\d|4[4-9]\d)\d{12}|62\d{14,17}"
    r"|(?:50|5[6-9]|6[0-9])\d{10,17}"
)
# The length of an IBAN in each country, from the registry.
IBAN_LENGTHS = """
    15 NO; 16 BE; 18 DK FI FK FO GL NL SD; 19 MK SI; 20 AT BA EE KZ LT LU MN XK; 21 CH HR LI LV
    22 BG BH CR DE GB GE IE ME RS VA; 23 AE GI IL IQ OM SO TL; 24 AD CZ ES MD PK RO SA SE SK TN VG; 25 LY PT ST
    26 IS TR; 27 BI DJ FR GR IT MC MR SM; 28 AL AZ BY CY DO GT HU LB NI PL SV; 29 BR EG PS QA UA; 30 JO KW MU YE
    31 MT SC; 32 LC; 33 RU
"""


def _iban_shapes() -> str:
    shapes = []
    for length, countries in re.findall(r"(\d+)((?: [A-Z]{2})+)", IBAN_LENGTHS):
        groups, remainder = divmod(int(length) - 4, 4)
        tail = rf"[ -]?[A-Z0-9]{{{remainder}}}" if remainder else ""
        shapes.append(rf"(?:{'|'.join(countries.split())})\d\d(?:[ -]?[A-Z0-9]{{4}}){{{groups}}}{tail}")
    return "|".join(shapes)


IBAN = re.compile(rf"(?=[A-Z][A-Z]\d\d)(?<![A-Za-z0-9])(?:{_iban_shapes()})(?![A-Za-z0-9])")
SSN = re.compile(
    r"(?=\d)(?<![\w.+-])(?!000|666|9)\d{3}([ -]?)(?!00)\d\d\1(?!0000)\d{4}(?![\w-]|\.\d)", re.ASCII
)  # 123-45-6789; with spaces or without separators only after a word such as "SSN"
SAYS_VERSION = re.compile(r"(?i)\b(?:version|ver|revision|rev|release|section|sect|sec|chapter|clause|build)\W{1,3}$")
DATE = re.compile(r"(?:\d\d?/\d\d?/\d{4}|\d{4}/\d\d?/\d\d?)(?!\d)")
ENDS_GROUP = re.compile(r"(?:(?<!\w)[0-9A-Fa-f]{1,4}|:):$", re.ASCII)  # a group of an address that begins earlier
ENDS_PAIR = re.compile(r"(?<![A-Za-z0-9])(?:\d[0-9A-Fa-f]|[A-Fa-f]\d|[A-Fa-f]{2} [A-Fa-f]{2}) $")


def _before(match: re.Match) -> str:
    return match.string[max(0, match.start() - 32) : match.start()]


def _is_version(match: re.Match) -> bool:
    # 1.2.3.4 is a version or a section if a word for one precedes it, or if all four numbers are below 10.
    return len(match[0]) == len("1.2.3.4") or bool(SAYS_VERSION.search(_before(match)))


def _is_not_address(match: re.Match) -> bool:
    # A time of day, :: of C++ or Haskell, or a MAC address; the IPv6 address of a machine has a digit and two groups.
    groups = [group for group in match[0].split(":") if group]
    if match[0].count(":") < 2 or len(groups) < 2 or not any(map(str.isdigit, match[0])):
        return True
    try:
        ipaddress.IPv6Address(match[0])
    except ValueError:
        return True
    return bool(ENDS_GROUP.search(_before(match)))


def _is_row_of_pairs(match: re.Match) -> bool:
    # 01 02 03 04 05 after another pair (also of a hex dump) or after a word for versions.
    before = _before(match)
    return match["pairs"] is not None and bool(ENDS_PAIR.search(before) or SAYS_VERSION.search(before))


def _is_not_phone(match: re.Match) -> bool:
    return bool(DATE.match(match[0])) or not SAYS_PHONE.search(_before(match))


def _is_not_mail(match: re.Match) -> bool:
    # Not an address: image@2x.png, lodash@latest.tgz, notes@v2.md, W@x.mean(0).
    host, top = match["host"], match["top"].lower()
    if top in ENDINGS or VERSION.match(host) or (top in BOTH and TAG.fullmatch(host)):
        return True
    return match.string[match.end() : match.end() + 1] == "(" and len(top) > 2 and top not in COMMON_DOMAINS


def _is_not_card(match: re.Match) -> bool:
    # No issuer has such numbers, or the check digit is wrong (Luhn: ISO/IEC 7812-1).
    digits = [int(digit) for digit in match[0] if digit.isdigit()]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return not ISSUERS.fullmatch("".join(map(str, digits))) or (sum(digits[-1::-2]) + sum(doubled)) % 10 != 0


def _is_not_iban(match: re.Match) -> bool:
    # ISO 13616: with country and check digits at the end and letters as numbers (A = 10), an IBAN is 1 modulo 97.
    plain = re.sub("[ -]", "", match[0])
    return int("".join(str(int(character, 36)) for character in plain[4:] + plain[:4])) % 97 != 1


def _is_not_ssn(match: re.Match) -> bool:
    return match[1] != "-" and not SAYS_SSN.search(_before(match))


class Mask(NamedTuple):
    """A pattern, whose group `secret` is masked if it has one, else the match."""

    pattern: re.Pattern
    hint: Callable[[str], Any]  # return something true for every text with a match, in less time
    is_exception: Callable[[re.Match], bool] | None = None  # return whether a match stays as it is


def _contains(*parts: str) -> Callable[[str], bool]:
    underscored = [part for part in parts if "_" in part]
    others = [part for part in parts if "_" not in part]

    def hint(text: str) -> bool:
        return any(part in text for part in others) or ("_" in text and any(part in text for part in underscored))

    return hint


def _finds_digits(pattern: str) -> Callable[[str], Any]:
    # Return a search for a pattern that needs a digit. Most texts have none, and deleting digits is the fastest test.
    search, digits = re.compile(pattern).search, b"0123456789"

    def hint(text: str) -> Any:
        content = text.encode(errors="surrogatepass")
        return len(content.translate(None, digits)) < len(content) and search(text)

    return hint


# A pattern that begins with a set of characters is searched for faster than one that begins with an assertion.
FIVE_DIGITS = _finds_digits(r"[0-9](?:[^0-9A-Za-z]{0,3}[0-9]){4}")
MASKS: dict[str, list[Mask]] = {
    "key": [
        Mask(PRIVATE_KEY, _contains("-----BEGIN ")),
        Mask(KEY, _contains(*SHAPE_PARTS)),
        Mask(PASSWORD, _contains("://")),
        Mask(NETRC, _contains("login")),
        Mask(ASSIGNED, re.compile(r"""[:=]>?\s{0,3}\\?["']?[A-Za-z0-9_./+=-]{16}""").search, is_code),
        Mask(
            AWS_SECRET,
            _finds_digits(r"[0-9](?:(?=[A-Za-z0-9/+]{19})|(?<=[A-Za-z0-9/+]{20}))"),
            is_not_random,
        ),
    ],
    "email": [Mask(EMAIL, _contains("@"), _is_not_mail)],
    "iban": [Mask(IBAN, _finds_digits(r"[A-Z][A-Z][0-9][0-9]"), _is_not_iban)],
    "card": [Mask(PAYMENT_CARD, FIVE_DIGITS, _is_not_card)],
    "ssn": [Mask(SSN, FIVE_DIGITS, _is_not_ssn)],
    "ip": [
        Mask(IPV4, _finds_digits(r"[0-9]\.[0-9]{1,3}\.[0-9]"), _is_version),
        Mask(IPV6, re.compile(r":[0-9A-Fa-f]{0,4}:").search, _is_not_address),
    ],
    "phone": [Mask(PHONE, FIVE_DIGITS, _is_row_of_pairs), Mask(DIGITS, FIVE_DIGITS, _is_not_phone)],
}
DEFAULT_KINDS = ("key", "email", "ip", "phone")
ALL_KINDS = (*DEFAULT_KINDS, "card", "iban", "ssn")
UNBREAKING = {
    "\u00a0": " ",
    "\u202f": " ",
    "\u2010": "-",
    "\u2011": "-",
}  # other spaces and hyphens, mostly unbreaking


def mask_private(
    text: str,
    *,
    kinds: Collection[str] = DEFAULT_KINDS,
    find_names: Callable[[str], Iterable[tuple[int, int]]] | None = None,
) -> tuple[str, dict[str, int]]:
    """Mask private data in a text; return the text and counts such as {"key": 0, "email": 2, "ip": 0, "phone": 1}.

    "[KEY]" replaces keys and tokens of known formats, private key blocks, and values assigned to names such as
    `api_key`. "[EMAIL]", "[IP]" and "[PHONE]" replace addresses and telephone numbers. "[CARD]" (payment cards),
    "[IBAN]" (bank accounts) and "[SSN]" (US social security numbers) are used only if `kinds` contains them.

    Not masked: IP addresses of four numbers below 10 (1.2.3.4) or after a word such as "version"; telephone numbers
    without a country code, an area code with its usual separators, or a word such as "tel" before them.

    Args:
        find_names: yield the (start, end) of people's names in a text; they become "[NAME]" and are counted as "name".
            `person_names.names_finder` returns such a function for a named-entity model.

    Raises:
        ValueError: a kind is unknown.

    Example:
        >>> mask_private("Write to ann@example.org.")
        ('Write to [EMAIL].', {'key': 0, 'email': 1, 'ip': 0, 'phone': 0})
    """
    unknown = set(kinds) - set(ALL_KINDS)
    if unknown:
        raise ValueError(f"Unknown kinds: {', '.join(sorted(unknown))}. Choose from {', '.join(ALL_KINDS)}.")
    counts = dict.fromkeys(kinds, 0)
    if find_names is not None:
        pieces, end = [], 0
        for start, stop in sorted(find_names(text)):
            if start >= end:
                pieces += [text[end:start], "[NAME]"]
                end = stop
        text, counts["name"] = "".join([*pieces, text[end:]]), len(pieces) // 2

    for kind in (kind for kind in MASKS if kind in kinds):
        for pattern, hint, is_exception in MASKS[kind]:
            if not hint(text):
                continue
            parts, end = [], 0
            for match in pattern.finditer(_with_usual_breaks(text)):
                if is_exception is None or not is_exception(match):
                    start, stop = match.span("secret" if "secret" in pattern.groupindex else 0)
                    parts += [text[end:start], f"[{kind.upper()}]"]
                    end = stop
            text, counts[kind] = "".join([*parts, text[end:]]), counts[kind] + len(parts) // 2
    return text, counts


def _with_usual_breaks(text: str) -> str:
    # Each character is replaced by one character, so that positions stay the same.
    for unbreaking, usual in UNBREAKING.items():
        text = text.replace(unbreaking, usual)
    return text


__all__ = ["ALL_KINDS", "DEFAULT_KINDS", "mask_private"]
