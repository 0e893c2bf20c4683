"""Write tables and paragraphs of Markdown."""

import textwrap


def table(head: str, rows: list[str]) -> str:
    """Return a table with `head` as its first row."""
    return "\n".join([head, "|" + "---|" * (head.count("|") - 1), *rows])


def lines(text: str, indent: str = "") -> str:
    """Return a paragraph in lines of at most 125 characters; `indent` precedes all except the first."""
    return textwrap.fill(" ".join(text.split()), 125, subsequent_indent=indent, break_on_hyphens=False)
