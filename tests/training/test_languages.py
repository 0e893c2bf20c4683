"""Test a language other than English: tokenizer, base model, generated text, and a card that names the language."""

import json
import re
import shutil

import pytest
from accelerate.state import AcceleratorState, PartialState
from bad_input import fails
from places import REPO
from transformers import AutoModelForCausalLM, AutoTokenizer

from scratch_gpt.tokenization.pre_tokenizers import find_pre_tokenizer
from scratch_gpt.tokenization.tokenizer import decode, encode, fingerprint
from scratch_gpt_training import generate, pretrain, publish
from scratch_gpt_training.support.command_line import parse
from scratch_gpt_training.support.options import check_run


SMALL = ["--max-steps", "4", "--eval-every", "2", "--device", "cpu", "--mixed-precision", "no"]
SMALL += ["--config-overrides", "hidden_size=32,num_hidden_layers=2"]
HUMAN = "\u092e\u093e\u0928\u0935"


def train(*words) -> None:
    AcceleratorState._reset_state()
    PartialState._reset_state()
    pretrain.main([*map(str, words)])


@pytest.fixture(scope="module")
def hindi(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("hindi") / "run"
    config, text = REPO / "training" / "configs" / "hindi.yaml", data / "multilingual" / "udhr_hi.txt"
    train("--config", config, "--dataset", text, "--output-dir", folder, *SMALL)
    return folder


def test_the_recipe_writes_a_base_whose_tokens_hold_vowel_signs(hindi, data, capsys):
    tokenizer = AutoTokenizer.from_pretrained(hindi / "model")
    content = json.loads((hindi / "model" / "tokenizer.json").read_text(encoding="utf-8"))
    assert find_pre_tokenizer(content["pre_tokenizer"]) == "qwen35"
    text = (data / "multilingual" / "udhr_hi.txt").read_text(encoding="utf-8")
    ids = encode(tokenizer, text)
    assert decode(tokenizer, ids) == text and len(text) / len(ids) > 2.5
    assert len(encode(tokenizer, f" {HUMAN}")) == 1
    scores = json.loads((hindi / "evaluation.json").read_text())["results"]
    assert scores["validation"]["bits_per_byte"] < scores["before/validation"]["bits_per_byte"]
    model = AutoModelForCausalLM.from_pretrained(hindi / "model", trust_remote_code=True)
    assert model.config.vocab_size == len(tokenizer)
    capsys.readouterr()
    generate.main(["--model", str(hindi / "model"), "--prompt", HUMAN, "--max-new-tokens", "5", "--seed", "0"])
    assert capsys.readouterr().out.strip()


def test_the_card_names_the_language(hindi, capsys):
    capsys.readouterr()
    publish.main([str(hindi), "--repo", "ada/hindi", "--dry-run"])
    assert re.search(r"^language: hi$", capsys.readouterr().out, flags=re.MULTILINE)


def test_a_resumed_run_and_a_tuned_model_keep_the_tokenizer(hindi, data, tmp_path, capsys):
    before = fingerprint(AutoTokenizer.from_pretrained(hindi / "model"))
    resumed = shutil.copytree(hindi, tmp_path / "resumed")
    words = ["--output-dir", resumed, "--resume", "latest", "--max-steps", "5"]
    fails([*words, "--pre-tokenizer", "gpt2"], "belongs to another model", capsys, main=train_of)
    train(*words)
    text = data / "multilingual" / "udhr_hi.txt"
    train("--model", hindi / "model", "--dataset", text, "--output-dir", tmp_path / "tuned", "--max-steps", "1")
    for folder in (resumed, tmp_path / "tuned"):
        assert fingerprint(AutoTokenizer.from_pretrained(folder / "model")) == before


def train_of(words: list[str]) -> None:
    train(*words)


def test_codes_of_languages_are_checked():
    for codes in ("hi", "hi,en", "hi, en", "zh-Hant", "yue", "multilingual"):
        check_run(parse(pretrain.PretrainRun, ["--language", codes]))
    for codes in ("Hindi", "hi en", "", "hi,", "False"):
        with pytest.raises(ValueError, match="--language must be codes of ISO 639"):
            check_run(parse(pretrain.PretrainRun, ["--language", codes]))
