"""Encode instructions and conversations as token ids with a target mask, and make rows of them.

    messages     user "Well?"                                        assistant "Well."
    ids          <|im_start|> user \\n We ll ? <|im_end|> \\n <|im_start|> assistant \\n  We ll . <|im_end|>  \\n
    targets      -            -    -  -  -  -  -          -  -            -         -   *  *  * *           -

Each answer is encoded separately from the text before it, so the positions of the targets follow from lengths. The
spelling of a special token inside a message is plain text; only the template adds special tokens.
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
from ...utils.wording import plural
from ..columns import MESSAGE_KEYS, ROW_KEYS, SWITCHES
from .packing import best_fit
from .windows import IGNORED


TRAIN_ON = ("completion", "prompt+completion")
CONVERSATION_FORMS = "instruction and output (and input), messages, or prompt and completion"
GUARDS = range(0xE000, 0xF900)  # private use characters; an unused one breaks up spellings of special tokens

Messages = list[dict[str, str]]


# --- Reading -----------------------------------------------------------------------------------------------------


class EmptyAnswer(ValueError):
    """Raised for a row with an empty answer."""


def read_messages(row: Mapping[str, Any]) -> Messages:
    """Return a row as [{"role": "system", "user" or "assistant", "content": str}, ...], the answer last.

    Alpaca form: `instruction`, `output` and optionally `input`, which follows the instruction under "### Input:".
    Messages form: `messages`. Prompt and completion form: each is a string or a list of messages. Keys without a value
    and empty system messages are ignored.

    Raises:
        EmptyAnswer: the answer is empty or white space.
        ValueError: the keys match none of these forms; a question is empty; the roles are not an optional system
            message followed by user and assistant in turn; or the row or a message has a key that changes the expected
            answer and is not supported (`check_keys`).

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
        raise ValueError(f"a row has the keys {', '.join(fields) or '(none)'}; it needs {CONVERSATION_FORMS}.")
    messages = check_messages(messages)
    if messages[-1]["role"] != "assistant":
        raise ValueError(f"a row's last message is the {messages[-1]['role']}'s; it must be the assistant's.")
    return messages


def check_keys(row: Mapping[str, Any]) -> None:
    """Raise a ValueError if a row has a value under one of ROW_KEYS; other keys (such as ids) are ignored."""
    if unsupported := [name for name in ROW_KEYS if not _is_empty(row.get(name))]:
        raise ValueError(
            f"the row has {', '.join(unsupported)}, which cannot be learned. Put it into the text of the messages, or "
            "remove the row or the key."
        )


def _check_message_keys(message: Mapping[str, Any]) -> None:
    role = message.get("role")
    unsupported = [name for name in MESSAGE_KEYS if not _is_empty(message.get(name))]
    if role == "assistant":
        unsupported += [name for name in SWITCHES if not _is_learned(message.get(name))]
    if unsupported:
        raise ValueError(
            f"the {role}'s message has {', '.join(unsupported)}, which cannot be learned: only its role and "
            "content are. Put it into the content, or remove the row or the key."
        )


def _is_learned(weight: Any) -> bool:
    # Every answer is learned, so a weight of 1 has no effect.
    return weight is None or str(weight).lower() in ("1", "1.0", "true")


def _is_empty(value: Any) -> bool:
    # Arrow gives every row the keys of all rows and fills missing fields with None. JSON text is parsed first.
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
    """Return the role and content of each message, without empty system messages; errors as in `read_messages`."""
    if not isinstance(messages, (list, tuple)) or not messages:
        raise ValueError(f"messages must be a list with at least one message, not {messages!r:.200}.")
    checked: Messages = []
    for message in messages:
        if isinstance(message, Mapping):
            _check_message_keys(message)
        if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
            raise ValueError(f"a message is {message!r:.200}; it must have a role and a content.")
        role, content = message["role"], _text(message["content"], "a message's content")
        if role == "system" and not content.strip():
            continue
        before = checked[-1]["role"] if checked else None
        allowed = {None: ("system", "user"), "system": ("user",), "user": ("assistant",), "assistant": ("user",)}
        if role not in allowed[before]:
            after = f"after the {before}'s message" if before else "first"
            raise ValueError(f"the role {role!r} comes {after}; it must be {' or '.join(allowed[before])} there.")
        if not content.strip():
            kind = EmptyAnswer if role == "assistant" else ValueError
            raise kind(f"the {role}'s message is empty.")
        checked.append({"role": role, "content": content})
    if not checked:
        raise ValueError("messages have only an empty system message; add at least one message of the user.")
    return checked


