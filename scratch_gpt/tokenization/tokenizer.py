"""Load, apply, fingerprint, measure and extend tokenizers.

The spelling of a special token inside a text is plain text: `<|endoftext|>` in a web page or in user input is encoded
as thirteen ordinary characters, unless the caller allows that token by name.
"""

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, cast

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ..utils.foreign import check_text, one_error, reason
from ..utils.loading import explain


END_OF_TEXT = "<|endoftext|>"
PAD = "<|pad|>"
ENCODED_PIECE = 2**20  # maximum number of characters encoded at once
SINGLE_SPACE = re.compile(r"(?<=\S) (?=\S)")


def load_tokenizer(name_or_path: str | Path, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a folder or Hub id; raise a one-line ValueError if it is missing or unusable."""
    with one_error(f"No tokenizer could be loaded from {str(name_or_path)!r}", explain), _quiet_panics():
        tokenizer = AutoTokenizer.from_pretrained(str(name_or_path), revision=revision, trust_remote_code=False)
        if not set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens):  # only a config.json was found
            raise ValueError("it has no tokenizer files.")
        decode(tokenizer, encode(tokenizer, "Well? 1.\n"))
    return tokenizer


@contextmanager
def _quiet_panics() -> Iterator[None]:
    # Rust code that panics writes to the process' standard error before an exception is raised.
    try:
        stderr_copy = os.dup(2)
    except OSError:  # standard error is closed
        yield
        return
    with open(os.devnull, "wb") as nothing:
        try:
            os.dup2(nothing.fileno(), 2)
            yield
        finally:
            os.dup2(stderr_copy, 2)
            os.close(stderr_copy)


def encode(tokenizer: PreTrainedTokenizerBase, text: str, allowed_special: Collection[str] = ()) -> list[int]:
    """Return the ids of a text without adding special tokens; only spellings in `allowed_special` become special.

    Raises:
        ValueError: an allowed name is not a special token of this tokenizer, or the text has an unpaired surrogate.
    """
    unknown = set(allowed_special) - set(tokenizer.all_special_tokens)
    if unknown:
        raise ValueError(
            f"{sorted(unknown)} are not special tokens of this tokenizer. It has {tokenizer.all_special_tokens}."
        )
    if not allowed_special:
        return encode_batch(tokenizer, [text])[0]
    longest_first = sorted(allowed_special, key=len, reverse=True)
    pieces = re.split("(" + "|".join(map(re.escape, longest_first)) + ")", text)  # text, special, text, ...
    plain = encode_batch(tokenizer, pieces[::2])
    special_ids = cast(list[int], tokenizer.convert_tokens_to_ids(pieces[1::2]))
    special = [*([id] for id in special_ids), []]
    return [id for pair in zip(plain, special, strict=True) for ids in pair for id in ids]


def encode_batch(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Return the ids of each text without adding special tokens; the spellings of special tokens are plain text.

    To limit memory, a text of more than ENCODED_PIECE characters is encoded in pieces. They begin at a single space if
    possible, so that no token is cut in two.
    """
    if not texts:
        return []
    if max(map(len, texts)) > ENCODED_PIECE:
        return [[id for piece in split_text(text) for id in encode_batch(tokenizer, [piece])[0]] for text in texts]
    with one_error("The tokenizer cannot encode a text", partial(_explain, texts=texts)):
        if not isinstance(tokenizer, PreTrainedTokenizerFast):
            encoding = tokenizer(
                texts,
                add_special_tokens=False,
                split_special_tokens=True,
                return_attention_mask=False,
                verbose=False,
            )
            return encoding["input_ids"]
        backend = tokenizer.backend_tokenizer
        backend.encode_special_tokens = True
        backend.no_truncation()
        backend.no_padding()
        return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]


def _explain(error: BaseException, texts: list[str]) -> str:
    # The library's error for an invalid text only says that its type is wrong.
    try:
        for text in texts:
            check_text(text, "it")
    except ValueError as invalid:
        error = invalid
    return reason(error)


