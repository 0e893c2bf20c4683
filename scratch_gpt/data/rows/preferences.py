"""Read preferences as pairs or judged answers, and make rows of token ids with targets in the last answers.

pair      prompt, chosen, rejected; or chosen and rejected conversations; or instruction (input), chosen, rejected
judged    prompt, completion, label (true if the answer is desirable); a pair gives two judged answers
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .conversations import EmptyAnswer, Messages, check_keys, read_messages, text_of
from .windows import IGNORED


PREFERENCE_FORMS = (
    "prompt, chosen and rejected (or instruction for prompt), chosen and rejected, or prompt, completion and label"
)
LABELS = {"true": True, "1": True, "false": False, "0": False}
# Return (ids, target mask) of each conversation.
Encode = Callable[[Sequence[Messages]], list[tuple[list[int], list[bool]]]]


class Judged(NamedTuple):
    """A conversation and whether its last answer is desirable."""

    messages: Messages
    preference: bool


class Pair(NamedTuple):
    """Two conversations that differ in their last answer."""

    chosen: Messages
    rejected: Messages


# --- Reading -----------------------------------------------------------------------------------------------------


def read_preferences(
    rows: Iterable[Mapping[str, Any]], judged: bool = False
) -> tuple[list[Pair] | list[Judged], dict[str, int]]:
    """Return pairs, or judged answers with `judged`, and the number of skipped rows by reason.

    Rows with an empty answer and pairs with equal answers are skipped: nothing can be learned from them.

    Raises:
        ValueError: the keys match neither form, a row is judged but pairs are needed, a label is neither true (1) nor
            false (0), the conversations of a pair differ before their last answer, or as `read_messages`; the message
            gives the number of the row, from 1. Or all rows are skipped.
    """
    items, left_out = [], {"empty": 0, "equal": 0}
    for number, row in enumerate(rows, start=1):
        try:
            item = _read_row({name: value for name, value in row.items() if value is not None}, judged)
        except EmptyAnswer:
            left_out["empty"] += 1
            continue
        except ValueError as error:
            raise ValueError(f"Row {number}: {error}") from error
        if isinstance(item, Pair) and item.chosen[-1]["content"].strip() == item.rejected[-1]["content"].strip():
            left_out["equal"] += 1
        elif isinstance(item, Pair) and judged:
            items += [Judged(item.chosen, True), Judged(item.rejected, False)]
        else:
            items.append(item)
    if not items:
        raise ValueError(
            f"No row has a preference to learn: in {left_out['equal']} the chosen answer equals the rejected one, and "
            f"{left_out['empty']} have an empty answer."
        )
    return items, left_out


def _read_row(row: Mapping[str, Any], judged: bool) -> Pair | Judged:
    check_keys(row)
    if {"chosen", "rejected"} <= set(row):
        pair = Pair(_conversation(row, "chosen"), _conversation(row, "rejected"))
        if pair.chosen[:-1] != pair.rejected[:-1]:
            raise ValueError("chosen and rejected differ before their last answer; their prompts must be equal.")
        return pair
    if not {"prompt", "completion", "label"} <= set(row):
        raise ValueError(f"a row has the keys {', '.join(row) or '(none)'}; it needs {PREFERENCE_FORMS}.")
    if not judged:
        raise ValueError("completion and label judge a single answer, which only loss_type kto can use.")
    preference = _read_label(row["label"])
    return Judged(read_messages({"prompt": row["prompt"], "completion": row["completion"]}), preference)


def _read_label(label: Any) -> bool:
    # Files without types (.csv, .tsv) give every value as text.
    value = LABELS.get(label.strip().lower()) if isinstance(label, str) else label
    if value not in (True, False):  # the numbers 1 and 0 are equal to True and False
        raise ValueError(f"the label must be true or false, or 1 or 0, not {label!r:.200}.")
    return bool(value)


def _conversation(row: Mapping[str, Any], name: str) -> Messages:
    answer = row[name]
    if "prompt" in row and not (isinstance(answer, (list, tuple)) and _begins_with(answer, row["prompt"])):
        return read_messages({"prompt": row["prompt"], "completion": answer})
    if "instruction" in row:
        return read_messages({"instruction": row["instruction"], "input": row.get("input"), "output": answer})
    if isinstance(answer, str):
        raise ValueError(f"{name} is a text without a prompt; a row needs {PREFERENCE_FORMS}.")
    return read_messages({"messages": answer})


def _begins_with(answer: Sequence[Mapping[str, Any]], prompt: Any) -> bool:
    # Return whether a conversation already begins with the prompt that the prompt column repeats, as text or messages.
    if isinstance(prompt, str):
        return len(answer) > 1
    return list(answer[: len(prompt)]) == list(prompt)


def prompt_of(item: Pair | Judged) -> str:
    """Return everything before the answers as one text, used to keep rows with the same prompt together."""
    return text_of(item[0][:-1])


# --- Rows --------------------------------------------------------------------------------------------------------


class PreferenceRows(Sequence):
    """Rows of {"answers": two of {"input_ids", "shift_labels"}, (n,) each, n <= max_length, ...}.

    The two answers of a pair are chosen and rejected. For a judged answer they are the answer and, with the same
    prompt, an answer to another prompt (chosen by the seed); the row then also has "preference". Only the last answer
    has targets. Long rows are cut at their end, which keeps the start of the answer. A row is dropped if an answer has
    no target left, or if both answers are equal. When `reference_logps` (rows, 2) is set, rows also have
    "reference_logps" (2,).

    Args:
        encode: return (ids, target mask) of each conversation.

    Raises:
        ValueError: no row is left, or all judged answers have the same prompt.
    """

    def __init__(self, items: Sequence[Pair] | Sequence[Judged], encode: Encode, max_length: int, seed: int = 0):
        preferences = [item.preference for item in items if isinstance(item, Judged)]
        rejected = [item.rejected for item in items if isinstance(item, Pair)]
        judged = bool(preferences)
        firsts = [item[0] for item in items]
        seconds = _answers_to_others(firsts, seed) if judged else rejected
        encoded = encode([*firsts, *seconds])
        rows = [_row(ids, target_mask, max_length) for ids, target_mask in encoded]
        pairs = [*zip(rows[: len(items)], rows[len(items) :], strict=True)]
        has_targets = [all((row["shift_labels"] != IGNORED).any() for row in pair) for pair in pairs]
        equal = [
            not judged and np.array_equal(first["shift_labels"], second["shift_labels"]) for first, second in pairs
        ]
        row_numbers = [k for k in range(len(pairs)) if has_targets[k] and not equal[k]]
        if not row_numbers:
            raise ValueError(
                f"None of {len(pairs)} rows has two different answers within {max_length} tokens. Give a larger "
                "max_length."
            )
        self.pairs = [pairs[k] for k in row_numbers]
        self.preferences = [preferences[k] for k in row_numbers] if judged else None
        self.left_out = {"dropped": len(pairs) - sum(has_targets), "equal": sum(has_targets) - len(row_numbers)}
        sizes = [len(ids) for ids, _ in encoded]
        self.cut = sum(max(sizes[k], sizes[len(items) + k]) > max_length + 1 for k in row_numbers)
        self.lengths = [max(len(row["input_ids"]) for row in pair) for pair in self.pairs]
        # Count only the targets of learned answers, not those of answers to other prompts.
        learned = [pair[:1] if judged else pair for pair in self.pairs]
        self.targets = sum(int((row["shift_labels"] != IGNORED).sum()) for pair in learned for row in pair)
        self.max_length = max_length
        self.reference_logps: np.ndarray | None = None

    def facts(self) -> dict[str, Any]:
        """Return the manifest's entry for these rows, with a hash of ids, labels and preferences."""
        digest = hashlib.sha256(repr(self.preferences).encode())
        for row in (row for pair in self.pairs for row in pair):
            digest.update(len(row["input_ids"]).to_bytes(8, "little"))
            digest.update(row["input_ids"].astype("<i8").tobytes() + row["shift_labels"].astype("<i8").tobytes())
        desirable = {} if self.preferences is None else {"desirable": sum(self.preferences)}
        tokens = sum(len(row["input_ids"]) for pair in self.pairs for row in pair)
        counts = {"tokens": tokens, "asked": self.targets, "cut": self.cut, **self.left_out}
        return {"rows": len(self), **desirable, **counts, "sha256": digest.hexdigest()}

    def prompts(self, count: int, room: int) -> list[list[int]]:
        """Return the first `count` prompts that leave at least `room` tokens for an answer."""
        prompts = [row["input_ids"][: 1 + int((row["shift_labels"] != IGNORED).argmax())] for row, _ in self.pairs]
        return [ids.tolist() for ids in prompts if len(ids) + room <= self.max_length][:count]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, k: int) -> dict[str, Any]:
        row: dict[str, Any] = {"answers": self.pairs[k]}
        if self.preferences is not None:
            row["preference"] = self.preferences[k]
        if self.reference_logps is not None:
            row["reference_logps"] = self.reference_logps[k]
        return row


