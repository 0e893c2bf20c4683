"""List the columns that each task reads; all other columns are ignored."""

from collections.abc import Iterable
from itertools import chain
from typing import NamedTuple


class Columns(NamedTuple):
    """The columns to read."""

    forms: tuple[tuple[str, ...], ...]  # a file is read if it has all columns of at least one of these
    optional: tuple[str, ...] = ()  # read if present
    messages: tuple[str, ...] = ()  # keys of a message that are read
    looked_for: tuple[str, ...] = ()  # columns and keys of a message only checked for a value; read as JSON, any type
    hint: str = ""  # how to choose another column

    @property
    def names(self) -> set[str]:
        """Return the columns of all forms and the optional ones."""
        return {*chain(*self.forms), *self.optional}

    def fit(self, names: Iterable[str]) -> bool:
        """Return whether a file with these columns is read."""
        return any({*form} <= {*names} for form in self.forms)

    def lack(self, present: Iterable[str] = ()) -> str:
        """Return what a file with these columns lacks: `column 'text'`, or one of several forms."""
        if len(self.forms) == 1:
            names = [name for name in self.forms[0] if name not in {*present}]
            return f"column{'s' * (len(names) > 1)} {' and '.join(map(repr, names))}"
        return f"columns of one of the forms {'; '.join(' and '.join(form) for form in self.forms)}"


# Columns and keys of a message that change the expected answer but are not supported by any of our templates: a row
# with a value in one of them is an error.
MEDIA = ("image", "images", "audio", "audios", "video", "videos")
ROW_KEYS = ("tools", "functions", "system", "system_prompt", "history", "chat_template_kwargs", *MEDIA)
MESSAGE_KEYS = (
    "tool_calls",
    "function_call",
    "tool_call_id",
    "tools",
    "functions",
    "reasoning_content",
    "reasoning",
    "thinking",
    "refusal",
    *MEDIA,
)
SWITCHES = ("weight", "loss", "train", "training")  # keys that other trainers use to exclude an answer from the loss
LOOKED_FOR = (*ROW_KEYS, *MESSAGE_KEYS, *SWITCHES)
CONVERSATIONS = Columns(
    forms=(("messages",), ("prompt", "completion"), ("instruction", "output")),
    optional=("input", *ROW_KEYS),
    messages=("role", "content"),
    looked_for=LOOKED_FOR,
)
PREFERENCES = Columns(
    forms=(("chosen", "rejected"), ("prompt", "completion", "label")),
    optional=("prompt", "instruction", "input", *ROW_KEYS),
    messages=("role", "content"),
    looked_for=LOOKED_FOR,
)
CHOICES = Columns((("query", "choices", "gold"),))
LAST_WORDS = Columns((("text",),))
CONSTRAINTS = Columns((("prompt", "instruction_id_list", "kwargs"),), optional=("key",))
SECRETS = Columns((("prefix", "secret"),))


def one_column(name: str) -> Columns:
    """Return the columns of a task that reads only texts."""
    return Columns(((name,),), hint="Choose another text_column.")


def any_text(name: str = "text") -> Columns:
    """Return the text columns of all tasks, so that rows of different tasks can be compared."""
    tasks = (CONVERSATIONS, PREFERENCES, CHOICES, SECRETS)
    forms = ((name,), ("text",), ("prompt",), *chain(*(task.forms for task in tasks)))
    optional = tuple(dict.fromkeys(chain(*(task.optional for task in tasks))))
    return Columns(
        forms=tuple(dict.fromkeys(forms)),
        optional=optional,
        messages=("role", "content"),
        looked_for=LOOKED_FOR,
    )


__all__ = [
    "CHOICES",
    "CONSTRAINTS",
    "CONVERSATIONS",
    "LAST_WORDS",
    "MESSAGE_KEYS",
    "PREFERENCES",
    "ROW_KEYS",
    "SECRETS",
    "SWITCHES",
    "Columns",
    "any_text",
    "one_column",
]
