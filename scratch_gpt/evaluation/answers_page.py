"""Write prompts and the answers of models as one HTML page to read."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ..utils.html import page, page_text


ANSWERS_STYLE = """article { border-top: 1px solid var(--line); padding: 1.2rem 0; }
section { margin: .8rem 0 0; } section > b { color: var(--soft); font-weight: 500; }
pre { margin: .2rem 0 0; padding: .5rem .8rem; background: var(--track); border-left: 3px solid var(--line);
  white-space: pre-wrap; overflow-wrap: anywhere; font: inherit; }
.reference pre { border-color: var(--gold); } .answer pre { border-color: var(--blue); }
"""


class Answered(NamedTuple):
    """One prompt and the answers to it."""

    prompt: str
    reference: str | None
    answers: Mapping[str, str]  # name of the model -> its answer
    notes: Mapping[str, str] = {}  # name of the model -> a note on the answer: its scores


def answers_page(title: str, rows: Sequence[Answered], summary: str) -> str:
    """Return the page as HTML: the summary, then each prompt with its reference and every answer."""
    return page(
        title, ANSWERS_STYLE, f"<p>{page_text(summary)}</p>\n" + "".join(map(_article, range(1, len(rows) + 1), rows))
    )


def _article(number: int, row: Answered) -> str:
    parts = [_section("prompt", "", row.prompt)]
    if row.reference is not None:
        parts.append(_section("reference", "reference", row.reference))
    for name, answer in row.answers.items():
        note = f"{name}: {row.notes[name]}" if name in row.notes else name
        parts.append(_section(note, "answer", answer))
    return f'<article id="{number}"><h3>{number}</h3>{"".join(parts)}</article>\n'


def _section(name: str, kind: str, text: str) -> str:
    # HTML drops a line break after <pre>. This one is dropped, so that the text keeps its first line break.
    return f'<section class="{kind}"><b>{page_text(name)}</b><pre>\n{page_text(text)}</pre></section>'


__all__ = ["Answered", "answers_page"]
