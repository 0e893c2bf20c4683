"""Take a sample of bounded size from any number of texts and train a tokenizer of one of five kinds on it.

kind        tokens                        unknown text                              decode(encode(text))
bpe         merged bytes                  cannot occur: every byte is a token       the same text
wordpiece   beginnings of words, ##rest   [UNK] for a word with an unknown letter   its words separated by spaces
unigram     the likeliest pieces          [UNK] for unknown characters              the same except [UNK] and U+2581
word        words, punctuation marks      [UNK] for the word                        its words separated by spaces
char        characters                    [UNK] for the character                   the same except [UNK]

Characters or words are unknown if they occur fewer than `min_frequency` times in the sample or do not fit into
`vocab_size`. WordPiece does not know words of more than 100 letters. Unigram writes a space as U+2581. Words separated
by spaces have no space before `. , ? !`.
"""

import heapq
import json
import random
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from ..utils.foreign import one_error
from ..utils.local_files import read_text_file
from . import fast_worker
from .chat_templates import CHATML, FORMATS, TRIAL, render_text
from .encoders import Worker, WorkerStopped, check_encoder
from .pre_tokenizers import DEFAULT_PRE_TOKENIZER, PRE_TOKENIZERS, make_pre_tokenizer
from .tokenizer import END_OF_TEXT, PAD


TOKENIZER_KINDS = ("bpe", "wordpiece", "unigram", "word", "char")
BYTE_TOKENS = 256  # a byte-level vocabulary starts with one token for each byte
BYTES_PER_TOKEN = 1000  # with less text for each token, the trainer of tokenizers is as fast as gigatoken's
UNKNOWN = "[UNK]"
MOST_TOKENS = 2**24  # the library allocates memory for vocab_size tokens
ROLES = {"unk_token": UNKNOWN, "bos_token": "[BOS]", "eos_token": "[EOS]", "pad_token": "[PAD]"}  # not for bpe
NEVER = -1e6  # log probability of a piece that is never used
WORD_PATTERN = r"[\p{L}\p{M}\p{N}_]+"
BRACKETED = r"[<\[{(]\S*[^\W_]\S*[>\]})]"  # <|user|>, [SEP]: no ordinary token combines letters and punctuation


# --- Sample ------------------------------------------------------------------------------------------------------


SAMPLE_BYTES = 32_000_000
TEXT_BLOCK = 16_384  # characters of a block: long texts are cut into blocks, short texts share one
BORDER = b"\xff"  # separator of the texts of a block; never occurs in UTF-8


@dataclass(frozen=True)
class Sample:
    """Texts sampled from a stream, in its order. Can be iterated repeatedly."""

    blocks: list[bytes]
    bytes_seen: int
    bytes_used: int

    def __iter__(self) -> Iterator[str]:
        return (text.decode() for block in self.blocks for text in block.split(BORDER))


