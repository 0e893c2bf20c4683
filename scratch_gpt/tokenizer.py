"""Texts -> a byte-level BPE tokenizer; text -> ids and ids -> text with any tokenizer.

The rule of this room: a special token's spelling inside a text is text. `<|endoftext|>` in a web page or in what a
user types is encoded as thirteen ordinary characters, unless the caller allows that token by name.
"""

import hashlib
import json
import re
from collections.abc import Collection, Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast


END_OF_TEXT = "<|endoftext|>"
PAD = "<|pad|>"
BYTES = 256  # a byte-level vocabulary starts with one token for each byte


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int = 8192,
    special_tokens: Collection[str] = (),
    min_frequency: int = 2,
    model_max_length: int | None = None,
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on `texts` and wrap it as a Hugging Face fast tokenizer.

    Ids 0 and 1 are `<|endoftext|>` (begin and end of a document) and `<|pad|>`, then your `special_tokens`, then the
    256 bytes, then the merges. Training is deterministic.

    Args:
        vocab_size: the most tokens it may have, special ones counted; a small corpus can yield fewer.
        model_max_length: stored with the tokenizer: the longest input, in tokens, of the model it is made for.

    Raises:
        ValueError: no room for the bytes and the special tokens.
    """
    specials = [END_OF_TEXT, PAD, *special_tokens]
    if vocab_size < len(specials) + BYTES:
        raise ValueError(
            f"vocab_size {vocab_size} is too small: {BYTES} bytes and {len(specials)} special tokens need "
            f"{BYTES + len(specials)}."
        )
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=specials,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=PAD,
        additional_special_tokens=list(special_tokens) or None,
        clean_up_tokenization_spaces=False,
        **({} if model_max_length is None else {"model_max_length": model_max_length}),
    )


def load_tokenizer(name_or_path: str | Path, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or Hub id; ValueError in one line where there is none."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(name_or_path), revision=revision)
        if not set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens):  # what a bare config.json leads to
            raise ValueError("there are no tokenizer files.")
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"No tokenizer could be loaded from {str(name_or_path)!r}: {reason[:300]}") from error
    return tokenizer


def encode(tokenizer: PreTrainedTokenizerBase, text: str, allowed_special: Collection[str] = ()) -> list[int]:
    """Text -> ids, adding nothing. Special tokens' spellings are plain text, but for those `allowed_special` names.

    Raises:
        ValueError: an allowed name that is not a special token of this tokenizer.
    """
    unknown = set(allowed_special) - set(tokenizer.all_special_tokens)
    if unknown:
        raise ValueError(f"Not special tokens here: {sorted(unknown)}. There are {tokenizer.all_special_tokens}.")
    if not allowed_special:
        return encode_batch(tokenizer, [text])[0]
    longest_first = sorted(allowed_special, key=len, reverse=True)
    pieces = re.split("(" + "|".join(map(re.escape, longest_first)) + ")", text)  # text, special, text, ...
    plain = encode_batch(tokenizer, pieces[::2])
    special = [[tokenizer.convert_tokens_to_ids(piece)] for piece in pieces[1::2]] + [[]]
    return [id for pair in zip(plain, special, strict=True) for ids in pair for id in ids]


def encode_batch(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Texts -> ids, adding nothing, every spelling taken as plain text."""
    if not texts:
        return []
    output = tokenizer(
        texts, add_special_tokens=False, split_special_tokens=True, return_attention_mask=False, verbose=False
    )
    return output["input_ids"]


def decode(tokenizer: PreTrainedTokenizerBase, ids: list[int], skip_special_tokens: bool = False) -> str:
    """Ids -> text, exactly: no space is tidied away."""
    return tokenizer.decode(ids, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False)


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> None:
    """Raise a ValueError where the tokenizer can produce an id that a model of `vocab_size` rows does not have."""
    largest = max(tokenizer.get_vocab().values())
    if largest >= vocab_size:
        raise ValueError(
            f"The tokenizer has ids up to {largest}, but the model's vocab_size is {vocab_size}. Use the model's own "
            "tokenizer, or a model with a larger vocabulary."
        )


def end_of_text_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id that ends a document; ValueError where the tokenizer has none."""
    if tokenizer.eos_token_id is None:
        raise ValueError("The tokenizer has no eos_token, so documents cannot be told apart. Set one and save it.")
    return tokenizer.eos_token_id


def fingerprint(tokenizer: PreTrainedTokenizerFast) -> str:
    """SHA-256 of what decides text -> ids: the backend, the special tokens' ids and the chat template.

    The same after saving and loading, in any folder and on any machine; how a call pads or truncates is no part of it.

    Raises:
        ValueError: a tokenizer without a backend of the `tokenizers` library.
    """
    if not tokenizer.is_fast:
        raise ValueError(f"{type(tokenizer).__name__} is no fast tokenizer, so it has no fingerprint. Use a fast one.")
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    for state in ("version", "truncation", "padding"):
        del backend[state]
    roles = {role: tokenizer.convert_tokens_to_ids(token) for role, token in tokenizer.special_tokens_map.items()}
    special = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    content = {"backend": backend, "roles": roles, "special": special, "chat_template": tokenizer.chat_template}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


__all__ = [
    "END_OF_TEXT",
    "PAD",
    "check_vocabulary",
    "decode",
    "encode",
    "encode_batch",
    "end_of_text_id",
    "fingerprint",
    "load_tokenizer",
    "train_tokenizer",
]
