"""Test the report: it is well-formed HTML, shows everything in the manifest and the row, and escapes it."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from scratch_gpt.data.manifest import make_manifest
from scratch_gpt.data.prepared.report import report_page
from scratch_gpt.data.rows.packing import PackedRows
from scratch_gpt.data.rows.windows import IGNORED


EVIL = "<script>alert('&')</script>\"\x00\ud800"
VOID = {"meta", "br"}
SVG = {"svg", "line", "rect", "text", "title"}


class Page(HTMLParser):
    """The tags and texts of a page; raises ValueError if a closing tag does not match the last open one."""

    def __init__(self, page: str):
        super().__init__()
        self.tags, self.texts, self.open = [], [], []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.open += [] if tag in VOID else [tag]

    def handle_startendtag(self, tag, attributes):
        assert tag in SVG, tag
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if self.open.pop() != tag:
            raise ValueError(tag)

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]


def manifest(task: str = "pretrain", **changed) -> dict:
    splits = {
        "train": {"documents": 90, "bytes": 9000, "rows": 30, "sha256": "ab" * 32},
        "validation": {"documents": 10, "bytes": 1000, "rows": 4, "sha256": "cd" * 32},
    }
    if task == "pretrain":
        splits["train"] |= {"tokens": 3000, "asked": 2910, "padding_share": 0.125, "cut_share": 0.25}
        splits["validation"] |= {"tokens": 250, "asked": 240, "padding_share": 0.0, "cut_share": 0.5}
        changed = {"max_length": 16, "pack": True, "tokenizer": {"fingerprint": "f", "vocab_size": 300}} | changed
    filters = {
        "quality": {"in": 200, "removed": 60},
        "privacy": {"in": 140, "removed": 0, "changed": 7},
        "perplexity": {"in": 140, "removed": 0, "flagged": 3},
        EVIL: {"in": 140, "removed": 40},
    }
    sources = [{"name": name, "rows": 100} for name in ("/home/me/books", EVIL)]
    mixture = {"asked": {"/home/me/books": 0.75, EVIL: 0.25}, "actual": {"/home/me/books": 0.7, EVIL: 0.3}}
    mixture |= {"alpha": 0.7, "epochs": {"/home/me/books": 1.0, EVIL: 2.25}}
    return make_manifest(task, sources, splits, **({"filters": filters, "mixture": mixture} | changed))


LENGTHS = {"train": np.arange(1, 91), "validation": np.full(10, 25)}
EXAMPLES = {"quality": [("too_short", EVIL), (EVIL, "b")], EVIL: [("exact", "c")]}


def packed_row() -> dict[str, np.ndarray]:
    rows = PackedRows(np.arange(15), np.array([5, 9, 15]), 16)
    assert len(rows) == 1
    return rows[0]


def page(**changed) -> Page:
    row = packed_row()
    given = {"lengths": LENGTHS, "examples": EXAMPLES, "row": row, "pieces": [EVIL, *("a\nb\t" * 14)][:15]}
    return Page(report_page(changed.pop("manifest", manifest()), **(given | changed)))


@pytest.mark.parametrize("task", ["pretrain", "text"])
@pytest.mark.parametrize("change", [{}, {"mixture": None}, {"filters": {}}])
def test_the_page_is_complete_without_scripts_or_requests(task, change):
    row = {"row": packed_row(), "pieces": [EVIL] * 15} if task == "pretrain" else {"row": None, "pieces": None}
    found = page(manifest=manifest(task, **change), **row)
    tags = {tag for tag, _ in found.tags}
    assert not tags & {"script", "link", "img", "iframe", "object", "form", "a"}
    names = {name for _, attributes in found.tags for name in attributes}
    assert not any(name.startswith("on") for name in names) and not names & {"src", "href", "action"}
    style = found.texts[found.texts.index(next(text for text in found.texts if "--paper" in text))]
    assert "url(" not in style and "@import" not in style and "prefers-color-scheme: dark" in style


def test_data_are_escaped_in_the_page():
    found = page()
    shown = EVIL.replace("\x00", "\ufffd").replace("\ud800", "\ufffd")
    assert found.text.count(shown) >= 6  # heading, title, filter, example, reason, corpus, piece
    found.text.encode()
    assert "/home" not in found.text and "books" in found.text


def test_every_filter_and_corpus_is_on_the_page():
    text = page().text
    for said in ("quality", "60 removed (30.0%)", "140 left", "7 changed", "3 flagged", "40 removed (28.6%)"):
        assert said in text
    for said in (
        "2 of the 60 removed",
        "too_short",
        "target 75.0%, actual 70.0%",
        "2.25 epochs",
        "alpha = 0.7",
    ):
        assert said in text
    for said in ("3.00 bytes per token", "4.00 bytes per token", "12.5%", "in cut documents"):
        assert said in text


@pytest.mark.parametrize("lengths", [[5], [1, 1], [1, 10**9], list(range(1, 200)), [0, 3, 16]])
def test_a_histogram_counts_every_document(lengths):
    found = page(lengths={"train": np.array(lengths), "test": np.array([], dtype=int)})
    counted = [re.match(r".*: ([\d,]+) documents?$", text) for text in found.texts if " to " in text]
    assert sum(int(match[1].replace(",", "")) for match in counted if match) == len(lengths)
    for number in ("x", "width", "height"):
        assert all(0 <= float(bar[number]) <= 480 for bar in found.all("rect"))
    text = found.text
    assert f"median {np.median(np.maximum(lengths, 1)):,.0f}" in text and "max_length 16" in text and "95 %" in text


def test_each_document_of_a_row_has_a_color_and_positions_without_target_are_marked():
    found, row = page(), packed_row()
    hues = [tag["style"] for tag in found.all("div") if tag.get("style", "").startswith("--hue")]
    assert len(hues) == len(set(hues)) == 3
    tokens = [tag for tag in found.all("i") if "data-position" in tag]
    assert [int(token["data-position"]) for token in tokens] == row["position_ids"].tolist()
    assert [token.get("class") == "no-target" for token in tokens] == (row["shift_labels"] == IGNORED).tolist()
    assert len(found.all("s")) == 3 and "15 of 16 positions are filled" in found.text


def test_a_window_is_one_block_and_a_cut_document_is_marked_as_continued():
    window = {"input_ids": np.arange(4), "shift_labels": np.array([1, IGNORED, 3, 4])}
    found = page(row=window, pieces=list("abcd"))
    assert (
        len([tag for tag in found.all("div") if "--hue" in tag.get("style", "")]) == 1
        and "document 1" not in found.text
    )
    cut = window | {"position_ids": np.array([0, 1, 0, 1])}
    text = page(row=cut, pieces=list("abcd")).text
    assert "document 2: 2 tokens, continues" in text and "document 1: 2 tokens, continues" not in text


def test_a_figure_that_rounds_up_takes_the_next_unit():
    facts = manifest() | {"bytes": 999_700_000, "tokens": 999_600}
    assert {"1 GB", "1 M"} <= {*page(manifest=facts).texts}


def test_text_rows_are_measured_in_bytes_and_missing_values_are_omitted():
    text = page(manifest=manifest("text", mixture=None), row=None, pieces=None).text
    assert "bytes in a document" in text and "per token" not in text
    assert "Mixture" not in text and "One row" not in text and "max_length" not in text
