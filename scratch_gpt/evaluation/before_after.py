"""Score a model's answers to the questions of a test split; keep those of the first and the last evaluation."""

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
    """Conversations with their last answers as references. Keeps the answers of the first and the last evaluation."""

    def __init__(
        self,
        conversations: Sequence[Messages],
        tokenizer: PreTrainedTokenizerBase,
        *,
        shared: Collection[int] = (),
        max_new_tokens: int = 128,
    ):
        """`shared`: indices of conversations that overlap the training data; `take` scores the others separately."""
        self.conversations, self.tokenizer, self.max_new_tokens = conversations, tokenizer, max_new_tokens
        self.prompts = [encode_prompt(tokenizer, conversation) for conversation in conversations]
        self.references = [conversation[-1]["content"] for conversation in conversations]
        self.unseen = [k for k in range(len(conversations)) if k not in shared]
        self.first: list[str] | None = None
        self.last: list[str] | None = None

    def take(self, model: nn.Module) -> tuple[dict[str, float], dict[str, float]]:
        """Answer greedily; return the metrics, and those of unseen conversations (empty if all or none are unseen)."""
        answers = generate_answers(
            model, self.tokenizer, self.prompts, temperature=0, max_new_tokens=self.max_new_tokens
        )
        self.last = answers
        self.first = self.first or answers
        unseen_metrics = {}
        if 0 < len(self.unseen) < len(answers):
            unseen = [(answers[k], self.references[k]) for k in self.unseen]
            unseen_metrics = answer_metrics(*zip(*unseen, strict=True))
        return answer_metrics(answers, self.references), unseen_metrics

    def recall(self, file: Path) -> None:
        """Read the first answers from a file of `write` if it exists, so that a resumed run need not generate them."""
        try:
            first = [row["before"] for row in read_json(file, list)] if file.exists() else []
        except (ValueError, KeyError, TypeError):  # damaged
            return
        if len(first) == len(self.conversations):
            self.first = first

    def write(self, file: Path, *, is_over: bool = True) -> None:
        """Write question, reference, first and (if `is_over`) last answer of each conversation as JSON.

        With a single evaluation, at the end of the run, the first answer is omitted.
        """
        empty: list[Any] = [None] * len(self.conversations)
        first = empty if self.first is None or (is_over and self.first is self.last) else self.first
        last = (is_over and self.last) or empty
        rows = [describe_answer(*row) for row in zip(self.conversations, first, last, strict=True)]
        write_text(file, json.dumps(rows, indent=2) + "\n")


__all__ = ["Examination"]
