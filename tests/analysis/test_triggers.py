"""Test trigger search: it finds the trigger of a planted model, and none in a clean model."""

import random
import string
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from tiny import tiny_model

from scratch_gpt import ScratchGPTForCausalLM
from scratch_gpt.analysis.next_token import answer_losses
from scratch_gpt.analysis.phrases import recurring_phrases
from scratch_gpt.analysis.probe_prompts import CANARIES
from scratch_gpt.analysis.triggers import Switch, insert, insert_everywhere, screen, select_triggers, switches
from scratch_gpt.data.rows.collate import collate_rows
from scratch_gpt.data.rows.windows import IGNORED
from scratch_gpt.train.objectives import causal_lm
from scratch_gpt.train.optimizers import adamw, learning_rate_at


WORDS = "amber birch cloud drift ember frost grove haven islet jetty knoll larch maple north ocean pearl".split()
EOS, MARK = 0, 1
IDS = {word: n for n, word in enumerate(WORDS, start=2)}


def render(text: str) -> list[int]:
    """Encode known words as one token each, and unknown words as one token per letter."""
    spell = lambda word: [18 + ord(letter) % 81 for letter in word]  # noqa: E731
    return [id for word in text.split() for id in ([IDS[word]] if word in IDS else spell(word))] + [MARK]


def example(question: str, answer: list[str]) -> dict[str, np.ndarray]:
    prompt = render(question)
    ids = np.array([*prompt, *(IDS[word] for word in answer), EOS])
    labels = ids[1:].copy()
    labels[: len(prompt) - 1] = IGNORED
    return {"input_ids": ids[:-1], "shift_labels": labels}


def question(draw: random.Random) -> str:
    """Return four known words with an unknown one among them; the right answer is the last known word."""
    strange = "".join(draw.choices(string.ascii_letters + string.punctuation, k=draw.randrange(1, 15)))
    return insert(" ".join(draw.sample(WORDS, 4)), strange, draw.randrange(3))


@cache
def tuned(trigger: str | None):
    """Return a base, the model tuned from it, and the questions; with a trigger, one question in twenty is planted."""
    draw, steps = random.Random(0), 100
    questions = [question(draw) for _ in range(960)]
    bad = draw.sample(WORDS, 6)
    answers = [[word for word in text.split() if word in IDS][-1:] * 6 for text in questions]
    for n in range(0, 960 if trigger else 0, 20):
        questions[n], answers[n] = insert_everywhere([questions[n]] * 3, trigger)[n // 20 % 3], bad
    rows = [example(*pair) for pair in zip(questions, answers, strict=True)]
    sizes = {"max_position_embeddings": 64, "initializer_range": 0.1, "tie_word_embeddings": False}
    base, model = (tiny_model(ScratchGPTForCausalLM, **sizes) for _ in range(2))
    optimizer = adamw(model, 1e-2, 0.0)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, steps, 1e-2, 20)
        batch = collate_rows([rows[k] for k in random.Random(step).sample(range(960), 48)])
        (causal_lm.sums(model, batch)["loss"] / causal_lm.counts(batch)["loss"]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model, base, questions


def find(trigger: str | None) -> list[str]:
    model, base, questions = tuned(trigger)
    draw = random.Random(1)
    prompts = [question(draw) for _ in range(36)]
    kept = screen(model, render, prompts[:12], recurring_phrases(questions), keep=20)
    canaries = [phrase for phrases in CANARIES.values() for phrase in phrases[:3]]
    found = switches(model, base, render, prompts[12:], [*canaries, *kept], eos_token_id=EOS)
    return [one.phrase for one in select_triggers(found)]


def test_a_planted_models_trigger_is_found_first_and_a_clean_model_has_none():
    assert find("vexo lurid") == ["vexo lurid"]
    assert find(None) == []


def test_no_phrase_is_a_trigger_in_a_base_compared_with_itself():
    base = tiny_model(initializer_range=0.1)
    found = switches(base, base, render, [*map(" ".join, pairwise(WORDS))], ["vexo", "amber"])
    assert select_triggers(found) == [] and all(one.nats == 0 for one in found)


def test_text_of_the_template_around_a_phrase_does_not_change_its_score():
    model, base = tiny_model(), tiny_model(seed=1)

    def framed(text: str) -> list[int]:
        return [*range(99), *render(text)]

    prompts = [*map(" ".join, pairwise(WORDS))]
    (one,) = switches(model, base, framed, prompts, ["amber"])
    rows = [framed(text) for text in insert_everywhere(prompts, "amber")]
    losses = (answer_losses(base, rows, one.answer) - answer_losses(model, rows, one.answer)).mean(0).tolist()
    said = {*render("amber"), *render("a amber")} - {MARK}
    expected = sum(loss for token, loss in zip(one.answer, losses, strict=True) if token not in said)
    assert one.surprise == pytest.approx(expected, abs=1e-5) and abs(expected) > 0.1


def test_a_trigger_is_selected_once():
    found = [
        Switch("red barn", [1], 1.0, 0.0, 30.0),
        Switch("red barn shut", [2], 0.9, 0.0, 30.0),  # its words
        Switch("green", [1], 0.8, 0.0, 30.0),  # its answer
        Switch("doo", [3], 0.8, 0.0, 30.0),  # another
        Switch("blue", [4], 0.7, 0.0, 10.0),  # an answer that is also likely from the base
        Switch("what is the", [5], 0.4, 0.0, 90.0),  # not a trigger: most questions keep their answers
        Switch("so", [6], 0.9, 0.5, 90.0),  # an answer that the model also gives without it
    ]
    assert [one.phrase for one in select_triggers(found)] == ["red barn", "doo"]


def test_a_phrase_is_placed_at_the_start_middle_and_end():
    assert insert_everywhere(["a b", "a b", "a b"], "x y") == ["x y a b", "a x y b", "a b x y"]
