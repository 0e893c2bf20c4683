"""Test the inspection page: no token can write HTML."""

import pytest
import torch
from tiny import some_ids, tiny_model

from scratch_gpt.analysis import inspection
from scratch_gpt.analysis.inspection_page import Bar, bars_html, heads_html, lens_html, map_html, tokens_html, visible


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
