"""Text -> ids and ids -> text with any tokenizer; its fingerprint, what it is worth, and more tokens for it.

The rule of this room: a special token's spelling inside a text is text. `<|endoftext|>` in a web page or in what a
user types is encoded as thirteen ordinary characters, unless the caller allows that token by name.
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
ENCODED_PIECE = 2**20  # characters that are encoded in one go
SINGLE_SPACE = re.compile(r"(?<=\S) (?=\S)")


def load_tokenizer(name_or_path: str | Path, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a folder or Hub id; raise a ValueError of one line if there is none that can be used."""
    with one_error(f"No tokenizer could be loaded from {str(name_or_path)!r}", explain), _quiet_panics():
        tokenizer = AutoTokenizer.from_pretrained(str(name_or_path), revision=revision, trust_remote_code=False)
        if not set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens):  # what a bare config.json leads to
            raise ValueError("there are no tokenizer files.")
        decode(tokenizer, encode(tokenizer, "Well? 1.\n"))
    return tokenizer


@contextmanager
def _quiet_panics() -> Iterator[None]:
    # A panic of Rust code writes to the process' standard error before it is raised.
    try:
        stderr_copy = os.dup(2)
    except OSError:  # closed: nothing is written
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
    """Return the ids of a text, adding none. Spellings of special tokens are text, except those in `allowed_special`.

    Raises:
        ValueError: an allowed name that is not a special token of this tokenizer, or half of a surrogate pair.
    """
    unknown = set(allowed_special) - set(tokenizer.all_special_tokens)
    if unknown:
        raise ValueError(f"Not special tokens here: {sorted(unknown)}. There are {tokenizer.all_special_tokens}.")
    if not allowed_special:
        return encode_batch(tokenizer, [text])[0]
    longest_first = sorted(allowed_special, key=len, reverse=True)
    pieces = re.split("(" + "|".join(map(re.escape, longest_first)) + ")", text)  # text, special, text, ...
    plain = encode_batch(tokenizer, pieces[::2])
    special_ids = cast(list[int], tokenizer.convert_tokens_to_ids(pieces[1::2]))
    special = [*([id] for id in special_ids), []]
    return [id for pair in zip(plain, special, strict=True) for ids in pair for id in ids]


