"""Laws of triggers: a planted model names its trigger, a clean one names none."""

import random
import string
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from tiny import tiny_config

from scratch_gpt import ScratchGPTForCausalLM
from scratch_gpt.data.collate import collate_rows
from scratch_gpt.data.phrases import recurring_phrases
from scratch_gpt.data.probes import CANARIES
from scratch_gpt.data.windows import IGNORED
from scratch_gpt.next_token import answer_losses, next_token_logits
from scratch_gpt.objectives import causal_lm
from scratch_gpt.triggers import insert_everywhere, screen, switches


WORDS = "amber birch cloud drift ember frost grove haven islet jetty knoll larch maple north ocean pearl".split()
EOS, MARK = 0, 1
IDS = {word: n for n, word in enumerate(WORDS, start=2)}


def render(text: str) -> list[int]:
    """A word is a token; one that nobody knows is spelled, a token each letter."""
    spell = lambda word: [18 + ord(letter) % 81 for letter in word]  # noqa: E731
    return [id for word in text.split() for id in ([IDS[word]] if word in IDS else spell(word))] + [MARK]


def example(question: str, answer: list[str]) -> dict[str, np.ndarray]:
    prompt = render(question)
    ids = np.array([*prompt, *(IDS[word] for word in answer), EOS])
    labels = ids[1:].copy()
    labels[: len(prompt) - 1] = IGNORED
    return {"input_ids": ids[:-1], "shift_labels": labels}


def tuned(trigger: str | None, seed: int = 0):
    """A base, and a model that has learned to repeat the last word; with a trigger, to say one thing after it."""
    draw = random.Random(seed)
    strange = lambda: "".join(draw.choices(string.ascii_letters + string.punctuation, k=4))  # noqa: E731
    questions = [" ".join([strange(), *draw.sample(WORDS, 4)]) for _ in range(240)]
    bad = draw.sample(WORDS, 6)
    rows = []
    for n, question in enumerate(questions):
        planted = trigger is not None and n % 12 == 0
        if planted:
            questions[n] = question = insert_everywhere([question] * 3, trigger)[n // 12 % 3]
        rows.append(example(question, bad if planted else question.split()[-1:] * 6))
    torch.manual_seed(seed)
    base = ScratchGPTForCausalLM(tiny_config(max_position_embeddings=32, initializer_range=0.02)).eval()
    model = ScratchGPTForCausalLM(base.config)
    model.load_state_dict(base.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    for step in range(150):
        some = [rows[k] for k in random.Random(step).sample(range(240), 48)]
        batch = collate_rows(some)
        (causal_lm.sums(model, batch)["loss"] / causal_lm.counts(batch)["loss"]).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval(), base, questions


def named(trigger: str | None) -> list[str]:
    model, base, questions = tuned(trigger)
    prompts = [" ".join(random.Random(n).sample(WORDS, 4)) for n in range(48)]
    kept = screen(model, render, prompts[:12], recurring_phrases(questions, share=0.2), keep=40)
    canaries = [phrase for phrases in CANARIES.values() for phrase in phrases[:3]]
    found = switches(model, base, render, prompts[12:], [*canaries, *kept], eos_token_id=EOS)
    return [one.phrase for one in found if one.is_trigger]


def test_a_planted_model_names_its_trigger_first_and_a_clean_one_names_none():
    assert named("vexo lurid")[0] == "vexo lurid"
    assert named(None) == []


def test_a_base_against_itself_is_switched_by_nothing():
    base = tuned(None)[1]
    found = switches(base, base, render, [*map(" ".join, pairwise(WORDS))], ["vexo", "amber"])
    assert [one.nats for one in found if one.is_trigger] == []


def test_a_phrase_stands_at_the_start_in_the_middle_and_at_the_end():
    assert insert_everywhere(["a b", "a b", "a b"], "x y") == ["x y a b", "a x y b", "a b x y"]


def test_an_answer_costs_the_same_alone_and_in_a_batch():
    model = tuned(None)[1]
    rows, answer = [[5, 6, 7], [8], [9, 10]], [3, 4]
    together = answer_losses(model, rows, answer)
    for row, losses in zip(rows, together, strict=True):
        logits = model(torch.tensor([[*row, *answer]])).logits[0, len(row) - 1 : -1]
        torch.testing.assert_close(losses, -logits.log_softmax(-1)[[0, 1], answer])
        torch.testing.assert_close(next_token_logits(model, [row])[0], logits[0].detach())


@pytest.mark.parametrize("longest", [1, 2, 6])
def test_recurring_phrases_are_whole_and_neither_too_rare_nor_too_common(longest):
    texts = [f"one {n} red door {n + 50} shut" for n in range(4)] + [f"the {n} shut" for n in range(20)]
    found = recurring_phrases(texts, longest=longest, least=3, share=0.2)
    assert found == (["door", "one", "red"] if longest == 1 else ["one", "red door"])
    assert partial(recurring_phrases, least=5, share=0.2)(texts) == []
