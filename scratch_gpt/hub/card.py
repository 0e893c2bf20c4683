"""Fill a model card's template, and update a card without losing edits made by hand.

`fill` omits a paragraph if one of its holes has no value; a section without paragraphs keeps only its region marks.
"""

import html
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml


HOLE = re.compile(r"\{\{(\w+)\}\}")
REGION = re.compile(r"<!-- scratch_gpt:begin (\w+) -->\r?\n(.*?)<!-- scratch_gpt:end \1 -->", re.DOTALL)
# Metadata that an update removes if the new card lacks them. (A license that was set by hand stays.)
OWN_KEYS = ("base_model", "base_model_relation", "datasets", "metrics", "model-index", "co2_eq_emissions")
LICENSE_DETAILS = ("license_name", "license_link")  # removed with the license that they belong to
FRONT = re.compile(r"\A\ufeff?\s*---[ \t]*\r?\n(.*?\n|)---[ \t]*(?:\r?\n|\Z)", re.DOTALL)


class Markup(str):
    """Markdown that is not escaped."""


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
    """Format a hash, a commit or a name as code; escape anything else with `escape`."""
    return Markup(f"`{value}`") if re.fullmatch(r"\w[\w.:@/+-]*", str(value)) else escape(value)


def template() -> str:
    """Return the text of hub_card/template.md."""
    return (card_folder() / "template.md").read_text(encoding="utf-8")


def card_folder() -> Path:
    """Return the folder hub_card: inside the installed package, next to its folder in a clone."""
    here = Path(__file__).resolve().parents[1]
    return next(place for place in (here / "hub_card", here.parent / "hub_card") if place.is_dir())


def fill(text: str, values: Mapping[str, str | None]) -> str:
    """Replace every hole of a template with its value; omit paragraphs and sections without a value."""

    def paragraph(block: str) -> str | None:
        names = HOLE.findall(block)
        if any(values[name] is None for name in names):
            return None
        return HOLE.sub(lambda hole: str(values[hole[1]]), block)

    def region(match: re.Match[str]) -> str:
        blocks = match[2].strip("\n").split("\n\n")
        filled = [(block, paragraph(block)) for block in blocks]
        if not any(HOLE.search(block) and text is not None for block, text in filled):
            filled = []
        body = "\n\n".join(text for _, text in filled if text is not None)
        return marked(match[1], f"{body}\n" if body else "")

    # In one pass, so that the text of a value is never read as a hole.
    pattern = re.compile(f"{REGION.pattern}|{HOLE.pattern}", re.DOTALL)
    return pattern.sub(lambda match: region(match) if match[1] else str(values[match[3]]), text)


def marked(name: str, body: str) -> str:
    """Return a region that a later push replaces."""
    return f"<!-- scratch_gpt:begin {name} -->\n{body}<!-- scratch_gpt:end {name} -->"


def is_ours(card: str) -> bool:
    """Return whether a card has a region of ours."""
    return REGION.search(FRONT.sub("", card, count=1)) is not None


def dump(metadata: Mapping[str, Any]) -> str:
    """Return metadata as YAML, in their order, without region marks."""
    text = yaml.safe_dump(dict(metadata), sort_keys=False, allow_unicode=True)
    if "<!--" in text:
        text = yaml.safe_dump(dict(metadata), default_style='"', sort_keys=False, allow_unicode=True)
        text = text.replace("<!--", "\\x3C!--")
    return text.rstrip("\n")


def merge_cards(old: str, new: str) -> str:
    """Return the old card with its regions and our metadata updated; other text and removed regions stay as they are.

    Raises:
        ValueError: the metadata of the old card are not YAML with one key per line.
    """
    bodies, front, new_front = dict(REGION.findall(new)), FRONT.match(old), FRONT.match(new)
    assert new_front is not None  # our template begins with metadata
    start, end = front.span(1) if front else (0, 0)
    head, text = (old[: front.end()], old[front.end() :]) if front else ("", old)
    text = REGION.sub(lambda match: marked(match[1], bodies.get(match[1], match[2])), text)
    metadata = _merge_metadata(old[start:end], new_front[1])
    return (head[:start] + metadata + head[end:] if front else f"---\n{metadata}---\n") + text


def _merge_metadata(old: str, new: str) -> str:
    # Change only the lines of our keys: reading and writing YAML would change others (no, 1.10, comments, order).
    try:
        old_values, root = yaml.safe_load(old) or {}, yaml.compose(old, yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"The card's metadata on the Hub are not YAML: {' '.join(str(error).split())}") from error
    if root is not None and (not isinstance(root, yaml.MappingNode) or root.flow_style):
        raise ValueError("The card's metadata on the Hub are not one key per line. Correct them, then publish again.")
    new_values, lines = yaml.safe_load(new), old.splitlines(keepends=True)
    removed = {*OWN_KEYS, *(LICENSE_DETAILS if "license" in new_values else ())} - new_values.keys()
    entries = root.value if root is not None else []
    begins = [key.start_mark.line for key, _ in entries] + [len(lines)]
    for n in reversed(range(len(entries))):
        key, value = entries[n]
        end = begins[n + 1]
        while end > begins[n] + 1 and re.match(r"\s*(?:#|$)", lines[end - 1]):
            end -= 1  # blank lines and comments belong to the next key
        new_value = new_values.pop(key.value, None)
        if key.value == "tags" and new_value is not None:
            nodes = value.value if isinstance(value, yaml.SequenceNode) else [value] if value.value else []
            missing = [tag for tag in new_value if tag not in [node.value for node in nodes]]
            if missing and isinstance(value, yaml.SequenceNode) and not value.flow_style:
                indent = " " * value.start_mark.column
                lines[end:end] = [f"{indent}- {tag}\n" for tag in missing]
            elif missing:
                tags = [old[node.start_mark.index : node.end_mark.index] for node in nodes]
                lines[begins[n] : end] = ["tags:\n", *(f"- {tag}\n" for tag in [*tags, *missing])]
        elif key.value in removed:
            del lines[begins[n] : end]
        elif new_value is not None and old_values[key.value] != new_value:
            lines[begins[n] : end] = [dump({key.value: new_value}) + "\n"]
    return "".join(lines) + (dump(new_values) + "\n" if new_values else "")


__all__ = ["FRONT", "HOLE", "REGION", "Markup", "code", "dump", "escape", "fill", "is_ours", "merge_cards", "template"]