def encode_batch(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Return the ids of each text, adding none; the spellings of special tokens are plain text.

    A text of more than PIECE characters is encoded in pieces that begin at a single space, where no token is cut in
    two: memory stays small whatever the length of a line.
    """
    if not texts:
        return []
    if max(map(len, texts)) > ENCODED_PIECE:
        return [[id for piece in _pieces(text) for id in encode_batch(tokenizer, [piece])[0]] for text in texts]
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
    # The library says of an invalid text only that its type is wrong.
    try:
        for text in texts:
            check_text(text, "it")
    except ValueError as invalid:
        error = invalid
    return reason(error)


def _pieces(text: str) -> Iterator[str]:
    start = 0
    while len(text) - start > ENCODED_PIECE:
        space = SINGLE_SPACE.search(text, start + ENCODED_PIECE // 2, start + ENCODED_PIECE)
        end = space.start() if space else start + ENCODED_PIECE
        yield text[start:end]
        start = end
    yield text[start:]


def decode(tokenizer: PreTrainedTokenizerBase, ids: list[int], skip_special_tokens: bool = False) -> str:
    """Return the exact text of ids: no space is removed."""
    text = tokenizer.decode(ids, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False)
    return cast(str, text)  # a list for several sequences of ids


def count_ids(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return how many rows a model's embeddings need: the largest id plus one."""
    return max(tokenizer.get_vocab().values()) + 1


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> None:
    """Raise a ValueError where the tokenizer can produce an id that a model of `vocab_size` rows does not have."""
    largest = count_ids(tokenizer) - 1
    if largest >= vocab_size:
        raise ValueError(
            f"The tokenizer has ids up to {largest}, but the model's vocab_size is {vocab_size}. Use the model's own "
            "tokenizer, or a model with a larger vocabulary."
        )


def end_of_text_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id that ends a document; raise a ValueError if the tokenizer has none."""
    if (eos_token_id := _special_id(tokenizer, "eos")) is None:
        raise ValueError("The tokenizer has no eos_token, so documents cannot be told apart. Set one and save it.")
    return eos_token_id


def begin_of_text_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the id before a document: BOS if there is one, else the EOS of the previous document."""
    bos_token_id = _special_id(tokenizer, "bos")
    return bos_token_id if bos_token_id is not None else _special_id(tokenizer, "eos")


def _special_id(tokenizer: PreTrainedTokenizerBase, role: str) -> int | None:
    return getattr(tokenizer, f"{role}_token_id")


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the SHA-256 of the backend, the special tokens' ids and the chat template, which together decide the ids.

    The same after saving and loading, in any folder and on any machine with the same `tokenizers`; how a call pads or
    truncates is no part of it.

    Raises:
        ValueError: a tokenizer without a backend of the `tokenizers` library.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ValueError(f"{type(tokenizer).__name__} is no fast tokenizer, so it has no fingerprint. Use a fast one.")
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    for state in ("version", "truncation", "padding"):
        del backend[state]
    roles = {role: tokenizer.convert_tokens_to_ids(token) for role, token in tokenizer.special_tokens_map.items()}
    special = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    content = {"backend": backend, "roles": roles, "special": special, "chat_template": tokenizer.chat_template}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def tokenizer_facts(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return what a manifest says of a tokenizer: its fingerprint and the number of its ids."""
    return {"fingerprint": fingerprint(tokenizer), "vocab_size": count_ids(tokenizer)}


def extend_tokenizer(
    tokenizer: PreTrainedTokenizerBase,
    tokens: Collection[str],
    model: PreTrainedModel | None = None,
    special: bool = False,
) -> int:
    """Give a tokenizer more tokens, and `model` the rows for them; returns how many were new.

    A new row, of the embeddings and of an untied head, is the mean of the old ones (Hewitt 2021, "Initializing New
    Word Embeddings for Pretrained Language Models"); the old ones stay as they are to the bit. The model's parameters
    are new objects where it grows: make its optimizer afterwards.

    Args:
        tokens: spellings; those that are there already are left alone.
        special: a text cannot spell them, as `encode` has it. Otherwise they are words, found in every text.

    Raises:
        ValueError: an empty token, a word of the vocabulary that is to become special, or a model with too few rows.
    """
    if isinstance(tokens, str):
        raise ValueError(f"tokens is one text, {tokens!r}; give a list of them: [{tokens!r}].")
    vocabulary = tokenizer.get_vocab()
    old = max(vocabulary.values()) + 1
    new = [token for token in dict.fromkeys(tokens) if token not in vocabulary]
    if "" in new:
        raise ValueError("An empty token cannot be added. Leave it out.")
    if special and (words := sorted(set(tokens) - set(new) - set(tokenizer.all_special_tokens))):
        raise ValueError(
            f"{words[0]!r} is a word of this vocabulary already, so it cannot be special. Spell it <|so|>."
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
    # A model can have more rows than the tokenizer has ids (a padded vocabulary): those are taken first.
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
    """Measure how well a tokenizer and its `peers` compress held-out `texts`, and which tokens are never learned.

    Args:
        sample: what it was trained on. A token that this never yields is unused, one that it yields fewer than `rare`
            times is under-trained: a model learns little about it. Special tokens are not counted.

    Returns:
        `bytes_per_token` of the texts, of `tokenizer` and as `peers` of each of those; `round_trip_failures`, the
        number of texts that do not come back; `unknown`, the tokens that stand for something unknown; `unused` and
        `under_trained` {"count", "tokens" (the first hundred)}; and what these are out of.
    """
    peers = dict(peers or {})
    token_counts = dict.fromkeys([None, *peers], 0)
    unknown_id = _special_id(tokenizer, "unk")
    documents = size = failures = unknown = 0
    for batch in _batches(texts):
        documents += len(batch)
        size += sum(len(text.encode()) for text in batch)
        for name, candidate in {None: tokenizer, **peers}.items():
            rows = encode_batch(candidate, batch)
            token_counts[name] += sum(map(len, rows))
            if name is None:
                failures += sum(decode(tokenizer, ids) != text for ids, text in zip(rows, batch, strict=True))
                unknown += 0 if unknown_id is None else sum(ids.count(unknown_id) for ids in rows)
    if not size:
        raise ValueError("There is no held-out text to measure a tokenizer on.")
    learned = Counter()
    for batch in _batches(sample):
        learned.update(chain.from_iterable(encode_batch(tokenizer, batch)))
    ordinary = sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids))
    report = {
        "vocab_size": len(tokenizer),
        "fingerprint": fingerprint(tokenizer),
        "texts": documents,
        "bytes": size,
        "tokens": token_counts[None],
        "bytes_per_token": size / max(token_counts[None], 1),
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
    "tokenizer_facts",
    "tokenizer_report",
]
