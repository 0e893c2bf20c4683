"""Template + values -> a model card; a card + a newer one -> a card that keeps what was written on it by hand.

`fill` leaves out a paragraph whose hole has no value, and of a section in which nothing is left all but its place.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml


HOLE = re.compile(r"\{\{(\w+)\}\}")
REGION = re.compile(r"<!-- scratch_gpt:begin (\w+) -->\n(.*?)<!-- scratch_gpt:end \1 -->", re.DOTALL)
# Metadata that a new card takes away where it has none. (A licence that was set by hand stays.)
OURS = ("base_model", "base_model_relation", "datasets", "metrics", "model-index", "co2_eq_emissions")
FRONT = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)


def template() -> str:
    """hub_card/template.md: beside the package where it is installed, beside its folder in a checkout."""
    here = Path(__file__).resolve().parent
    found = next(place for place in (here / "hub_card", here.parent / "hub_card") if place.is_dir())
    return (found / "template.md").read_text(encoding="utf-8")


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
    return REGION.search(card) is not None


def dump(metadata: Mapping[str, Any]) -> str:
    """Metadata as YAML, in their order."""
    return yaml.safe_dump(dict(metadata), sort_keys=False, allow_unicode=True).rstrip("\n")


def merge_cards(old: str, new: str) -> str:
    """A card with its regions and our metadata renewed; all else, and what was removed by hand, stays as it is."""
    bodies = dict(REGION.findall(new))
    text = REGION.sub(lambda found: marked(found[1], bodies.get(found[1], found[2])), old)
    front = FRONT.match(old)
    try:
        then = (yaml.safe_load(front[1]) if front else None) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"The card's metadata on the Hub are no YAML: {' '.join(str(error).split())}") from error
    now = yaml.safe_load(FRONT.match(new)[1])
    tags = list(dict.fromkeys([*(then.get("tags") or []), *(now.get("tags") or [])]))
    kept = {name: value for name, value in then.items() if name in now or name not in OURS}
    merged = {**kept, **now, **({"tags": tags} if tags else {})}
    if merged == then:
        return text
    return f"---\n{dump(merged)}\n---\n" + (FRONT.sub("", text, count=1) if front else text)


__all__ = ["FRONT", "HOLE", "REGION", "dump", "fill", "is_ours", "merge_cards", "template"]
