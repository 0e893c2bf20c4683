"""Test IFEval: strict implies loose, an empty answer meets nothing, fulfilled constraints are counted."""

import json

import pytest

from scratch_gpt.evaluation.ifeval import constraint_metrics, keep_constraints, read_constraints


pytest.importorskip("lm_eval.tasks.ifeval.instructions")


@pytest.fixture(scope="module", autouse=True)
def sentences():
    """Replace nltk's sentence splitter by one that needs no download."""
    from lm_eval.tasks.ifeval import instructions_util
    from nltk.tokenize.punkt import PunktSentenceTokenizer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(instructions_util, "_get_sentence_tokenizer", PunktSentenceTokenizer)
        patch.setattr(instructions_util.nltk, "word_tokenize", str.split)
        yield


def row(**constraints):
    names = [name.replace("__", ":") for name in constraints]
    return {"key": 1, "prompt": "Do it.", "instruction_id_list": names, "kwargs": [*constraints.values()]}


def test_all_541_prompts_are_read_and_an_empty_answer_meets_no_constraint(data):
    rows = [json.loads(line) for line in (data / "eval" / "ifeval_input_data.jsonl").read_text().splitlines()]
    prompts = read_constraints(rows)
    assert len(prompts) == 541 and sum(len(each["kwargs"]) for each in prompts) == 834
    prompts = prompts[3::16]  # includes the prompt about a letter that is not a letter
    assert set(constraint_metrics(keep_constraints(prompts, [""] * len(prompts))).values()) == {0.0}
    answers = [f"# {each['prompt']}\n\n* *{each['prompt'].lower()}*\n\nP.S. Yes" for each in prompts]
    kept = keep_constraints(prompts, answers)
    assert all(loose >= strict for one in kept for strict, loose in zip(one.strict, one.loose, strict=True))
    metrics = constraint_metrics(kept)
    assert 0 < metrics["prompt_strict_acc"] < metrics["instruction_strict_acc"] < metrics["instruction_loose_acc"] < 1
    assert keep_constraints(prompts, answers) == kept


def test_followed_and_broken_constraints_are_distinguished():
    prompts = read_constraints([row(punctuation__no_comma={}, startend__end_checker={"end_phrase": "The end."})])
    assert keep_constraints(prompts, ["All well. The end."])[0] == ([True, True], [True, True])
    assert keep_constraints(prompts, ["Sure, here:\nAll well. The end."])[0] == ([False, True], [True, True])
    assert constraint_metrics(keep_constraints(prompts * 2, ["All well. The end.", "Well, no."])) == {
        "prompt_strict_acc": 0.5,
        "instruction_strict_acc": 0.5,
        "prompt_loose_acc": 0.5,
        "instruction_loose_acc": 0.5,
    }


def test_null_arguments_of_a_constraint_are_dropped():
    padded = row(punctuation__no_comma={"num_words": None, "end_phrase": None})
    assert read_constraints([padded])[0]["kwargs"] == [{}]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompt": "?"}, "Row 1 is not a row of IFEval"),
        (row(punctuation__no_dots={}), "no_dots"),
        (row(punctuation__no_comma={"words": 3}), "a constraint that IFEval does not have"),
        ({**row(punctuation__no_comma={}), "kwargs": []}, "Row 1 is not a row of IFEval"),
        ({**row(punctuation__no_comma={}), "kwargs": [None]}, "Row 1 is not a row of IFEval"),
    ],
)
def test_rows_without_ifevals_fields_are_errors(given, message):
    with pytest.raises(ValueError, match=message):
        read_constraints([given])


def test_missing_nltk_data_is_an_error_before_any_answer(monkeypatch):
    from lm_eval.tasks.ifeval import instructions_util

    def gone():
        raise LookupError("punkt")

    monkeypatch.setattr(instructions_util, "_get_sentence_tokenizer", gone)
    asked = {"relation": "at least", "num_sentences": 2}
    with pytest.raises(ValueError, match="nltk.downloader punkt_tab"):
        read_constraints([row(length_constraints__number_sentences=asked)])
