"""Strip the header and the license that Project Gutenberg puts around a book. A pure function of a text."""

import re
from collections.abc import Sequence


STARS = r"[\s\ufeff]{0,40}\*{3}[ \t]*"
BOOK = r"OF (?:THE|THIS) (?:COPYRIGHTED )?PROJECT GUTENBERG"
# *** START OF THE PROJECT GUTENBERG EBOOK DRACULA ***
# *END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*
START = re.compile(rf"{STARS}START {BOOK}|[\s\ufeff]{{0,40}}\*END[* ]{{1,2}}THE SMALL PRINT", re.IGNORECASE)
# *** END OF THE PROJECT GUTENBERG EBOOK DRACULA ***
# End of the Project Gutenberg EBook of Dracula; Ende dieses Projekt Gutenberg Etextes; Fin de Project Gutenberg's
END = re.compile(
    rf"{STARS}END {BOOK}|\s{{0,40}}(?:End|Ende|Fin|Fine|Fim|Einde|Slut|Loppu)\b[^.\r\n]{{0,30}}"
    r"\b(?:Proje[ck]t|Projecto|Proyecto|Progetto)\s+Gutenberg",
    re.IGNORECASE,
)
# The beginning of a header: The Project Gutenberg EBook of Dracula; Project Gutenberg's Dracula, by Bram Stoker
HEADER = re.compile(
    r"[\s\ufeff*\[_]{0,60}(?:(?:The|This is a COPYRIGHTED) )?Project Gutenberg"
    r"(?:[- ]e-?(?:book|text)\b|'s (?=.*(?:, by |e-?book|e-?text)))"
    r"|.*for the use of anyone anywhere|.*THE SMALL PRINT",
    re.IGNORECASE,
)
LICENSE = re.compile(r"Project Gutenberg(?:-tm|\u2122)? License|gutenberg\.(?:org|net)|promo\.net|small print", re.I)
CREDITS = re.compile(
    r"\s*\[?(?:(?:this )?e-?(?:text|book) (?:was )?)?(?:produced|prepared|revised|transcribed) (?:by|from)\b",
    re.IGNORECASE,
)
LONGEST = 100_000  # characters of a header or license; the license of today has 19,000


def strip_gutenberg(text: str) -> str:
    """Return the text of a book without Project Gutenberg's header, license and credits.

    A text of several books loses those of each. The text is returned unchanged if it has no markers, or if what
    precedes the first one does not begin as a header does: a text that only mentions the markers keeps them.

    >>> strip_gutenberg("*** START OF THE PROJECT GUTENBERG EBOOK EMMA ***\\n\\nCHAPTER I\\n")
    'CHAPTER I\\n'
    """
    lines = text.splitlines(keepends=True)
    cuts: list[tuple[int, int]] = []
    opened: int | None = 0  # the line at which a header or license begins; None inside a book
    for n, line in enumerate(lines):
        if START.match(line):
            if opened == 0 and not _is_header(lines[:n]):
                return text
            if opened is None and len(cuts) == 1 and cuts[0][0] == 0 and n - cuts[0][1] < 40:
                opened = cuts.pop()[0]  # the small print and the marker are one header
            if opened == 0 or (opened and _is_license(lines[opened + 1 : n], has_start=True)):
                cuts.append((opened, _past_credits(lines, _past_title(lines, n))))
            opened = None
        elif END.match(line) and not opened:
            opened = n
    if opened and _is_license(lines[opened + 1 :], has_start=bool(cuts)):
        cuts.append((opened, len(lines)))
    if not cuts:
        return text
    begins, ends = [0, *(end for _, end in cuts)], [*(begin for begin, _ in cuts), len(lines)]
    bodies = ["".join(lines[begin:end]) for begin, end in zip(begins, ends, strict=True)]
    bodies = [re.sub(r"\A(?:[ \t]*+[\r\n])*+", "", body).rstrip() for body in bodies]
    return "".join(f"{body}\n" for body in ["\n\n".join(filter(None, bodies))] if body)


def _is_header(lines: Sequence[str]) -> bool:
    first = [line for line in lines[:80] if not line.isspace()][:25]
    return sum(map(len, lines)) < LONGEST and (not first or any(map(HEADER.match, first)))


def _is_license(lines: Sequence[str], has_start: bool) -> bool:
    text = "".join(lines)
    is_known = "gutenberg" in text.lower() if has_start else LICENSE.search(text) is not None
    return len(text) < LONGEST and (not text.strip() or is_known)


def _past_title(lines: Sequence[str], n: int) -> int:
    # Return the line after a marker; a long title takes several lines, up to the closing stars.
    for k in range(n, min(n + 4, len(lines))):
        if lines[k].isspace():
            break
        if lines[k].rstrip().endswith("*") and (k > n or lines[k].count("*") > 3):
            return k + 1
    return n + 1


def _past_credits(lines: Sequence[str], n: int) -> int:
    # Return the line after the paragraph of credits that may follow a marker.
    first = next((k for k in range(n, len(lines)) if not lines[k].isspace()), n)
    if first < len(lines) and CREDITS.match(lines[first]):
        past = next((k for k in range(first, len(lines)) if lines[k].isspace()), len(lines))
        return past if past - first <= 12 else n
    return n


__all__ = ["strip_gutenberg"]
