"""Template + values -> a model card; a card + a newer one -> a card that keeps what was written on it by hand.

`fill` leaves out a paragraph whose hole has no value, and of a section in which nothing is left all but its place.
"""

import html
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml


HOLE = re.compile(r"\{\{(\w+)\}\}")
REGION = re.compile(r"<!-- scratch_gpt:begin (\w+) -->\r?\n(.*?)<!-- scratch_gpt:end \1 -->", re.DOTALL)
# Metadata that a new card takes away where it has none. (A licence that was set by hand stays.)
OURS = ("base_model", "base_model_relation", "datasets", "metrics", "model-index", "co2_eq_emissions")
OF_OTHER = ("license_name", "license_link")  # of a license that is replaced
FRONT = re.compile(r"\A\ufeff?\s*---[ \t]*\r?\n(.*?\n|)---[ \t]*(?:\r?\n|\Z)", re.DOTALL)


class Markup(str):
    """Markdown that stays as it is."""


def escape(value: Any) -> Markup:
    """Return any value as one line of Markdown that shows it: no HTML, link, heading, table or region mark.

    Example:
        >>> print(escape("<b> and *"))
        &lt;b&gt; and \\*
    """
    if isinstance(value, Markup):
        return value
    text = " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())
    text = re.sub(r"[\\`*\[\]#|~$]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", text)
    text = re.sub(r"^(?=[-+](?:\s|$)|[-=]+$)|^\d+(?=[.)](?:\s|$))", r"\g<0>\\", text)  # a list, a heading
    return Markup(html.escape(text, quote=False))


def code(value: Any) -> Markup:
    """Return a hash, a commit or a name in the type of code; anything else as `escape` shows it."""
    return Markup(f"`{value}`") if re.fullmatch(r"\w[\w.:@/+-]*", str(value)) else escape(value)


def template() -> str:
    """Return the text of hub_card/template.md."""
    return (card_folder() / "template.md").read_text(encoding="utf-8")


def card_folder() -> Path:
    """Return the folder hub_card: inside the installed package, next to its folder in a clone."""
    here = Path(__file__).resolve().parents[1]
    return next(place for place in (here / "hub_card", here.parent / "hub_card") if place.is_dir())


def fill(text: str, values: Mapping[str, str | None]) -> str:
    """Every hole of a template with its value; paragraphs whose value is None, and sections without one, are empty."""

    def paragraph(block: str) -> str | None:
        names = HOLE.findall(block)
        if any(values[name] is None for name in names):
            return None
        return HOLE.sub(lambda hole: str(values[hole[1]]), block)

    def region(found: re.Match) -> str:
        blocks = found[2].strip("\n").split("\n\n")
        filled = [(block, paragraph(block)) for block in blocks]
        if not any(HOLE.search(block) and text is not None for block, text in filled):
            filled = []
        body = "\n\n".join(text for _, text in filled if text is not None)
        return marked(found[1], f"{body}\n" if body else "")

    # In one pass: what a value holds is never taken for a hole.
    either = re.compile(f"{REGION.pattern}|{HOLE.pattern}", re.DOTALL)
    return either.sub(lambda found: region(found) if found[1] else str(values[found[3]]), text)


def marked(name: str, body: str) -> str:
    """A region that a later push replaces."""
    return f"<!-- scratch_gpt:begin {name} -->\n{body}<!-- scratch_gpt:end {name} -->"


def is_ours(card: str) -> bool:
    """Whether a card has a region of ours."""
    return REGION.search(FRONT.sub("", card, count=1)) is not None


def dump(metadata: Mapping[str, Any]) -> str:
    """Metadata as YAML, in their order, without a mark of a region."""
    how = {"sort_keys": False, "allow_unicode": True}
    text = yaml.safe_dump(dict(metadata), **how)
    if "<!--" in text:
        text = yaml.safe_dump(dict(metadata), default_style='"', **how).replace("<!--", "\\x3C!--")
    return text.rstrip("\n")


def merge_cards(old: str, new: str) -> str:
    """A card with its regions and our metadata renewed; all else, and what was removed by hand, stays as it is.

    Raises:
        ValueError: the metadata of the old card are no YAML of one key a line.
    """
    bodies, front = dict(REGION.findall(new)), FRONT.match(old)
    start, end = front.span(1) if front else (0, 0)
    head, rest = (old[: front.end()], old[front.end() :]) if front else ("", old)
    rest = REGION.sub(lambda found: marked(found[1], bodies.get(found[1], found[2])), rest)
    merged = _merge_metadata(old[start:end], FRONT.match(new)[1])
    return (head[:start] + merged + head[end:] if front else f"---\n{merged}---\n") + rest


def _merge_metadata(old: str, new: str) -> str:
    # Only the lines of our keys change: YAML that is read and written again is another (no, 1.10, comments, order).
    try:
        then, root = yaml.safe_load(old) or {}, yaml.compose(old, yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"The card's metadata on the Hub are no YAML: {' '.join(str(error).split())}") from error
    if root is not None and (not isinstance(root, yaml.MappingNode) or root.flow_style):
        raise ValueError("The card's metadata on the Hub are not one key a line. Write them so, then publish again.")
    now, lines = yaml.safe_load(new), old.splitlines(keepends=True)
    gone = {*OURS, *(OF_OTHER if "license" in now else ())} - now.keys()
    entries = root.value if root is not None else []
    begins = [key.start_mark.line for key, _ in entries] + [len(lines)]
    for n in reversed(range(len(entries))):
        key, value = entries[n]
        end = begins[n + 1]
        while end > begins[n] + 1 and re.match(r"\s*(?:#|$)", lines[end - 1]):
            end -= 1  # blank lines and comments belong to what follows
        wanted = now.pop(key.value, None)
        if key.value == "tags" and wanted is not None:
            own = value.value if isinstance(value, yaml.SequenceNode) else [value] if value.value else []
            missing = [tag for tag in wanted if tag not in [each.value for each in own]]
            if missing and isinstance(value, yaml.SequenceNode) and not value.flow_style:
                indent = " " * value.start_mark.column
                lines[end:end] = [f"{indent}- {tag}\n" for tag in missing]
            elif missing:
                own = [old[each.start_mark.index : each.end_mark.index] for each in own]
                lines[begins[n] : end] = ["tags:\n", *(f"- {tag}\n" for tag in [*own, *missing])]
        elif key.value in gone:
            del lines[begins[n] : end]
        elif wanted is not None and then[key.value] != wanted:
            lines[begins[n] : end] = [dump({key.value: wanted}) + "\n"]
    return "".join(lines) + (dump(now) + "\n" if now else "")


__all__ = ["FRONT", "HOLE", "REGION", "Markup", "code", "dump", "escape", "fill", "is_ours", "merge_cards", "template"]
