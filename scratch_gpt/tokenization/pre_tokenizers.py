r"""Name the patterns that split text into pre-tokens, whose borders no merge of a byte-level BPE crosses.

name     letters         digits       prefix of a word          in llama.cpp
gpt2     \p{L}           any number   a space                   gpt-2
qwen35   \p{L}, \p{M}    one          any one sign or space     qwen35

\p{M} are combining marks: the vowel signs of Hindi, Tamil or Burmese. For GPT-2's pattern they are punctuation, so no
merge joins a consonant and its vowel. Radford et al. 2019 (GPT-2); Qwen3.5 has the pattern with marks.
"""

import json
import unicodedata
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

from tokenizers import Regex, pre_tokenizers


class PreTokenizer(NamedTuple):
    """The patterns of a pre-tokenizer, applied one after the other, and its name in GGUF files."""

    patterns: tuple[str, ...]  # none: the pattern that is built into the library's ByteLevel
    gguf_name: str | None  # None: llama.cpp does not have it


QWEN35 = "|".join(
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+",
        r"\p{N}",
        r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
PRE_TOKENIZERS = {"gpt2": PreTokenizer((), "gpt-2"), "qwen35": PreTokenizer((QWEN35,), "qwen35")}
DEFAULT_PRE_TOKENIZER = "gpt2"
MANY_MARKS = 0.01  # share of the characters


def make_pre_tokenizer(name: str) -> pre_tokenizers.PreTokenizer:
    """Return the pre-tokenizer of this name, which also spells bytes as printable characters."""
    patterns = PRE_TOKENIZERS[name].patterns
    if not patterns:
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def find_pre_tokenizer(content: dict[str, Any]) -> str | None:
    """Return the name of the pre-tokenizer that `tokenizer.json` describes; None if it is not one of ours.

    Args:
        content: the value of `pre_tokenizer` in that file.
    """
    described = _essentials(content)
    names = (name for name in PRE_TOKENIZERS if _essentials(describe_pre_tokenizer(name)) == described)
    return next(names, None)


def describe_pre_tokenizer(name: str) -> dict[str, Any]:
    """Return the entry of `tokenizer.json` for the pre-tokenizer of this name."""
    return json.loads(make_pre_tokenizer(name).__getstate__())


def mark_share(texts: Iterable[str]) -> float:
    """Return the share of combining marks among the characters of texts.

    Example:
        >>> mark_share(["a\u0308 b"])
        0.25
    """
    counts, size = Counter(), 0
    for text in texts:
        size += len(text)
        if not text.isascii():
            counts.update(text)
    marks = sum(count for char, count in counts.items() if unicodedata.category(char).startswith("M"))
    return marks / max(size, 1)


def advise_pre_tokenizer(name: str | None, marks: float) -> str | None:
    """Return a message if a text with this share of combining marks needs another pre-tokenizer, else None."""
    if name != "gpt2" or marks < MANY_MARKS:
        return None
    return (
        f"{100 * marks:.1f} % of the text's characters are combining marks, such as vowel signs, and the "
        "pre-tokenizer gpt2 splits words at each of them. Use pre_tokenizer='qwen35' for shorter sequences."
    )


def _essentials(content: Any) -> Any:
    # trim_offsets changes positions in the text, not ids; older files lack use_regex, which is true by default.
    if isinstance(content, list):
        return [_essentials(item) for item in content]
    if not isinstance(content, dict):
        return content
    defaults = {"use_regex": True} if content.get("type") == "ByteLevel" else {}
    return {name: _essentials(value) for name, value in {**defaults, **content}.items() if name != "trim_offsets"}


__all__ = [
    "DEFAULT_PRE_TOKENIZER",
    "PRE_TOKENIZERS",
    "advise_pre_tokenizer",
    "find_pre_tokenizer",
    "make_pre_tokenizer",
    "mark_share",
]