def _row(ids: list[int], target_mask: list[bool], max_length: int) -> dict[str, np.ndarray]:
    # Keep only the last run of targets: earlier answers are part of the prompt.
    is_target = np.array(target_mask)
    end = 1 + int(np.flatnonzero(is_target)[-1])
    start = 1 + int(np.flatnonzero(~is_target[:end])[-1])
    tokens = np.array(ids[: max_length + 1], dtype=np.int64)
    places = np.arange(1, len(tokens))
    return {
        "input_ids": tokens[:-1],
        "shift_labels": np.where((places >= start) & (places < end), tokens[1:], IGNORED),
    }


def _answers_to_others(conversations: Sequence[Messages], seed: int) -> list[Messages]:
    # Pair each prompt with an answer to another prompt. Rows are shuffled and grouped in blocks by prompt. A shift by
    # the size of the largest block takes every row to another block, and uses each answer once. If one prompt has more
    # than half of the rows, its rows take the answers of all other rows in turn.
    blocks: dict[str, list[int]] = {}
    for k in np.random.default_rng(seed).permutation(len(conversations)).tolist():
        blocks.setdefault(text_of(conversations[k][:-1]), []).append(k)
    if len(blocks) < 2:
        raise ValueError(
            f"All {len(conversations)} rows have the same prompt, but each needs an answer to another prompt. Give at "
            "least two prompts in each split."
        )
    order = [k for block in blocks.values() for k in block]
    largest, n, end = max(map(len, blocks.values())), len(order), 0
    mismatched: list[Messages] = [[]] * n
    for block in blocks.values():
        end += len(block)
        for place, k in enumerate(block):
            donor = order[(end + (place + largest - len(block)) % (n - len(block))) % n]
            mismatched[k] = [*conversations[k][:-1], conversations[donor][-1]]
    return mismatched


__all__ = ["Judged", "Pair", "PreferenceRows", "prompt_of", "read_preferences"]
