"""Instructions and conversations -> token ids and which of them are targets -> rows.

    messages     user "Well?"                                        assistant "Well."
    ids          <|im_start|> user \\n We ll ? <|im_end|> \\n <|im_start|> assistant \\n  We ll . <|im_end|>  \\n
    targets      -            -    -  -  -  -  -          -  -            -         -   *  *  * *           -

The targets are known from lengths: each answer is encoded separately from the text before it. A special token's
spelling inside a message is plain text; only the template writes special tokens.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, pairwise
from typing import Any, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from ...tokenization.chat_templates import INPUT, choose_format, render, template_of
from ...tokenization.tokenizer import decode, encode_batch
from ...utils.foreign import shown
from ..columns import MESSAGE_KEYS, ROW_KEYS, SWITCHES
from .packing import best_fit
from .windows import IGNORED


TRAIN_ON = ("completion", "prompt+completion")
CONVERSATION_FORMS = "instruction and output (and input), messages, or prompt and completion"
GUARDS = range(0xE000, 0xF900)  # private characters; one that no message has breaks up spellings of special tokens

Messages = list[dict[str, str]]


# --- Rows of a data set -> messages ------------------------------------------------------------------------------


class EmptyAnswer(ValueError):
    """A row whose answer says nothing."""


def read_messages(row: Mapping[str, Any]) -> Messages:
    """Return a row as [{"role": "system", "user" or "assistant", "content": str}, ...], the answer last.

    Alpaca form: `instruction`, `output` and perhaps `input`, which follows the instruction under "### Input:".
    Messages form: `messages`. Prompt and completion: a string each, or a list of messages each. A key without a value
    is none, and so is a system message of white space.

    Raises:
        EmptyAnswer: an answer of white space.
        ValueError: keys of none of these forms, an empty question, roles in another order than a system message (or
            none), then user and assistant in turn; a key of the row or of a message that changes what is to be learned
            and cannot be (`check_keys`).

    Example:
        >>> for message in read_messages({"instruction": "Add.", "input": "2, 3", "output": "5"}):
        ...     print(message)
        {'role': 'user', 'content': 'Add.\\n\\n### Input:\\n2, 3'}
        {'role': 'assistant', 'content': '5'}
    """
    check_keys(row)
    fields = {name: value for name, value in row.items() if value is not None}
    if "messages" in fields:
        messages = fields["messages"]
    elif "prompt" in fields and "completion" in fields:
        messages = _as_messages(fields["prompt"], "user") + _as_messages(fields["completion"], "assistant")
    elif "instruction" in fields and "output" in fields:
        question = _text(fields["instruction"], "instruction").strip()
        if extra_input := _text(fields.get("input", ""), "input").strip():
            question += INPUT + extra_input
        messages = _as_messages(question, "user") + _as_messages(_text(fields["output"], "output"), "assistant")
    else:
        raise ValueError(f"a row has the keys {', '.join(fields) or '(none)'}; needed are {CONVERSATION_FORMS}.")
    messages = check_messages(messages)
    if messages[-1]["role"] != "assistant":
        raise ValueError(f"a row's last message is the {messages[-1]['role']}'s; it has to be the assistant's.")
    return messages


def check_keys(row: Mapping[str, Any]) -> None:
    """Raise a ValueError if a row has a value under one of ROW_KEYS; other keys (an id, a source) are not read."""
    if unsupported := [name for name in ROW_KEYS if not _is_empty(row.get(name))]:
        raise ValueError(
            f"the row has {', '.join(unsupported)}, which cannot be learned. Put it into the text of the messages, or "
            "leave the row or the key out."
        )


def _check_message_keys(message: Mapping[str, Any]) -> None:
    role = message.get("role")
    unsupported = [name for name in MESSAGE_KEYS if not _is_empty(message.get(name))]
    if role == "assistant":
        unsupported += [name for name in SWITCHES if not _is_learned(message.get(name))]
    if unsupported:
        raise ValueError(
            f"the {role}'s message has {', '.join(unsupported)}, which cannot be learned: only its role and "
            "content are. Put it into the content, or leave the row or the key out."
        )


def _is_learned(weight: Any) -> bool:
    # Every answer is learned, so that a weight of 1 changes nothing.
    return weight is None or str(weight).lower() in ("1", "1.0", "true")


def _is_empty(value: Any) -> bool:
    # Arrow gives every row each key of any row, and fills a struct's fields with None. JSON stands for its value.
    if isinstance(value, str):
        try:
            inner = json.loads(value)
        except ValueError:
            return not value.strip()
        return not inner.strip() if isinstance(inner, str) else _is_empty(inner)
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return value is None or value is False
    return all(map(_is_empty, value))


def check_messages(messages: Any) -> Messages:
    """Return role and content of the messages, without a blank system message; errors as in `read_messages`."""
    if not isinstance(messages, (list, tuple)) or not messages:
        raise ValueError(f"messages are {messages!r:.200}; give a list of at least one.")
    checked: Messages = []
    for message in messages:
        if isinstance(message, Mapping):
            _check_message_keys(message)
        if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
            raise ValueError(f"a message is {message!r:.200}; it has to have a role and a content.")
        role, content = message["role"], _text(message["content"], "a message's content")
        if role == "system" and not content.strip():
            continue
        before = checked[-1]["role"] if checked else None
        allowed = {None: ("system", "user"), "system": ("user",), "user": ("assistant",), "assistant": ("user",)}
        if role not in allowed[before]:
            after = f"after the {before}'s message" if before else "first"
            raise ValueError(f"the role {role!r} comes {after}; there it has to be {' or '.join(allowed[before])}.")
        if not content.strip():
            kind = EmptyAnswer if role == "assistant" else ValueError
            raise kind(f"the {role}'s message is empty.")
        checked.append({"role": role, "content": content})
    if not checked:
        raise ValueError("messages hold nothing but an empty system message; give at least one of the user's.")
    return checked


def read_conversations(rows: Iterable[Mapping[str, Any]]) -> tuple[list[Messages], list[int]]:
    """Return the conversations of rows, and the numbers of the rows (from 1) left out for an empty answer.

    Raises:
        ValueError: as `read_messages`, with the row's number; or nothing is left.
    """
    conversations, empty = [], []
    for number, row in enumerate(rows, start=1):
        try:
            conversations.append(read_messages(row))
        except EmptyAnswer:
            empty.append(number)
        except ValueError as error:
            raise ValueError(f"Row {number}: {error}") from error
    if not conversations:
        raise ValueError(f"No row has an answer: {len(empty)} rows, all of them empty.")
    return conversations, empty


def _as_messages(value: Any, role: str) -> Messages:
    return list(value) if isinstance(value, (list, tuple)) else [{"role": role, "content": value}]


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name} is {value!r:.200}; it has to be a text.")
    return value


def text_of(messages: Messages) -> str:
    """Return all contents as one text to compare and group rows by: without roles, white space collapsed."""
    return "\n\n".join(" ".join(message["content"].split()) for message in messages)


def transcript(messages: Messages) -> str:
    """Return the messages as one text to read: a single user message unchanged, several each below its role."""
    if [message["role"] for message in messages] == ["user"]:
        return messages[0]["content"]
    return "\n\n".join(f"[{message['role']}]\n{message['content']}" for message in messages)


def of_both(messages: Messages) -> Messages:
    """Return the messages without the system message, which many rows share."""
    return [message for message in messages if message["role"] != "system"]


def describe_answer(messages: Messages, before: str | None, after: str | None) -> dict[str, Any]:
    """Return an answered row as {"instruction", "input", "reference", "before", "after"}, to be read by a person.

    For a longer conversation, `history` has the messages before the last question.
    """
    instruction, _, extra_input = messages[-2]["content"].partition(INPUT)
    history = {"history": messages[:-2]} if messages[:-2] else {}
    answers = {"reference": messages[-1]["content"], "before": before, "after": after}
    return {**history, "instruction": instruction, "input": extra_input, **answers}


# --- Messages -> ids ---------------------------------------------------------------------------------------------


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, prompt_format: str | None = None
) -> list[int]:
    """Return the ids of everything before the answer. A last message of the assistant is left out.

    `encode_messages` of the same messages with an answer begins with these ids. Arguments and errors as there.
    """
    messages = check_messages(messages)
    messages = messages[:-1] if messages[-1]["role"] == "assistant" else messages
    (pieces,) = _split(tokenizer, [messages], prompt_format, is_prompt=True)
    return _encode(tokenizer, [pieces])[0][0]


def encode_messages(
    tokenizer: PreTrainedTokenizerBase,
    messages: Messages,
    prompt_format: str | None = None,
    train_on: str = "completion",
) -> tuple[list[int], list[bool]]:
    """Return (ids, target mask) of messages: whether each token is to be learned; both (n,).

    Args:
        prompt_format: as `choose_format` has it: None is what the tokenizer keeps, or `alpaca`.
        train_on: `completion` has every token of every answer as a target, and its end token; `prompt+completion` all.

    Raises:
        ValueError: a format that is not the one that the tokenizer keeps, a template without generation markers, or
            messages that `check_messages` refuses.
    """
    return encode_conversations(tokenizer, [check_messages(messages)], prompt_format, train_on)[0]


def encode_conversations(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Messages],
    prompt_format: str | None = None,
    train_on: str = "completion",
) -> list[tuple[list[int], list[bool]]]:
    """Encode many conversations at once, which is faster than `encode_messages` for each."""
    if train_on not in TRAIN_ON:
        raise ValueError(f"train_on is {train_on!r}; it is {' or '.join(TRAIN_ON)}.")
    encoded = _encode(tokenizer, _split(tokenizer, conversations, prompt_format))
    if any(not any(target_mask) for _, target_mask in encoded):
        raise ValueError("The chat template has no generation markers: nobody knows what the assistant says in it.")
    return encoded if train_on == "completion" else [(ids, [True] * len(ids)) for ids, _ in encoded]


class _Piece(NamedTuple):
    text: str
    is_special: bool  # a special token, written by the template
    is_target: bool


def _split(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Messages],
    prompt_format: str | None,
    is_prompt: bool = False,
) -> list[list[_Piece]]:
    # Each conversation as the template renders it, cut at its special tokens and at the borders of its answers.
    template = template_of(tokenizer, prompt_format)
    longest_first = sorted(tokenizer.all_special_tokens, key=len, reverse=True)
    special = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")
    pieces = []
    for messages in conversations:
        guarded, guard = _guard(messages, special)
        text, spans = render(tokenizer, template, guarded, add_generation_prompt=is_prompt)
        borders = [0, *chain.from_iterable(spans), len(text)]
        pieces.append(
            [
                _Piece(piece.replace(guard, ""), k % 2 == 1, n % 2 == 1)
                for n, (start, end) in enumerate(pairwise(borders))
                for k, piece in enumerate(special.split(text[start:end]))
                if piece
            ]
        )
    return pieces


def _guard(messages: Messages, special: re.Pattern) -> tuple[Messages, str]:
    # Break up the spellings of special tokens by a character that no message has.
    joined = "".join(message["content"] for message in messages)
    guard = next(mark for mark in map(chr, GUARDS) if mark not in joined)
    contents = [special.sub(lambda match: guard.join(match[0]), message["content"]) for message in messages]
    return [{**message, "content": content} for message, content in zip(messages, contents, strict=True)], guard


def _encode(
    tokenizer: PreTrainedTokenizerBase, conversations: list[list[_Piece]]
) -> list[tuple[list[int], list[bool]]]:
    texts = [piece.text for pieces in conversations for piece in pieces if not piece.is_special]
    plain = iter(encode_batch(tokenizer, texts))
    encoded = []
    for pieces in conversations:
        ids, target_mask = [], []
        for piece in pieces:
            piece_ids = [tokenizer.convert_tokens_to_ids(piece.text)] if piece.is_special else next(plain)
            ids += piece_ids
            target_mask += [piece.is_target] * len(piece_ids)
        encoded.append((ids, target_mask))
    return encoded


# --- Ids -> rows -------------------------------------------------------------------------------------------------


class PromptRows(Sequence):
    """`rows[k]` -> {"input_ids", "shift_labels"} and, packed, "position_ids", each (n,), n <= max_length.

    The last token of a conversation is only a target, so that one of n tokens takes n - 1 positions. A longer one is
    cut at its end, so that the answer's start stays; one that then has no target is dropped.

    Args:
        encoded: (ids, target mask) of each conversation, from `encode_conversations`.
        pack: several conversations a row, best-fit, with positions that begin again, so that none sees another.

    Raises:
        ValueError: no row has a target.
    """

    def __init__(self, encoded: Sequence[tuple[list[int], list[bool]]], max_length: int, pack: bool = False):
        if max_length < 1:
            raise ValueError(f"max_length is {max_length}; it has to be at least 1.")
        pairs = [_row(ids, target_mask, max_length) for ids, target_mask in encoded]
        self.kept = [k for k, (_, labels) in enumerate(pairs) if (labels != IGNORED).any()]  # conversations
        if not self.kept:
            raise ValueError(
                f"None of {len(pairs)} rows asks anything within {max_length} tokens: each prompt fills them. Give a "
                "larger max_length."
            )
        self.pairs = [pairs[k] for k in self.kept]
        self.cut = sum(len(encoded[k][0]) > max_length + 1 for k in self.kept)  # answers whose end is not learned
        self.dropped = len(pairs) - len(self.kept)
        sizes = [len(ids) for ids, _ in self.pairs]
        self.pack = pack
        self.groups = best_fit(sizes, max_length) if pack else [[k] for k in range(len(sizes))]
        self.lengths = [sum(sizes[k] for k in group) for group in self.groups]
        self.targets = sum(int((labels != IGNORED).sum()) for _, labels in self.pairs)
        self.asked_per_row = self.targets / len(self)

    def facts(self) -> dict[str, Any]:
        """Return the manifest's entry for these rows; the hash is of ids and labels."""
        digest = hashlib.sha256()
        for ids, labels in self.pairs:
            digest.update(len(ids).to_bytes(8, "little"))
            digest.update(ids.astype("<i8").tobytes() + labels.astype("<i8").tobytes())
        return {
            "conversations": len(self.pairs),
            "rows": len(self),
            "tokens": sum(self.lengths),
            "asked": self.targets,
            "cut": self.cut,
            "dropped": self.dropped,
            "sha256": digest.hexdigest(),
        }

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, k: int) -> dict[str, np.ndarray]:
        pairs = [self.pairs[n] for n in self.groups[k]]
        row = {
            "input_ids": np.concatenate([ids for ids, _ in pairs]),
            "shift_labels": np.concatenate([labels for _, labels in pairs]),
        }
        if self.pack:
            row["position_ids"] = np.concatenate([np.arange(len(ids)) for ids, _ in pairs])
        return row