def sample_texts(texts: Iterable[str], sample_bytes: int = SAMPLE_BYTES, seed: int = 0) -> Sample:
    """Take a uniform sample of a stream in one pass: at most `sample_bytes` of UTF-8, or all of a smaller stream.

    The stream is cut into blocks of about equal size. A random number is drawn for each, and the blocks with the
    smallest numbers are kept. The result depends only on the texts, their order and the seed. Memory holds the sample
    and one text.
    """
    if sample_bytes < 1000:
        raise ValueError(f"sample_bytes must be at least 1000, not {sample_bytes}.")
    draw = random.Random(seed).random
    heap: list[tuple[float, int, int, bytes]] = []  # the largest number first
    bytes_seen = bytes_used = 0
    least_dropped = 1.0
    for block_number, block in enumerate(_blocks(texts, min(TEXT_BLOCK, sample_bytes // 100))):
        pieces = [piece.encode() for piece in block]
        size = sum(map(len, pieces))
        bytes_seen += size
        number = draw()
        if number >= least_dropped:
            continue
        heapq.heappush(heap, (-number, block_number, size, BORDER.join(pieces)))
        bytes_used += size
        while bytes_used > sample_bytes:
            number, _, size, _ = heapq.heappop(heap)
            least_dropped = -number
            bytes_used -= size
    return Sample([block for _, _, _, block in sorted(heap, key=lambda entry: entry[1])], bytes_seen, bytes_used)


def _blocks(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    block, length = [], 0
    for piece in chain.from_iterable(_pieces(text, size) for text in texts):
        block.append(piece)
        length += len(piece)
        if length >= size:
            yield block
            block, length = [], 0
    if block:
        yield block


def _pieces(text: str, size: int) -> Iterator[str]:
    start = 0
    while len(text) - start > size:
        space = text.rfind(" ", start + size // 2, start + size)  # cut between words if possible
        end = space if space > 0 else start + size
        yield text[start:end]
        start = end
    if start < len(text):
        yield text[start:]


# --- Training ----------------------------------------------------------------------------------------------------


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int = 8192,
    special_tokens: Collection[str] = (),
    min_frequency: int = 2,
    model_max_length: int | None = None,
    kind: str = "bpe",
    chat_template: str | None = None,
    sample_bytes: int = SAMPLE_BYTES,
    seed: int = 0,
    show_progress: bool = False,
    pre_tokenizer: str | None = None,
    encoder: str = "auto",
) -> PreTrainedTokenizerFast:
    """Train a tokenizer on a sample of `texts` and wrap it as a Hugging Face fast tokenizer.

    Byte-level BPE (Sennrich et al. 2016; Radford et al. 2019): ids 0 and 1 are `<|endoftext|>` (begin and end of a
    document) and `<|pad|>`, then `special_tokens`, then the 256 bytes, then the merges. The other kinds begin with
    [UNK], [BOS], [EOS] and [PAD]. Training on a given sample is deterministic, except for Unigram (Kudo 2018): it sums
    in an order that changes between runs, so two trainings can differ in some pieces. For BPE and characters the
    result does not depend on the order of the texts.

    Args:
        texts: `sample_texts` takes at most `sample_bytes` of them; a `Sample` is used unchanged.
        vocab_size: maximum number of tokens, including special tokens; a small corpus can yield fewer.
        special_tokens: additional special tokens in brackets: `<|user|>`, `[SEP]`. No text encodes to them.
        min_frequency: rarer pairs are not merged (bpe, wordpiece); rarer words or characters are unknown (see above).
        model_max_length: the longest input, in tokens, of the model; stored with the tokenizer.
        chat_template: `chatml`, which adds its two special tokens, or a Jinja file; stored with the tokenizer.
        pre_tokenizer: how byte-level BPE splits text before it merges bytes: `gpt2` (by default) or `qwen35`.
        encoder: library for bpe, `tokenizers` or `gigatoken` (the extra "fast"), which make the same tokenizer; `auto`
            is gigatoken where it is installed and faster.

    Raises:
        ValueError: the kind or pre_tokenizer is unknown, there is no text, the vocabulary is too small, a text could
            contain a special token, or the chat template cannot be read.
    """
    check_encoder(encoder)
    plan = plan_tokenizer(vocab_size, special_tokens, min_frequency, kind, chat_template, pre_tokenizer)
    sample = texts if isinstance(texts, Sample) else sample_texts(texts, sample_bytes, seed)
    if not sample.bytes_used:
        raise ValueError("The texts are empty. Give text to train a tokenizer on.")
    bpe = partial(_bpe, pre_tokenizer or DEFAULT_PRE_TOKENIZER, encoder != "tokenizers")
    train = {"bpe": bpe, "wordpiece": _wordpiece, "unigram": _unigram, "word": _word, "char": _char}[kind]
    options = {"vocab_size": vocab_size, "special_tokens": plan.specials, "show_progress": show_progress}
    with one_error(f"No {kind} tokenizer of {vocab_size} tokens can be trained on this text"):
        trained = train(sample, min_frequency, options)
    return PreTrainedTokenizerFast(
        tokenizer_object=trained,
        **plan.roles,
        extra_special_tokens=[token for token in plan.specials if token not in plan.roles.values()],
        clean_up_tokenization_spaces=False,
        chat_template=plan.chat_template,
        **({} if model_max_length is None else {"model_max_length": model_max_length}),
    )


class TokenizerPlan(NamedTuple):
    """The settings of a tokenizer that do not depend on the text."""

    roles: dict[str, str]  # the spellings of bos_token, eos_token, ...
    specials: list[str]  # all special tokens, in the order of their ids
    chat_template: str | None


def plan_tokenizer(
    vocab_size: int = 8192,
    special_tokens: Collection[str] = (),
    min_frequency: int = 2,
    kind: str = "bpe",
    chat_template: str | None = None,
    pre_tokenizer: str | None = None,
) -> TokenizerPlan:
    """Resolve the arguments of `train_tokenizer`; raise its errors, except those that depend on the text."""
    if kind not in TOKENIZER_KINDS:
        raise ValueError(f"kind must be one of {', '.join(TOKENIZER_KINDS)}, not {kind!r}.")
    if pre_tokenizer is not None and pre_tokenizer not in PRE_TOKENIZERS:
        raise ValueError(f"pre_tokenizer must be one of {', '.join(PRE_TOKENIZERS)}, not {pre_tokenizer!r}.")
    if pre_tokenizer is not None and kind != "bpe":
        raise ValueError(f"pre_tokenizer only works with kind='bpe', not with {kind!r}. Remove it.")
    if vocab_size > MOST_TOKENS:
        raise ValueError(f"vocab_size must be at most {MOST_TOKENS:,}, not {vocab_size}.")
    if min_frequency < 1:
        raise ValueError(f"min_frequency must be at least 1, not {min_frequency}.")
    if bad := [token for token in special_tokens if not re.fullmatch(BRACKETED, token)]:
        raise ValueError(f"A text could contain the special token {bad[0]!r}. Write it in brackets: <|user|>, [SEP].")
    roles = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "pad_token": PAD} if kind == "bpe" else ROLES
    template = None if chat_template is None else _read_chat_template(chat_template)
    chat_tokens = FORMATS["chatml"].tokens if template == CHATML else ()
    specials = list(dict.fromkeys([*roles.values(), *special_tokens, *chat_tokens]))
    base_tokens = BYTE_TOKENS if kind == "bpe" else 2
    if vocab_size < len(specials) + base_tokens:
        raise ValueError(
            f"vocab_size {vocab_size} is too small: {base_tokens} {'bytes' if kind == 'bpe' else 'letters'} and "
            f"{len(specials)} special tokens need {len(specials) + base_tokens}."
        )
    return TokenizerPlan(roles, specials, template)


def _read_chat_template(name: str) -> str:
    if name == "chatml":
        return CHATML
    try:
        template = read_text_file(name)
    except ValueError as error:
        raise ValueError(f"chat_template {name}: {error} Give chatml or a .jinja file.") from error
    render_text(template, TRIAL, {}, name=f"chat_template {name}")
    return template


def _bpe(pre_tokenizer: str, is_fast: bool, sample: Sample, min_frequency: int, options: dict[str, Any]) -> Tokenizer:
    specials, size = options["special_tokens"], options["vocab_size"]
    is_fast = is_fast and pre_tokenizer == "gpt2"  # gigatoken trains with this one only
    merges = _fast_merges(sample, min_frequency, size - len(specials)) if is_fast else None
    if merges is None:
        backend = _byte_level(models.BPE(), pre_tokenizer)
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        trainer = trainers.BpeTrainer(min_frequency=min_frequency, initial_alphabet=alphabet, **options)
        backend.train_from_iterator(sample, trainer)
        return backend
    backend = _byte_level(_merged_bytes(merges, specials), pre_tokenizer)
    backend.add_special_tokens(specials)
    return backend


def _merged_bytes(merges: list[tuple[str, str]], specials: Collection[str] = ()) -> models.BPE:
    # The ids: special tokens, bytes, merged tokens.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*specials, *alphabet, *(first + second for first, second in merges)]
    return models.BPE({token: id for id, token in enumerate(tokens)}, merges)


def _byte_level(model: models.BPE, pre_tokenizer: str) -> Tokenizer:
    backend = Tokenizer(model)
    backend.pre_tokenizer = make_pre_tokenizer(pre_tokenizer)
    backend.decoder = decoders.ByteLevel()
    return backend


def _fast_merges(sample: Sample, min_frequency: int, size: int) -> list[tuple[str, str]] | None:
    """Return the merges of a vocabulary of `size` tokens, made by gigatoken; None if tokenizers has to train it.

    Both libraries make the same merges, but gigatoken has no minimum frequency, and is slow if little text has to give
    many tokens.
    """
    if find_spec("gigatoken") is None or sample.bytes_used < BYTES_PER_TOKEN * size:
        return None
    worker, letters = Worker(), _letters_of_bytes()
    try:
        pairs = fast_worker.split(*worker.ask({"do": "train", "vocab_size": size}, BORDER.join(sample.blocks)))
        tokens = ["".join(letters[byte] for byte in token) for token in pairs]
        merges = [*zip(tokens[::2], tokens[1::2], strict=True)]
        # Pairs become rarer from merge to merge, so the last token tells whether all were frequent enough.
        if len(merges) != size - BYTE_TOKENS or _count_last(worker, sample, merges) < min_frequency:
            return None
        return merges
    except WorkerStopped:
        return None
    finally:
        worker.close()


def _count_last(worker: Worker, sample: Sample, merges: list[tuple[str, str]]) -> int:
    backend = _byte_level(_merged_bytes(merges), "gpt2")
    last = BYTE_TOKENS + len(merges) - 1
    worker.ask({"do": "load"}, backend.to_str().encode())
    return sum(
        int((np.frombuffer(ids, dtype=np.uint32) == last).sum())
        for _, ids in (worker.ask({"do": "encode"}, *fast_worker.join(block.split(BORDER))) for block in sample.blocks)
    )


def _letters_of_bytes() -> list[str]:
    # Return the character that stands for each byte: printable ones for themselves, the others in order.
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    kept = [letter for letter in letters if ord(letter) < BYTE_TOKENS]
    others = [byte for byte in range(BYTE_TOKENS) if chr(byte) not in kept]
    letter_of = dict(zip([*map(ord, kept), *others], letters, strict=True))
    return [letter_of[byte] for byte in range(BYTE_TOKENS)]


def _wordpiece(sample: Sample, min_frequency: int, options: dict[str, Any]) -> Tokenizer:
    # Characters that do not fit into the vocabulary become spaces. The trainer reads words in an arbitrary order; the
    # result is independent of it only if all letters are in the vocabulary before training.
    alphabet = _alphabet(sample, min_frequency, (options["vocab_size"] - len(options["special_tokens"])) // 2)
    letters = [prefix + letter for prefix in ("", "##") for letter in alphabet]
    trainer = trainers.WordPieceTrainer(
        **options | {"special_tokens": options["special_tokens"] + letters},
        min_frequency=min_frequency,
        continuing_subword_prefix="##",
        limit_alphabet=0,
    )
    trained = Tokenizer(models.WordPiece(unk_token=UNKNOWN))
    trained.pre_tokenizer = _words()
    trained.train_from_iterator(_keep_only(alphabet, sample), trainer)
    backend = Tokenizer(models.WordPiece(trained.get_vocab(), unk_token=UNKNOWN))
    backend.pre_tokenizer = _words()
    backend.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    backend.add_special_tokens(options["special_tokens"])
    return backend


def _unigram(sample: Sample, min_frequency: int, options: dict[str, Any]) -> Tokenizer:
    specials = options["special_tokens"]
    alphabet = _alphabet(sample, min_frequency, (options["vocab_size"] - len(specials)) // 2)
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "merged_with_previous"), pre_tokenizers.Metaspace(prepend_scheme="never")]
    )
    backend.decoder = decoders.Metaspace(prepend_scheme="never")
    letters = sorted(set("".join(specials)))  # so that the spellings of special tokens can be encoded as text
    trainer = trainers.UnigramTrainer(unk_token=UNKNOWN, initial_alphabet=letters, **options)
    backend.train_from_iterator(_keep_only(alphabet, sample), trainer)
    # The trainer gives special tokens the best score, 0, so that texts would be encoded with them.
    pieces = json.loads(backend.to_str())["model"]["vocab"]
    pieces = [(piece, NEVER if piece in specials else score) for piece, score in pieces]
    backend.model = models.Unigram(pieces, unk_id=specials.index(UNKNOWN))
    return backend


def _word(sample: Sample, min_frequency: int, options: dict[str, Any]) -> Tokenizer:
    backend = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    backend.pre_tokenizer = _words()
    backend.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    backend.train_from_iterator(sample, trainers.WordLevelTrainer(min_frequency=min_frequency, **options))
    return backend


def _char(sample: Sample, min_frequency: int, options: dict[str, Any]) -> Tokenizer:
    specials = options["special_tokens"]
    alphabet = _alphabet(sample, min_frequency, options["vocab_size"] - len(specials), spaces=True)
    vocabulary = {token: id for id, token in enumerate([*specials, *alphabet])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens(specials)
    return backend


def _words() -> pre_tokenizers.PreTokenizer:
    # Split into words and single punctuation marks; white space is dropped.
    return pre_tokenizers.Split(Regex(rf"{WORD_PATTERN}|[^\p{{L}}\p{{M}}\p{{N}}_\s]"), "removed", invert=True)


def _alphabet(sample: Sample, min_frequency: int, room: int, spaces: bool = False) -> list[str]:
    # Return the most common characters first, at most `room`.
    counts = Counter()
    for text in sample:
        counts.update(text)
    characters = [char for char, count in counts.items() if count >= min_frequency and (spaces or not char.isspace())]
    if not characters:
        raise ValueError(f"No character occurs min_frequency {min_frequency} times. Lower it, or give more text.")
    return sorted(characters, key=lambda char: (-counts[char], char))[:room]


def _keep_only(alphabet: Collection[str], texts: Iterable[str]) -> Iterator[str]:
    unknown = re.compile(f"[^\\s{re.escape(''.join(alphabet))}]")
    return (unknown.sub(" ", text) for text in texts)


__all__ = [
    "CHATML",
    "SAMPLE_BYTES",
    "TOKENIZER_KINDS",
    "Sample",
    "plan_tokenizer",
    "sample_texts",
    "train_tokenizer",
]
