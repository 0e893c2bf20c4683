"""Test likelihoods: independent of batch size and order, of the continuation only, equal to lm_eval."""

import json
import math

import pytest
import torch
from tiny import tiny_gpt2, tiny_model

from scratch_gpt.evaluation.likelihood import (
    Likelihood,
    choice_metrics,
    choice_pairs,
    last_word_metrics,
    last_word_pairs,
    read_choices,
    score_continuations,
)
from scratch_gpt.tokenization.tokenizer import encode
from scratch_gpt.tokenization.training import train_tokenizer


TEXT = "the sun shines on the sea and every effort moves you on"
TOKENIZER = train_tokenizer([TEXT] * 9, vocab_size=300)
QUESTIONS = [
    {"query": "the sun shines", "choices": ["on the sea", "on", "every effort moves you on and on"], "gold": 0},
    {"query": "every effort", "choices": ["moves you", "shines", "sea"], "gold": 2},
    {"query": "the sea", "choices": ["and the sun", "xyz!"], "gold": 1},
    {"query": "on", "choices": ["the sun", "the sea", "you"], "gold": 1},
]
LAST_WORDS = [{"text": "the sea shines on the sun"}, {"text": "every effort moves you on"}]


def model(make=tiny_model):
    return make(vocab_size=len(TOKENIZER))


def score(pairs, batch_size=8, max_length=64, make=tiny_model):
    return score_continuations(model(make), TOKENIZER, pairs, max_length, batch_size)


def test_likelihoods_do_not_depend_on_batch_size_or_order():
    pairs = choice_pairs(read_choices(QUESTIONS)) + last_word_pairs(LAST_WORDS)
    alone = score(pairs, batch_size=1)
    for other in (score(pairs, batch_size=4), score(pairs[::-1], batch_size=3)[::-1]):
        assert [one.is_greedy for one in other] == [one.is_greedy for one in alone]
        assert [one.logp for one in other] == pytest.approx([one.logp for one in alone], rel=1e-5)


@pytest.mark.parametrize("make", [tiny_model, tiny_gpt2])
def test_a_likelihood_is_the_chain_of_next_token_probabilities(make):
    ids = encode(TOKENIZER, "the sun shines on the sea")
    scored = len(ids) - len(encode(TOKENIZER, "the sun shines"))
    with torch.no_grad():
        logp = model(make)(torch.tensor([ids])).logits[0].log_softmax(-1)
    expected = sum(float(logp[n - 1, ids[n]]) for n in range(len(ids) - scored, len(ids)))
    ((found, _),) = score([("the sun shines", " on the sea")], make=make)
    assert found == pytest.approx(expected, rel=1e-5)
    # A space at the border belongs to the continuation, on whichever side it is written.
    assert score([("the sun shines ", "on the sea")], make=make)[0].logp == pytest.approx(found)


def test_an_empty_context_starts_a_document_and_a_long_one_loses_its_beginning():
    eos, ids = TOKENIZER.eos_token_id, encode(TOKENIZER, "the sea")
    with torch.no_grad():
        logp = model()(torch.tensor([[eos, *ids]])).logits[0].log_softmax(-1)
    expected = sum(float(logp[n, id]) for n, id in enumerate(ids))
    assert score([("", "the sea")])[0].logp == pytest.approx(expected, rel=1e-5)
    assert score([(f"{TEXT} " * 3, "the sea")], max_length=8) == score([(f"{TEXT} " * 2, "the sea")], max_length=8)


def test_accuracy_takes_the_likeliest_choice_and_acc_norm_the_likeliest_per_character():
    tasks = [("q", ["ab", "abcd"], 1)]
    assert choice_metrics(tasks, [Likelihood(-3.0, False), Likelihood(-4.0, False)]) == {"acc": 0.0, "acc_norm": 1.0}
    found = last_word_metrics([Likelihood(-1.0, True), Likelihood(-3.0, False)])
    assert found == {"acc": 0.5, "perplexity": pytest.approx(math.e**2)}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"query": "a", "choices": ["b"], "gold": 0}, "two choices or more"),
        ({"query": "a", "choices": ["b", " "], "gold": 0}, "none of them empty"),
        ({"query": "a", "choices": ["b", "c"], "gold": 2}, "gold 2; its choices are numbered 0 to 1"),
        ({"query": "a", "choices": ["b", "c"], "gold": True}, "Row 1 is not"),
        ({"ctx": "a", "endings": ["b", "c"], "label": 1}, "Row 1 is not"),
    ],
)
def test_invalid_multiple_choice_rows_are_errors(row, message):
    with pytest.raises(ValueError, match=message):
        read_choices([row])


def test_texts_of_one_word_and_answers_that_do_not_fit_are_errors():
    for text in ("word", " word ", "", None):
        with pytest.raises(ValueError, match="two words"):
            last_word_pairs([{"text": text}])
    with pytest.raises(ValueError, match="it must have 1 to 4"):
        score([("on", f" {TEXT}")], max_length=4)
    with pytest.raises(ValueError, match="has 0 tokens"):
        score([("on", "")])


def test_lm_eval_runs_on_our_folder_with_the_same_results(tmp_path):
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.tasks import TaskManager

    model().save_pretrained(tmp_path / "model")
    TOKENIZER.save_pretrained(tmp_path / "model")
    common = "dataset_path: json\ndataset_kwargs: {{data_files: {{test: {file}}}}}\ntest_split: test\ntask: {name}\n"
    tasks = {
        "choices": 'output_type: multiple_choice\ndoc_to_text: "{{query}}"\ndoc_to_choice: choices\n'
        "doc_to_target: gold\nmetric_list: [{metric: acc}, {metric: acc_norm}]\n",
        "words": "output_type: loglikelihood\ndoc_to_text: \"{{text.split(' ')[:-1]|join(' ')}}\"\n"
        "doc_to_target: \"{{' '+text.split(' ')[-1]}}\"\nmetric_list: [{metric: acc}, {metric: perplexity}]\n",
    }
    for (name, task), rows in zip(tasks.items(), (QUESTIONS, LAST_WORDS), strict=True):
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        (tmp_path / f"{name}.yaml").write_text(common.format(file=file, name=name) + task)
    # The same as `lm_eval --model hf --model_args ...`, without loading its thousands of tasks first. (lm_eval merges
    # two requests with equal tokens and different starts of the answer; these rows contain no such pair.)
    theirs = lm_eval.simple_evaluate(
        model="hf",
        model_args=f"pretrained={tmp_path / 'model'},trust_remote_code=True,dtype=float32",
        tasks=[*tasks],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        device="cpu",
        batch_size=3,
        bootstrap_iters=0,
    )["results"]
    questions = read_choices(QUESTIONS)
    for name, value in choice_metrics(questions, score(choice_pairs(questions))).items():
        assert theirs["choices"][f"{name},none"] == pytest.approx(value)
    for name, value in last_word_metrics(score(last_word_pairs(LAST_WORDS))).items():
        assert theirs["words"][f"{name},none"] == pytest.approx(value, rel=1e-4)