def split_text(text: str) -> Iterator[str]:
    """Yield the pieces in which a long text is encoded; a short text is one piece."""
    start = 0
    while len(text) - start > ENCODED_PIECE:
        space = SINGLE_SPACE.search(text, start + ENCODED_PIECE // 2, start + ENCODED_PIECE)
        end = space.start() if space else start + ENCODED_PIECE
        yield text[start:end]
        start = end
    yield text[start:]


def decode(tokenizer: PreTrainedTokenizerBase, ids: list[int], skip_special_tokens: bool = False) -> str:
    """Return the exact text of ids, without removing spaces."""
    text = tokenizer.decode(ids, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False)
    return cast(str, text)  # a list for several sequences of ids


def count_ids(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the number of rows that a model's embeddings need: the largest id plus one."""
    return max(tokenizer.get_vocab().values()) + 1


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> None:
    """Raise a ValueError if the tokenizer can produce an id of `vocab_size` or more."""
    largest = count_ids(tokenizer) - 1
    if largest >= vocab_size:
        raise ValueError(
            f"The tokenizer has ids up to {largest}, but the model's vocab_size is {vocab_size}. Use the model's own "
            "tokenizer, or a model with a larger vocabulary."
        )


def end_of_text_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id that ends a document; raise a ValueError if the tokenizer has none."""
    if (eos_token_id := _special_id(tokenizer, "eos")) is None:
        raise ValueError("The tokenizer has no eos_token, which marks the end of a document. Set one and save it.")
    return eos_token_id


def begin_of_text_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the id before a document: BOS if the tokenizer has it, else EOS, which ends the previous document."""
    bos_token_id = _special_id(tokenizer, "bos")
    return bos_token_id if bos_token_id is not None else _special_id(tokenizer, "eos")


def _special_id(tokenizer: PreTrainedTokenizerBase, role: str) -> int | None:
    return getattr(tokenizer, f"{role}_token_id")


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the SHA-256 of the backend, the ids of special tokens and the chat template, which determine all ids.

    It is the same after saving and loading, in any folder and on any machine with the same version of `tokenizers`.
    Padding and truncation are not included.

    Raises:
        ValueError: the tokenizer has no backend of the `tokenizers` library.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ValueError(
            f"{type(tokenizer).__name__} is not a fast tokenizer, so it has no fingerprint. Use a fast tokenizer."
        )
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    for state in ("version", "truncation", "padding"):
        del backend[state]
    roles = {role: tokenizer.convert_tokens_to_ids(token) for role, token in tokenizer.special_tokens_map.items()}
    special = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    content = {"backend": backend, "roles": roles, "special": special, "chat_template": tokenizer.chat_template}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def tokenizer_facts(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return the manifest's entry for a tokenizer: its fingerprint and the number of its ids."""
    return {"fingerprint": fingerprint(tokenizer), "vocab_size": count_ids(tokenizer)}


def extend_tokenizer(
    tokenizer: PreTrainedTokenizerBase,
    tokens: Collection[str],
    model: PreTrainedModel | None = None,
    special: bool = False,
) -> int:
    """Add tokens to a tokenizer, and rows for them to `model`; return the number of new tokens.

    A new row of the embeddings, and of an untied head, is the mean of the old rows (Hewitt 2021, "Initializing New
    Word Embeddings for Pretrained Language Models"); the old rows do not change. If the model grows, its embedding
    parameters are new objects: create the optimizer afterwards.

    Args:
        tokens: spellings; tokens that already exist are skipped.
        special: add special tokens; their spelling in a text is plain text (see `encode`). Otherwise the new tokens
            are found in every text.

    Raises:
        ValueError: a token is empty, a word of the vocabulary is to become special, or the model has too few rows.
    """
    if isinstance(tokens, str):
        raise ValueError(f"tokens must be a list, not the text {tokens!r}. Give [{tokens!r}].")
    vocabulary = tokenizer.get_vocab()
    old = max(vocabulary.values()) + 1
    new = [token for token in dict.fromkeys(tokens) if token not in vocabulary]
    if "" in new:
        raise ValueError("An empty token cannot be added. Remove it from the list.")
    if special and (words := sorted(set(tokens) - set(new) - set(tokenizer.all_special_tokens))):
        raise ValueError(
            f"{words[0]!r} is already a word of this vocabulary, so it cannot be special. Write it as <|word|>."
        )
    if model is not None:
        embeddings: Any = model.get_input_embeddings()
        check_vocabulary(tokenizer, embeddings.weight.shape[0])
    if not new:
        return 0
    if special:
        tokenizer.add_special_tokens({"extra_special_tokens": new}, replace_extra_special_tokens=False)
    else:
        tokenizer.add_tokens(new)
    if model is not None:
        _add_rows(model, old, count_ids(tokenizer))
    return len(new)


def _add_rows(model: PreTrainedModel, old: int, new: int) -> None:
    # A model can have more rows than the tokenizer has ids (a padded vocabulary); these rows are used first.
    def tables() -> list[Any]:
        parts: tuple[Any, Any] = (model.get_input_embeddings(), model.get_output_embeddings())
        return [part.weight.data for part in parts if part is not None]

    means = [table[:old].mean(dim=0) for table in tables()]
    if new > len(tables()[0]):
        model.resize_token_embeddings(new, mean_resizing=False)
    for table, mean in zip(tables(), means, strict=True):
        table[old:new] = mean


def tokenizer_report(
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    peers: Mapping[str, PreTrainedTokenizerBase] | None = None,
    sample: Iterable[str] = (),
    rare: int = 10,
) -> dict[str, Any]:
    """Measure the compression of held-out `texts` by a tokenizer and its `peers`, and list rarely used tokens.

    Args:
        sample: the text that the tokenizer was trained on. Tokens that do not occur in it are unused. Tokens that
            occur fewer than `rare` times are under-trained: a model learns little about them. Special tokens do not
            count.

    Returns:
        `bytes_per_token` and `characters_per_token` of `tokenizer`, and `peers` with the bytes per token of each peer;
        `round_trip_failures`, the number of texts that decoding does not restore; `unknown`, the number of unknown
        tokens; `unused` and `under_trained` {"count", "tokens" (the first hundred)}; and the totals `texts`, `bytes`,
        `characters`, `tokens`, `vocab_size`.
    """
    peers = dict(peers or {})
    token_counts = dict.fromkeys([None, *peers], 0)
    unknown_id = _special_id(tokenizer, "unk")
    documents = characters = size = failures = unknown = 0
    for batch in _batches(texts):
        documents += len(batch)
        characters += sum(map(len, batch))
        size += sum(len(text.encode()) for text in batch)
        for name, candidate in {None: tokenizer, **peers}.items():
            rows = encode_batch(candidate, batch)
            token_counts[name] += sum(map(len, rows))
            if name is None:
                failures += sum(decode(tokenizer, ids) != text for ids, text in zip(rows, batch, strict=True))
                unknown += 0 if unknown_id is None else sum(ids.count(unknown_id) for ids in rows)
    if not size:
        raise ValueError("The held-out texts are empty. Give text to measure the tokenizer on.")
    learned = Counter()
    for batch in _batches(sample):
        learned.update(chain.from_iterable(encode_batch(tokenizer, batch)))
    ordinary = sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids))
    report = {
        "vocab_size": len(tokenizer),
        "fingerprint": fingerprint(tokenizer),
        "texts": documents,
        "bytes": size,
        "characters": characters,
        "tokens": token_counts[None],
        "bytes_per_token": size / max(token_counts[None], 1),
        "characters_per_token": characters / max(token_counts[None], 1),
        "peers": {name: size / max(token_counts[name], 1) for name in peers},
        "round_trip_failures": failures,
        "unknown": unknown,
    }
    if learned:
        unused = [id for id in ordinary if not learned[id]]
        few = [id for id in ordinary if 0 < learned[id] < rare]
        report["rare"] = rare
        for name, ids in (("unused", unused), ("under_trained", few)):
            report[name] = {"count": len(ids), "tokens": tokenizer.convert_ids_to_tokens(ids[:100])}
    return report


def _batches(texts: Iterable[str], size: int = 100) -> Iterator[list[str]]:
    texts = iter(texts)
    return iter(lambda: list(islice(texts, size)), [])


__all__ = [
    "END_OF_TEXT",
    "PAD",
    "begin_of_text_id",
    "check_vocabulary",
    "count_ids",
    "decode",
    "encode",
    "encode_batch",
    "end_of_text_id",
    "extend_tokenizer",
    "fingerprint",
    "load_tokenizer",
    "split_text",
    "tokenizer_facts",
    "tokenizer_report",
]
