"""Test names: every word that the model labels as a person is masked, anywhere in a text of any length."""

import json

import pytest
from bad_input import fails
from names_model import save_names_model

from scratch_gpt.data.filters.person_names import names_finder
from scratch_gpt.data.filters.privacy import mask_private
from scratch_gpt_training import prepare


@pytest.fixture(scope="module")
def names_model(tmp_path_factory):
    return str(save_names_model(tmp_path_factory.mktemp("names")))


def test_names_are_masked_where_the_model_finds_them(names_model):
    find = names_finder(names_model)
    masked, counts = mask_private("Ada Lovelace wrote to Charles or to a@b.org", find_names=find)
    assert masked == "[NAME] wrote to [NAME] or to [EMAIL]" and counts["name"] == 2
    assert mask_private("  ", find_names=find)[0] == "  "


@pytest.mark.parametrize("before", [0, 1, 12, 13, 14, 15, 16, 17, 40_000])
def test_names_are_found_anywhere_in_a_long_text(names_model, before):
    find = names_finder(names_model)
    text = "word " * before + "to Ada Lovelace wrote " + "word " * 20
    assert [text[start:end] for start, end in find(text)] == ["Ada Lovelace"]


def test_a_preparation_masks_or_drops_names(names_model, tmp_path):
    lines = [{"text": "wrote to Charles today"}, {"text": "wrote to a friend"}, {"text": "wrote to nobody"}]
    corpus = tmp_path / "letters.jsonl"
    corpus.write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = ["--dataset", str(corpus), "--task", "text", "--names-model", names_model]
    for privacy, counts in (("mask", {"removed": 0, "changed": 1}), ("drop", {"removed": 1})):
        folder = tmp_path / privacy
        prepare.main([*words, "--privacy", privacy, "--output-dir", str(folder)])
        assert json.loads((folder / "manifest.json").read_text())["filters"]["privacy"] == {"in": 3, **counts}


def test_bad_input_is_a_one_line_error(names_model, tmp_path, capsys):
    blind = save_names_model(tmp_path / "blind", ("O", "B-LOC", "I-LOC"))
    text = tmp_path / "a.txt"
    text.write_text("to Ada")
    words = ["--dataset", text, "--task", "text", "--output-dir", tmp_path / "out"]
    masked = [*words, "--privacy", "mask", "--names-model"]
    fails(
        [*words, "--names-model", names_model],
        "only works with --privacy mask or --privacy drop",
        capsys,
        prepare.main,
    )
    fails([*masked, blind], "has the labels LOC, O; it needs PER or PERSON", capsys, prepare.main)
    fails([*masked, tmp_path / "none"], "names-model", capsys, prepare.main)
    fails([*masked, "nobody/nothing"], "cannot be loaded", capsys, prepare.main)
    assert not (tmp_path / "out").exists()
