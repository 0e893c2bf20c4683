"""The questions of a test split -> a model's answers to them, scored; the first and the last ones are kept."""

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from ..data.rows.conversations import Messages, describe_answer, encode_prompt
from ..generation.generate import generate_answers
from ..utils.files import write_text
from ..utils.foreign import read_json
from .answers import answer_metrics


class Examination:
    """Conversations whose last answers are the references; every time it is taken counts."""

    def __init__(
        self,
        conversations: Sequence[Messages],
        tokenizer: PreTrainedTokenizerBase,
        *,
        shared: Collection[int] = (),
        max_new_tokens: int = 128,
    ):
        """`shared`: numbers of the conversations that training has seen something of; scored without them as well."""
        self.conversations, self.tokenizer, self.max_new_tokens = conversations, tokenizer, max_new_tokens
        self.prompts = [encode_prompt(tokenizer, each) for each in conversations]
        self.references = [each[-1]["content"] for each in conversations]
        self.unseen = [k for k in range(len(conversations)) if k not in shared]
        self.first: list[str] | None = None
        self.last: list[str] | None = None

    def take(self, model: nn.Module) -> tuple[dict[str, float], dict[str, float]]:
        """Greedy answers: their metrics, and those without what training has seen (empty where that is nothing)."""
        options = {"temperature": 0, "max_new_tokens": self.max_new_tokens}
        answers = self.last = generate_answers(model, self.tokenizer, self.prompts, **options)
        self.first = self.first or answers
        without = {}
        if 0 < len(self.unseen) < len(answers):
            without = answer_metrics([answers[k] for k in self.unseen], [self.references[k] for k in self.unseen])
        return answer_metrics(answers, self.references), without

    def recall(self, file: Path) -> None:
        """Take the first answers from what `write` has left, where it has: a resumed run does not give them again."""
        try:
            first = [each["before"] for each in read_json(file, list)] if file.exists() else []
        except (ValueError, KeyError, TypeError):  # not as it was written
            return
        if len(first) == len(self.conversations):
            self.first = first

    def write(self, file: Path, *, is_over: bool = True) -> None:
        """Question, reference, first and (where `is_over`) last answer of each conversation, as JSON.

        Taken once, at the end, there is no first answer.
        """
        nothing: list[Any] = [None] * len(self.conversations)
        first = nothing if self.first is None or (is_over and self.first is self.last) else self.first
        columns = self.conversations, first, (is_over and self.last) or nothing
        described = [describe_answer(*each) for each in zip(*columns, strict=True)]
        write_text(file, json.dumps(described, indent=2) + "\n")


__all__ = ["Examination"]
