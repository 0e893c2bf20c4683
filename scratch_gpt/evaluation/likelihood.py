"""Compute the likelihood of given answers: multiple choice and last words.

Nothing is generated. The numbers are those of lm_eval's `multiple_choice` and `loglikelihood` tasks on the same rows.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from ..tokenization.tokenizer import begin_of_text_id, encode_batch


class Likelihood(NamedTuple):
    """The likelihood of one continuation after its context."""

    logp: float  # in nats, of all its tokens
    is_greedy: bool  # whether each of its tokens is the most likely one


@torch.no_grad()
def score_continuations(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[tuple[str, str]],
    max_length: int,
    batch_size: int = 8,
) -> list[Likelihood]:
    """Return the likelihood of each continuation of (context, continuation) texts, independent of the batch size.

    Texts that are too long lose the beginning of their context. An empty context is the beginning of a document.

    Raises:
        ValueError: a continuation without tokens, or with more than `max_length`.
    """
    rows = _encode_pairs(tokenizer, pairs, max_length)
    order = sorted(range(len(rows)), key=lambda n: -len(rows[n][0]))  # similar lengths together, the longest first
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    likelihoods: dict[int, Likelihood] = {}
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        T = len(rows[indices[0]][0]) - 1
        # Padding is on the right, after all targets, so no mask is needed.
        ids = torch.tensor([rows[n][0][:-1] + [0] * (T + 1 - len(rows[n][0])) for n in indices], device=device)
        logits = model(input_ids=ids, use_cache=False).logits
        for b, n in enumerate(indices):
            row, count = rows[n]
            end = len(row) - 1
            logp = logits[b, end - count : end].float().log_softmax(-1)  # (count, V)
            targets = torch.tensor(row[-count:], device=device)
            total = logp.double().gather(-1, targets[:, None]).sum().item()
            likelihoods[n] = Likelihood(total, bool((logp.argmax(-1) == targets).all()))
    model.train(was_training)
    return [likelihoods[n] for n in range(len(rows))]


def _encode_pairs(
    tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[str, str]], max_length: int
) -> list[tuple[list[int], int]]:
    # Return (ids, number of targets at their end). Context and continuation are encoded as one text, so the tokens are
    # those of running text. White space at the end of a context belongs to the continuation.
    texts = encode_batch(tokenizer, [context + continuation for context, continuation in pairs])
    contexts = encode_batch(tokenizer, [context.rstrip() for context, _ in pairs])
    begin = cast(int, begin_of_text_id(tokenizer))
    rows = []
    for ids, context, (_, continuation) in zip(texts, contexts, pairs, strict=True):
        count = len(ids) - len(context)
        if not 1 <= count <= max_length:
            raise ValueError(f"The answer {continuation[:60]!r} has {count} tokens; it must have 1 to {max_length}.")
        ids = ids if context else [begin, *ids]
        rows.append((ids[-(max_length + 1) :], count))
    return rows


# --- Tasks -------------------------------------------------------------------------------------------------------


def read_choices(rows: Iterable[Mapping[str, Any]]) -> list[tuple[str, list[str], int]]:
    """Read tuples from rows of {"query": str, "choices": [str, ...], "gold": int}, HellaSwag's fields in lm_eval.

    Raises:
        ValueError: a row without these fields, with fewer than two choices, an empty one, or a gold out of range.
    """
    tasks = []
    for number, row in enumerate(rows, start=1):
        query, choices, gold = (row.get(name) for name in ("query", "choices", "gold"))
        if not isinstance(query, str) or not isinstance(choices, list) or type(gold) is not int:
            raise ValueError(f"Row {number} is not {{query: text, choices: [texts], gold: number}}: {_short(row)}.")
        if len(choices) < 2 or not all(isinstance(choice, str) and choice.strip() for choice in choices):
            raise ValueError(f"Row {number} needs two choices or more, none of them empty: {choices}.")
        if not 0 <= gold < len(choices):
            raise ValueError(f"Row {number} has gold {gold}; its choices are numbered 0 to {len(choices) - 1}.")
        tasks.append((query, choices, gold))
    return tasks


def choice_metrics(tasks: Sequence[tuple[str, list[str], int]], likelihoods: Sequence[Likelihood]) -> dict[str, float]:
    """Return {"acc", "acc_norm"} from the likelihoods of all choices, in the order of `choice_pairs`.

    acc takes the most likely choice, acc_norm the most likely per character (Gao 2021, "Multiple Choice Normalization
    in LM Evaluation").
    """
    correct, correct_normed, start = 0, 0, 0
    for _, choices, gold in tasks:
        logps = np.array([likelihood.logp for likelihood in likelihoods[start : start + len(choices)]])
        start += len(choices)
        correct += int(logps.argmax()) == gold
        correct_normed += int((logps / [len(choice) for choice in choices]).argmax()) == gold
    return {"acc": correct / len(tasks), "acc_norm": correct_normed / len(tasks)}


def choice_pairs(tasks: Sequence[tuple[str, list[str], int]]) -> list[tuple[str, str]]:
    """Return each query with each of its choices, joined by a space.

    Example:
        >>> choice_pairs([("The sky is", ["blue", "green"], 0)])
        [('The sky is', ' blue'), ('The sky is', ' green')]
    """
    return [(query, f" {choice}") for query, choices, _ in tasks for choice in choices]


def last_word_pairs(rows: Iterable[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Split rows of {"text": str}, such as LAMBADA's, into (all except the last word, a space and the last word).

    Raises:
        ValueError: a row without a text of at least two words.

    Example:
        >>> last_word_pairs([{"text": "The sun shines on the sea"}])
        [('The sun shines on the', ' sea')]
    """
    pairs = []
    for number, row in enumerate(rows, start=1):
        context, space, word = (row["text"] if isinstance(row.get("text"), str) else "").rstrip().rpartition(" ")
        if not space or not context.strip():
            raise ValueError(f"Row {number} has no text of at least two words: {_short(row)}.")
        pairs.append((context, f" {word}"))
    return pairs


def last_word_metrics(likelihoods: Sequence[Likelihood]) -> dict[str, float]:
    """Return LAMBADA's metrics: "acc", the share of greedy words, and "perplexity", exp of the mean loss of a word."""
    loss = -float(np.mean([word.logp for word in likelihoods]))
    return {"acc": float(np.mean([word.is_greedy for word in likelihoods])), "perplexity": math.exp(min(loss, 700.0))}


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
