"""Test the inspection page: no token can write HTML, and its lessons exist."""

import json

import pytest
import torch
from places import REPO
from tiny import some_ids, tiny_model

from scratch_gpt.analysis import inspection
from scratch_gpt.analysis.inspection_page import (
    LESSONS,
    Bar,
    bars_html,
    heads_html,
    lens_html,
    lesson,
    map_html,
    tokens_html,
    visible,
)


IDS = some_ids(1, 12)


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def seen(model):
    return inspection.look(model, IDS[0].tolist())


def test_no_token_can_write_html_and_truncation_is_marked(seen):
    evil, T = "<b onload=x>", IDS.shape[1]
    names = [visible(evil)] * T
    p = torch.full((3, T), 0.5)
    pieces = [
        tokens_html([(evil, 7), ("b\n", 8)], range(1, 2)),
        map_html(seen.attention[0, 0], names),
        lens_html(p, [names] * 3, names),
        bars_html([Bar(visible(evil), -0.2, "-0.2", 0.3)]),
    ]
    for piece in pieces:
        assert "<b onload" not in piece and "&lt;b" in piece
    assert pieces[0].index('class="cut"') < pieces[0].index("b\u21b5") and 'class="cut">b' not in pieces[0]
    assert pieces[1].count("<rect") == T * (T + 1) // 2
    heads = heads_html(seen.attention, 1, 2)
    assert heads.count("data:image/png") == 8 and 'class="on"' in heads and "http" not in "".join([*pieces, heads])


@pytest.mark.parametrize("part", LESSONS)
def test_each_part_names_a_cell_of_a_notebook(part):
    notebook, cell = LESSONS[part]
    cells = json.loads((REPO / "training" / "notebooks" / notebook).read_text(encoding="utf-8"))["cells"]
    headings = [line.strip() for item in cells if item["cell_type"] == "markdown" for line in item["source"]]
    assert f"## {cell}" in headings
    assert cell in lesson(part) and f'heading("{part}"' in (REPO / "hub_card" / "space" / "app.py").read_text()


def test_a_part_without_a_lesson_has_no_sentence():
    assert lesson("Inside a model") == ""
