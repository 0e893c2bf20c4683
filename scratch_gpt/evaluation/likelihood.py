"""A model and questions with given answers -> how likely it finds each answer: multiple choice and last words.

A question is answered by likelihood alone, nothing is generated. Numbers are those of lm_eval's `multiple_choice` and
`loglikelihood` tasks on the same rows.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from ..tokenization.tokenizer import begin_of_text_id, encode_batch


class Likelihood(NamedTuple):
    """Of one continuation after its context."""

    logp: float  # in nats, of all its tokens
    is_greedy: bool  # each of its tokens is the likeliest one


@torch.no_grad()
def score_continuations(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[tuple[str, str]],
    max_length: int,
    batch_size: int = 8,
) -> list[Likelihood]:
    """(context, continuation) texts -> the likelihood of each continuation, the same at every batch size.

    What is too long is cut at the context's beginning. An empty context is the begin of a document.

    Raises:
        ValueError: a continuation without a token, or with more of them than `max_length`.
    """
    rows = _encode_pairs(tokenizer, pairs, max_length)
    order = sorted(range(len(rows)), key=lambda n: -len(rows[n][0]))  # like lengths together, the longest first
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    found: dict[int, Likelihood] = {}
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        T = len(rows[chosen[0]][0]) - 1
        # Filled on the right, where nothing that is asked can see it: no mask is needed.
        ids = torch.tensor([rows[n][0][:-1] + [0] * (T + 1 - len(rows[n][0])) for n in chosen], device=device)
        logits = model(input_ids=ids, use_cache=False).logits
        for b, n in enumerate(chosen):
            whole, asked = rows[n]
            end = len(whole) - 1
            logp = logits[b, end - asked : end].float().log_softmax(-1)  # (asked, V)
            targets = torch.tensor(whole[-asked:], device=device)
            total = logp.double().gather(-1, targets[:, None]).sum().item()
            found[n] = Likelihood(total, bool((logp.argmax(-1) == targets).all()))
    model.train(was_training)
    return [found[n] for n in range(len(rows))]


def _encode_pairs(
    tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[str, str]], max_length: int
) -> list[tuple[list[int], int]]:
    # (ids, how many of them are asked). The two are encoded as one text, so that the border falls as in running text;
    # white space at the end of a context belongs to what follows.
    cut = [len(context.rstrip()) for context, _ in pairs]
    both = encode_batch(tokenizer, [context + continuation for context, continuation in pairs])
    contexts = encode_batch(tokenizer, [context[:n] for (context, _), n in zip(pairs, cut, strict=True)])
    begin = begin_of_text_id(tokenizer)
    rows = []
    for whole, context, (_, continuation) in zip(both, contexts, pairs, strict=True):
        asked = len(whole) - len(context)
        if not 1 <= asked <= max_length:
            raise ValueError(
                f"The answer {continuation[:60]!r} has {asked} tokens; there have to be 1 to {max_length} of them."
            )
        whole = whole if context else [begin, *whole]
        rows.append((whole[-(max_length + 1) :], asked))
    return rows


# --- Tasks -------------------------------------------------------------------------------------------------------


def read_choices(rows: Iterable[Mapping[str, Any]]) -> list[tuple[str, list[str], int]]:
    """Rows of {"query": str, "choices": [str, ...], "gold": int}, HellaSwag's fields in lm_eval -> the same as tuples.

    Raises:
        ValueError: a row without these fields, fewer than two choices, an empty one, or a gold that is none of them.
    """
    tasks = []
    for number, row in enumerate(rows, start=1):
        query, choices, gold = (row.get(name) for name in ("query", "choices", "gold"))
        if not isinstance(query, str) or not isinstance(choices, list) or type(gold) is not int:
            raise ValueError(f"Row {number} is not {{query: text, choices: [texts], gold: number}}: {_short(row)}.")
        if len(choices) < 2 or not all(isinstance(choice, str) and choice.strip() for choice in choices):
            raise ValueError(f"Row {number} needs two choices or more, none of them empty: {choices}.")
        if not 0 <= gold < len(choices):
            raise ValueError(f"Row {number} says gold {gold}; its choices are numbered 0 to {len(choices) - 1}.")
        tasks.append((query, choices, gold))
    return tasks


def choice_metrics(tasks: Sequence[tuple[str, list[str], int]], found: Sequence[Likelihood]) -> dict[str, float]:
    """The likelihoods of all choices, in the order of `choice_pairs` -> {"acc", "acc_norm"}.

    acc takes the likeliest choice, acc_norm the likeliest per character (Gao 2021, "Multiple Choice Normalization in
    LM Evaluation").
    """
    right, right_normed, start = 0, 0, 0
    for _, choices, gold in tasks:
        logps = np.array([one.logp for one in found[start : start + len(choices)]])
        start += len(choices)
        right += int(logps.argmax()) == gold
        right_normed += int((logps / [len(choice) for choice in choices]).argmax()) == gold
    return {"acc": right / len(tasks), "acc_norm": right_normed / len(tasks)}


def choice_pairs(tasks: Sequence[tuple[str, list[str], int]]) -> list[tuple[str, str]]:
    """Each query with each of its choices, a space between.

    Example:
        >>> choice_pairs([("The sky is", ["blue", "green"], 0)])
        [('The sky is', ' blue'), ('The sky is', ' green')]
    """
    return [(query, f" {choice}") for query, choices, _ in tasks for choice in choices]


def last_word_pairs(rows: Iterable[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Rows of {"text": str}, as LAMBADA's -> (all but the last word, a space and the last word).

    Raises:
        ValueError: a row without a text of two words.

    Example:
        >>> last_word_pairs([{"text": "The sun shines on the sea"}])
        [('The sun shines on the', ' sea')]
    """
    pairs = []
    for number, row in enumerate(rows, start=1):
        context, space, word = (row["text"] if isinstance(row.get("text"), str) else "").rstrip().rpartition(" ")
        if not space or not context.strip():
            raise ValueError(f"Row {number} has no text of two words or more: {_short(row)}.")
        pairs.append((context, f" {word}"))
    return pairs


def last_word_metrics(found: Sequence[Likelihood]) -> dict[str, float]:
    """{"acc": share of words that greedy decoding gives, "perplexity": exp of the mean loss of a word} (LAMBADA)."""
    loss = -float(np.mean([one.logp for one in found]))
    return {"acc": float(np.mean([one.is_greedy for one in found])), "perplexity": math.exp(min(loss, 700.0))}


def _short(row: Mapping[str, Any]) -> str:
    return repr(dict(row))[:100]


__all__ = [
    "Likelihood",
    "choice_metrics",
    "choice_pairs",
    "last_word_metrics",
    "last_word_pairs",
    "read_choices",
    "score_continuations",
]
