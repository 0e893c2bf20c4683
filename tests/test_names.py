"""Names: whoever a model calls a person is masked, wherever it stands in a text however long."""

import json

import prepare
import pytest
import torch
from bad_input import fails
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForTokenClassification, PreTrainedTokenizerFast

from scratch_gpt.data.names import names_finder
from scratch_gpt.data.privacy import mask_private


WORDS = ["[UNK]", "[PAD]", "Ada", "Lovelace", "Charles", "wrote", "to"]
PEOPLE = {"Ada": 1, "Lovelace": 2, "Charles": 1}  # B-PER and I-PER
PLACE = 16  # tokens the model reads at once


def save_names_model(folder, labels=("O", "B-PER", "I-PER")):
    """A BERT whose word vectors say what a word is, and whose layers pass them on."""
    raw = Tokenizer(models.WordLevel({word: id for id, word in enumerate(WORDS)}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="[UNK]", pad_token="[PAD]")
    names = dict(enumerate(labels))
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        max_position_embeddings=PLACE,
        id2label=names,
        label2id={label: id for id, label in names.items()},
    )
    model = BertForTokenClassification(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if name.endswith("LayerNorm.weight") else 0.0)
        for id, word in enumerate(WORDS):
            model.bert.embeddings.word_embeddings.weight[id, PEOPLE.get(word, 0)] = 1.0
        model.classifier.weight.copy_(torch.eye(len(labels), 8))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def names_model(tmp_path_factory):
    return str(save_names_model(tmp_path_factory.mktemp("names")))


def test_names_are_masked_where_the_model_finds_them(names_model):
    find = names_finder(names_model)
    masked, counts = mask_private("Ada Lovelace wrote to Charles or to a@b.org", find_names=find)
    assert masked == "[NAME] wrote to [NAME] or to [EMAIL]" and counts["name"] == 2
    assert mask_private("  ", find_names=find)[0] == "  "


@pytest.mark.parametrize("before", [0, 1, 12, 13, 14, 15, 16, 17, 40_000])
def test_names_are_found_wherever_they_stand_in_a_long_text(names_model, before):
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


def test_bad_input_is_one_clear_line(names_model, tmp_path, capsys):
    blind = save_names_model(tmp_path / "blind", ("O", "B-LOC", "I-LOC"))
    text = tmp_path / "a.txt"
    text.write_text("to Ada")
    words = ["--dataset", text, "--task", "text", "--output-dir", tmp_path / "out"]
    masked = [*words, "--privacy", "mask", "--names-model"]
    fails([*words, "--names-model", names_model], "add --privacy mask", capsys, prepare.main)
    fails([*masked, blind], "marks LOC, O; it has to mark PER or PERSON", capsys, prepare.main)
    fails([*masked, tmp_path / "none"], "names-model", capsys, prepare.main)
    fails([*masked, "nobody/nothing"], "cannot be loaded", capsys, prepare.main)
    assert not (tmp_path / "out").exists()