def read_conversations(rows: Iterable[Mapping[str, Any]]) -> tuple[list[Messages], list[int]]:
    """Return the conversations of rows, and the numbers (from 1) of rows that were skipped because of an empty answer.

    Raises:
        ValueError: as `read_messages`, with the number of the row; or all answers are empty.
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
        raise ValueError(f"No row has an answer: {plural(len(empty), 'row')} with an empty answer.")
    return conversations, empty


def _as_messages(value: Any, role: str) -> Messages:
    return list(value) if isinstance(value, (list, tuple)) else [{"role": role, "content": value}]


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name} must be text, not {value!r:.200}.")
    return value


def text_of(messages: Messages) -> str:
    """Return all contents as one text for comparing and grouping rows: without roles, white space collapsed."""
    return "\n\n".join(" ".join(message["content"].split()) for message in messages)


def transcript(messages: Messages) -> str:
    """Return the messages as readable text: a single user message unchanged, else each message below its role."""
    if [message["role"] for message in messages] == ["user"]:
        return messages[0]["content"]
    return "\n\n".join(f"[{message['role']}]\n{message['content']}" for message in messages)


def of_both(messages: Messages) -> Messages:
    """Return the messages without the system message, which many rows share."""
    return [message for message in messages if message["role"] != "system"]


def describe_answer(messages: Messages, before: str | None, after: str | None) -> dict[str, Any]:
    """Return an answered row as {"instruction", "input", "reference", "before", "after"} for people to read.

    For a longer conversation, `history` contains the messages before the last question.
    """
    instruction, _, extra_input = messages[-2]["content"].partition(INPUT)
    history = {"history": messages[:-2]} if messages[:-2] else {}
    answers = {"reference": messages[-1]["content"], "before": before, "after": after}
    return {**history, "instruction": instruction, "input": extra_input, **answers}


# --- Encoding ----------------------------------------------------------------------------------------------------


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, prompt_format: str | None = None
) -> list[int]:
    """Return the ids of everything before the answer, ignoring a final message of the assistant.

    The ids of `encode_messages` for the same messages begin with these. Arguments and errors are the same.
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
    """Return the ids of messages and a mask of the tokens that are targets, both (n,).

    Args:
        prompt_format: as in `choose_format`; by default the tokenizer's own format, or `alpaca` if it has none.
        train_on: with `completion` the tokens of every answer and its end token are targets, with
            `prompt+completion` all tokens.

    Raises:
        ValueError: the format differs from the tokenizer's, the template has no generation markers, or the messages
            are invalid (`check_messages`).
    """
    return encode_conversations(tokenizer, [check_messages(messages)], prompt_format, train_on)[0]


def encode_conversations(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Messages],
    prompt_format: str | None = None,
    train_on: str = "completion",
) -> list[tuple[list[int], list[bool]]]:
    """Encode many conversations at once; this is faster than calling `encode_messages` for each."""
    if train_on not in TRAIN_ON:
        raise ValueError(f"train_on must be {' or '.join(TRAIN_ON)}, not {train_on!r}.")
    encoded = _encode(tokenizer, _split(tokenizer, conversations, prompt_format))
    if any(not any(target_mask) for _, target_mask in encoded):
        raise ValueError(
            "The chat template has no generation markers, so the assistant's tokens cannot be located. Add "
            "{% generation %} and {% endgeneration %} around its messages."
        )
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
    # Render each conversation with the template, and split it at special tokens and at the borders of answers.
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
    # Break up the spellings of special tokens with a character that occurs in no message.
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


# --- Rows --------------------------------------------------------------------------------------------------------


class PromptRows(Sequence):
    """Rows of {"input_ids", "shift_labels"}, and "position_ids" if packed, each (n,), n <= max_length.

    The last token of a conversation is only a target, so a conversation of n tokens takes n - 1 positions. A longer
    one is cut at its end, which keeps the start of the answer. A conversation without a target is then dropped.

    Args:
        encoded: (ids, target mask) of each conversation, from `encode_conversations`.
        pack: put several conversations in a row (best-fit). Positions restart at 0 for each, so that they do not see
            each other.

    Raises:
        ValueError: max_length is below 1, or no row has a target.
    """

    def __init__(self, encoded: Sequence[tuple[list[int], list[bool]]], max_length: int, pack: bool = False):
        if max_length < 1:
            raise ValueError(f"max_length must be at least 1, not {max_length}.")
        pairs = [_row(ids, target_mask, max_length) for ids, target_mask in encoded]
        self.kept = [k for k, (_, labels) in enumerate(pairs) if (labels != IGNORED).any()]  # conversation numbers
        if not self.kept:
            raise ValueError(
                f"None of {len(pairs)} rows has a target within {max_length} tokens: the prompts are too long. Give a "
                "larger max_length."
            )
        self.pairs = [pairs[k] for k in self.kept]
        self.cut = sum(len(encoded[k][0]) > max_length + 1 for k in self.kept)  # conversations that were cut
        self.dropped = len(pairs) - len(self.kept)
        sizes = [len(ids) for ids, _ in self.pairs]
        self.pack = pack
        self.groups = best_fit(sizes, max_length) if pack else [[k] for k in range(len(sizes))]
        self.lengths = [sum(sizes[k] for k in group) for group in self.groups]
        self.targets = sum(int((labels != IGNORED).sum()) for _, labels in self.pairs)
        self.asked_per_row = self.targets / len(self)

    def facts(self) -> dict[str, Any]:
        """Return the manifest's entry for these rows, with a hash of ids and labels."""
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
    """Count the UTF-8 bytes of the rows' targets, without special tokens."""
    target_ids = [labels[labels != IGNORED].tolist() for _, labels in rows.pairs]
    options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    return sum(len(text.encode()) for text in tokenizer.batch_decode(target_ids, **options))


def show_asked(tokenizer: PreTrainedTokenizerBase, ids: list[int], target_mask: list[bool], color: bool) -> str:
    """Return a row as text with its targets in green, or in [[ and ]] without `color`."""
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