def _row(ids: list[int], target_mask: list[bool], max_length: int) -> tuple[np.ndarray, np.ndarray]:
    tokens = np.array(ids[: max_length + 1], dtype=np.int64)
    labels = np.where(target_mask[1 : max_length + 1], tokens[1:], IGNORED)
    return tokens[:-1], labels


def count_asked_bytes(tokenizer: PreTrainedTokenizerBase, rows: PromptRows) -> int:
    """Count the UTF-8 bytes of the rows' targets, special tokens not counted."""
    target_ids = [labels[labels != IGNORED].tolist() for _, labels in rows.pairs]
    options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    return sum(len(text.encode()) for text in tokenizer.batch_decode(target_ids, **options))


def show_asked(tokenizer: PreTrainedTokenizerBase, ids: list[int], target_mask: list[bool], color: bool) -> str:
    """Return a row as text with its targets in green, or without `color` between [[ and ]]."""
    begin, end = ("\x1b[32m", "\x1b[0m") if color else ("[[", "]]")
    borders = [0, *(k for k in range(1, len(ids)) if target_mask[k] != target_mask[k - 1]), len(ids)]
    parts = []
    for start, stop in pairwise(borders):
        text = shown(decode(tokenizer, ids[start:stop]))
        parts.append(f"{begin}{text}{end}" if target_mask[start] else text)
    return "".join(parts)


__all__ = [
    "TRAIN_ON",
    "EmptyAnswer",
    "Messages",
    "PromptRows",
    "check_keys",
    "check_messages",
    "choose_format",
    "count_asked_bytes",
    "describe_answer",
    "encode_conversations",
    "encode_messages",
    "encode_prompt",
    "of_both",
    "read_conversations",
    "read_messages",
    "show_asked",
    "text_of",
    "transcript",
]
