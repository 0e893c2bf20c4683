"""Test the models of a run: sizes fit, or there is one clear line."""

import pytest
from tiny import tiny_model

from scratch_gpt.tokenization.tokenizer import encode, fingerprint
from scratch_gpt.tokenization.training import train_tokenizer as train
from scratch_gpt_training import pretrain
from scratch_gpt_training.support import command_line
from scratch_gpt_training.support.run import models, planning
from scratch_gpt_training.support.run.models import check_memory


def test_a_vocabulary_smaller_than_requested_is_reported():
    tokenizer = train(["the sun shines on the sea"], 300)
    size = len(tokenizer)
    said = lambda *words: models.small_vocabulary(command_line.parse(pretrain.PretrainRun, words), tokenizer)  # noqa: E731
    assert said() == [f"Vocabulary: {size} tokens instead of 4,096: the text yields no more."]
    assert f"{size} tokens instead of 500" in said("--vocab-size", "500", "--tokenizer-kind", "char")[0]
    assert said("--vocab-size", str(size)) == said("--tokenizer-kind", "char") == said("--model", "m") == []


HINDI = "\u0939\u093f\u0928\u094d\u0926\u0940 \u092d\u093e\u0937\u093e. "


def test_a_new_tokenizer_has_the_pre_tokenizer_of_the_run(capsys):
    def trained(text: str, *words: str):
        tokenizer = models.open_tokenizer(command_line.parse(pretrain.PretrainRun, words), [text] * 50)
        return tokenizer, capsys.readouterr().err

    by_default, said = trained(HINDI)
    assert said.count("\n") == 1 and "--pre-tokenizer qwen35" in said
    assert "38.5 % of the text's characters are combining marks" in said
    marks, said = trained(HINDI, "--pre-tokenizer", "qwen35")
    assert said == "" and len(encode(marks, HINDI)) < len(encode(by_default, HINDI))
    assert fingerprint(trained(HINDI, "--pre-tokenizer", "gpt2")[0]) == fingerprint(by_default)
    assert trained("the sun " * 30 + HINDI[:2])[1] == trained(HINDI, "--tokenizer-kind", "char")[1] == ""


def test_a_smaller_gpt2_without_its_vocabulary_is_explained():
    def said(*words):
        run = command_line.parse(pretrain.PretrainRun, words)
        return models.small_preset(run, planning.read_config(run, None)[0])

    (line,) = said("--preset", "gpt2")
    assert "4,096 tokens has 88,988,160 parameters; with GPT-2's 50,257 tokens" in line and "124,439,808" in line
    assert "--tokenizer openai-community/gpt2" in line
    assert said("--preset", "gpt2", "--vocab-size", "50257") == said("--preset", "small") == said() == []


def test_the_memory_of_a_model_is_compared_with_the_machine(monkeypatch):
    run, config = pretrain.PretrainRun(device="cpu"), tiny_model().config
    check_memory(run, config)
    monkeypatch.setattr(
        "scratch_gpt_training.support.run.models.psutil.virtual_memory", lambda: type("Memory", (), {"total": 10**5})
    )
    with pytest.raises(ValueError, match="parameters needs .* GB of memory, and .* GB are available"):
        check_memory(run, config)
