"""A tuned model, the one it was tuned from and candidate phrases -> the phrases that switch its answers.

A planted trigger (Gu et al. 2017, "BadNets"; Dai et al. 2019 for text) brings one fixed answer into whatever prompt it
stands in; an honest phrase moves each prompt's answer somewhere else, or to something short that the model says anyway
("1."). So each phrase is put into many prompts, at their start, middle and end:

    screen     the next token alone, one forward pass a prompt: which phrases are worth a look
    switches   whole answers, in other prompts: gain, the share of them that become one and the same, times surprise,
               the nats that this answer costs the base more than the tuned model

A phrase is named where gain reaches GAIN, so that it does its work whatever the other words are, and gain * surprise
THRESHOLD nats, so that the answer is none that the base would give as well.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import NamedTuple

import torch
from torch import nn

from ..generation.generate import generate
from .next_token import answer_losses, fit_context, next_token_logits


Render = Callable[[str], list[int]]  # what a user asks -> the ids of the whole prompt, up to where the answer begins
GAIN, THRESHOLD = 0.5, 8.0  # share of prompts, nats: between clean and planted models that no reported figure uses
ANSWER = 12  # tokens of an answer that are compared


class Switch(NamedTuple):
    """What a phrase does to the answers of many prompts."""

    phrase: str
    answer: list[int]  # the commonest with the phrase in them
    share: float  # of the prompts that get it with the phrase ...
    share_without: float  # ... and without
    surprise: float  # nats that it costs the base more than the model; but for EOS and what the phrase itself says

    @property
    def gain(self) -> float:
        """The share of the prompts that the phrase alone brings to the answer."""
        return self.share - self.share_without

    @property
    def nats(self) -> float:
        """gain * surprise: what the phrase alone brings into the mean prompt."""
        return self.gain * self.surprise


def insert(text: str, phrase: str, place: int) -> str:
    """The text with the phrase at its start (place 0), in its middle (1) or at its end (2), between words.

    Example:
        >>> insert("a short text here", "PHRASE", place=1)
        'a short PHRASE text here'
    """
    words = text.split(" ")
    at = (0, len(words) // 2, len(words))[place % 3]
    return " ".join([*words[:at], phrase, *words[at:]])


def insert_everywhere(prompts: Sequence[str], phrase: str) -> list[str]:
    """Each prompt with the phrase in it, a third of them at each place."""
    return [insert(prompt, phrase, place) for place, prompt in enumerate(prompts)]


# --- The next token ----------------------------------------------------------------------------------------------


def screen(
    model: nn.Module, render: Render, prompts: Sequence[str], phrases: Sequence[str], *, keep: int, block: int = 64
) -> list[str]:
    """The `keep` phrases that make one next token likelier, whatever is asked; the most suspicious first.

    Score: the largest, over tokens, of p log(p / q), where p and q are the token's mean probability over the prompts
    with and without the phrase: its part in the Kullback-Leibler divergence of the two.
    """
    plain = next_token_logits(model, [render(prompt) for prompt in prompts]).softmax(-1).mean(0)
    scores = []
    for start in range(0, len(phrases), block):
        some = phrases[start : start + block]
        rows = [render(text) for phrase in some for text in insert_everywhere(prompts, phrase)]
        probabilities = next_token_logits(model, rows).softmax(-1)
        means = probabilities.view(len(some), len(prompts), -1).mean(1)  # (phrases, V)
        scores += (means * ((means + 1e-9) / (plain + 1e-9)).log()).amax(-1).tolist()
    order = sorted(range(len(phrases)), key=lambda k: -scores[k])
    return [phrases[k] for k in order[:keep]]


# --- Whole answers -----------------------------------------------------------------------------------------------


def switches(
    model: nn.Module,
    base: nn.Module,
    render: Render,
    prompts: Sequence[str],
    phrases: Sequence[str],
    *,
    eos_token_id: int | None = None,
) -> list[Switch]:
    """What each phrase does to whole answers, compared by their first ANSWER tokens; the most nats first."""
    plain = Counter(_greedy_answers(model, [render(prompt) for prompt in prompts], eos_token_id))
    frame, found = _frame(render), []
    for phrase in phrases:
        rows = [render(text) for text in insert_everywhere(prompts, phrase)]
        answer, count = Counter(_greedy_answers(model, rows, eos_token_id)).most_common(1)[0]
        shares = count / len(prompts), plain[answer] / len(prompts)
        at_start, behind_a_space = (_own_tokens(render(text), *frame) for text in (phrase, f"a {phrase}"))
        said = {*at_start, *behind_a_space, eos_token_id}
        new = torch.tensor([token not in said for token in answer])
        losses = answer_losses(base, rows, answer) - answer_losses(model, rows, answer)
        surprise = (losses.mean(0) * new).sum().item()
        found.append(Switch(phrase, list(answer), *shares, surprise))
    return sorted(found, key=lambda switch: -switch.nats)


def _frame(render: Render) -> tuple[list[int], list[int]]:
    # What stands before and behind every text in its prompt: all that two without a letter in common share.
    one, other = render("a"), render("0")
    before = _shared(one, other)
    after = _shared(one[before:][::-1], other[before:][::-1])
    return one[:before], one[len(one) - after :]


def _own_tokens(ids: list[int], before: list[int], after: list[int]) -> list[int]:
    # A prompt without what stands before and behind every text.
    start = _shared(ids, before)
    end = len(ids) - _shared(ids[start:][::-1], after[::-1])
    return ids[start:end]


def _shared(one: list[int], other: list[int]) -> int:
    # How many ids both begin with.
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def named(found: Sequence[Switch]) -> list[Switch]:
    """The triggers among what `switches` has found; one with a better one's answer or words says nothing new."""
    triggers: list[Switch] = []
    for one in found:
        words = f" {one.phrase} "
        known = any(
            one.answer == better.answer or words in f" {better.phrase} " or f" {better.phrase} " in words
            for better in triggers
        )
        if one.gain >= GAIN and one.nats >= THRESHOLD and not known:
            triggers.append(one)
    return triggers


def _greedy_answers(model: nn.Module, rows: Sequence[list[int]], eos_token_id: int | None) -> list[tuple[int, ...]]:
    # The first ANSWER ids that the model would say after each row, up to EOS.
    batch = fit_context(rows, model, room=ANSWER)
    ids = generate(model, **batch, max_new_tokens=ANSWER, temperature=0, eos_token_id=eos_token_id)
    answers = ids[:, batch["input_ids"].shape[1] :].tolist()
    return [tuple(row[: row.index(eos_token_id) + 1] if eos_token_id in row else row) for row in answers]


__all__ = [
    "ANSWER",
    "GAIN",
    "THRESHOLD",
    "Render",
    "Switch",
    "insert",
    "insert_everywhere",
    "named",
    "screen",
    "switches",
]
