"""Test training a tokenizer: bounded samples, the text that each kind restores, and masks of chat answers."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scratch_gpt.tokenization.chat_templates import CHATML
from scratch_gpt.tokenization.tokenizer import decode, encode, fingerprint, load_tokenizer, tokenizer_report
from scratch_gpt.tokenization.training import TOKENIZER_KINDS, Sample, sample_texts, train_tokenizer


CORPUS = [
    "The shiny sun shines on the sea; a sun of stone!\n" * 20,
    "A sea of shiny stones, na\u00efve <|user|> [BOS] waves?  It's \u4e16\u754c.\n\n" * 20,
    "The quick brown fox jumps over 13 lazy dogs. " * 20,
]
SPECIALS = ["[UNK]", "[BOS]", "[EOS]", "[PAD]", "<|user|>", "<|im_start|>", "<|im_end|>"]


def train(kind, **changes):
    options = {"vocab_size": 400, "special_tokens": ["<|user|>"], "chat_template": "chatml", **changes}
    return train_tokenizer(CORPUS, kind=kind, **options)


@pytest.fixture(scope="module")
def tokenizers():
    return {kind: train(kind) for kind in TOKENIZER_KINDS}


# --- Samples -----------------------------------------------------------------------------------------------------

texts_of_all_sizes = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=60), max_size=40)


@given(texts=texts_of_all_sizes, seed=st.integers(0, 9))
@settings(deadline=None)
def test_a_small_corpus_is_used_completely_and_in_order(texts, seed):
    sample = sample_texts(iter(texts), 1_000_000, seed)
    assert list(sample) == list(sample) == [text for text in texts if text]
    assert sample.bytes_seen == sample.bytes_used == sum(len(text.encode()) for text in texts)


@given(texts=texts_of_all_sizes, seed=st.integers(0, 9))
@settings(deadline=None)
def test_a_sample_stays_below_its_cap_and_is_part_of_the_text(texts, seed):
    texts = ["".join(texts) * 3, *texts, *texts]
    sample = sample_texts(texts, 1000, seed)
    used = sum(len(text.encode()) for text in sample)
    assert sample.bytes_used == used <= 1000
    assert sample.bytes_seen == sum(len(text.encode()) for text in texts)
    # A block is at most 1/100 of the limit, or twice that if texts share it.
    assert used == sample.bytes_seen or used > 900
    whole = "\0".join(texts)
    assert all(text in whole for text in sample)
    assert sample == sample_texts(texts, 1000, seed)


@pytest.mark.parametrize("seed", range(10))
def test_blocks_with_the_smallest_random_numbers_are_kept_at_any_size(seed):
    # Blocks of 20 characters: of 20 to 38 bytes.
    texts = [f"{n:010d}" + ("\u4e16" * (n * 7 % 10)).ljust(10, "x") for n in range(3000)]
    kept = {int(text[:10]) for text in sample_texts(texts, 2000, seed)}
    draw = random.Random(seed).random
    draws = [draw() for _ in texts]
    assert max(draws[n] for n in kept) < min(draws[n] for n in range(3000) if n not in kept)


def test_one_long_line_is_sampled_from_all_of_it_without_cutting_words():
    line = " ".join(f"w{n}" for n in range(200_000))
    sample = sample_texts([line], 100_000)
    words = [int(word.removeprefix("w")) for text in sample for word in text.split()]
    assert words == sorted(set(words)) and words[-1] < 200_000  # in order, and complete
    assert 95_000 < sample.bytes_used <= 100_000
    tenths = [sum(word // 20_000 == tenth for word in words) for tenth in range(10)]
    assert min(tenths) > 0.4 * len(words) / 10
    assert sample != sample_texts([line], 100_000, seed=1)


def test_characters_are_never_cut():
    line = "\u4e16\U0001f31e" * 5000
    assert set("".join(sample_texts([line], 5000))) == set(line)


def test_training_uses_the_sample():
    texts = [f"word{n} is one of many words. " * 3 for n in range(2000)]
    sample = sample_texts(texts, 20_000, seed=3)
    trained = train_tokenizer(texts, vocab_size=400, sample_bytes=20_000, seed=3)
    assert fingerprint(trained) == fingerprint(train_tokenizer(sample, vocab_size=400))
    assert fingerprint(trained) != fingerprint(train_tokenizer(texts, vocab_size=400, sample_bytes=20_000, seed=4))


# --- Kinds -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted({*TOKENIZER_KINDS} - {"unigram"}))
def test_training_is_byte_for_byte_deterministic(kind, tokenizers, tmp_path):
    for name, tokenizer in (("a", tokenizers[kind]), ("b", train(kind))):
        tokenizer.save_pretrained(tmp_path / name)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file.name


@pytest.mark.parametrize("kind", ["bpe", "char"])
def test_the_order_of_texts_has_no_effect(kind, tokenizers):
    backwards = train_tokenizer(CORPUS[::-1], 400, ["<|user|>"], kind=kind, chat_template="chatml")
    assert fingerprint(backwards) == fingerprint(tokenizers[kind])


@pytest.mark.parametrize("kind", TOKENIZER_KINDS)
def test_special_tokens_come_first_and_everything_is_stored(kind, tokenizers, tmp_path):
    tokenizer = tokenizers[kind]
    specials = ["<|endoftext|>", "<|pad|>", *SPECIALS[4:]] if kind == "bpe" else SPECIALS
    assert tokenizer.convert_tokens_to_ids(specials) == list(range(len(specials)))
    assert set(tokenizer.all_special_tokens) == set(specials)
    assert len(tokenizer) <= 400 and max(tokenizer.get_vocab().values()) == len(tokenizer) - 1
    assert tokenizer.eos_token == ("<|endoftext|>" if kind == "bpe" else "[EOS]")
    tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(tmp_path)
    assert fingerprint(again) == fingerprint(tokenizer) and again.chat_template == CHATML
    assert [encode(again, text) for text in CORPUS] == [encode(tokenizer, text) for text in CORPUS]
    assert decode(again, encode(again, CORPUS[1])) == decode(tokenizer, encode(tokenizer, CORPUS[1]))


any_text = st.text(st.characters(exclude_categories=["Cs"]))
near_specials = st.sampled_from([*SPECIALS, "<|endoftext|>", "<|", "|>", "[", "]", "BOS", "##", " ", "\u2581", "user"])


@pytest.mark.parametrize("kind", TOKENIZER_KINDS)
@given(text=st.lists(st.one_of(any_text, near_specials)).map("".join))
@settings(max_examples=60, deadline=None)
def test_no_text_yields_a_special_token_except_the_unknown(kind, tokenizers, text):
    tokenizer = tokenizers[kind]
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    assert not special & set(encode(tokenizer, text))
    allowed = encode(tokenizer, text, ["<|user|>"])
    assert allowed.count(tokenizer.convert_tokens_to_ids("<|user|>")) == text.count("<|user|>")
    if kind == "bpe":
        assert decode(tokenizer, allowed) == text


known = st.text("aehinostuw; \n<|>[]!?.,").map(lambda text: text + "The sun")


@pytest.mark.parametrize("kind", ["unigram", "char"])
@given(text=known)
@settings(max_examples=60, deadline=None)
def test_unigram_and_char_restore_known_characters(kind, tokenizers, text):
    assert decode(tokenizers[kind], encode(tokenizers[kind], text)) == text


@pytest.mark.parametrize(
    ("kind", "tokens", "text"),
    [
        ("wordpiece", None, "the sun shines, \u4e16\u754c! It ' s [UNK] stone?"),
        ("word", ["the", "sun", "shines", ",", "\u4e16\u754c", "!", "It", "'", "s", "[UNK]", "[UNK]", "?"], None),
        ("char", [*"the  sun shines, \u4e16\u754c! It's ", "[UNK]", *"ebra ston", "[UNK]", "?"], None),
        ("unigram", None, "the  sun shines, \u4e16\u754c! It's [UNK]ebra ston[UNK]?"),
    ],
)
def test_unknown_text_becomes_unk(kind, tokens, text, tokenizers):
    # \u03b6 was not in the training text, `stone` was: kinds with whole-word tokens do not know `ston\u03b6` at all.
    given = "the  sun shines, \u4e16\u754c! It's \u03b6ebra ston\u03b6?"
    if kind == "wordpiece":
        given = given.replace("ston\u03b6", "stone")
    tokenizer = tokenizers[kind]
    ids = encode(tokenizer, given)
    if tokens:
        assert tokenizer.convert_ids_to_tokens(ids) == tokens
    if text:
        assert decode(tokenizer, ids) == text


@pytest.mark.parametrize("kind", ["word", "char", "wordpiece", "unigram"])
def test_rare_tokens_and_tokens_beyond_the_vocabulary_size_are_unknown(kind):
    texts = ["common common common rare \u00e9", "x common"]
    unknown = train_tokenizer(texts, vocab_size=100, kind=kind, min_frequency=2)
    assert unknown.unk_token_id in encode(unknown, "common \u00e9")
    assert unknown.unk_token_id not in encode(unknown, "common")
    assert unknown.unk_token_id not in encode(train_tokenizer(texts, 100, kind=kind, min_frequency=1), "common \u00e9")
    tight = train_tokenizer([*CORPUS, *texts], vocab_size=60, kind=kind)
    assert len(tight) <= 60


def test_byte_level_restores_27_languages(data, tokenizers):
    files = sorted((data / "multilingual").glob("*.txt"))
    texts = [file.read_text(encoding="utf-8") for file in files]
    assert len(files) == 27
    assert tokenizer_report(tokenizers["bpe"], texts)["round_trip_failures"] == 0


# --- Chats -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bpe", "unigram", "char"])
def test_the_assistant_mask_covers_answers_and_their_end_tokens(kind, tokenizers):
    tokenizer = tokenizers[kind]
    chat = [
        ("system", "the sea"),
        ("user", "Sun?"),
        ("assistant", "  Shines.\n\nOn stone! \n"),
        ("user", "A fox"),
        ("assistant", ""),
    ]
    messages = [{"role": role, "content": content} for role, content in chat]
    chat = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    asked = [id for id, mask in zip(chat["input_ids"], chat["assistant_masks"], strict=True) if mask]
    assert decode(tokenizer, asked) == "Shines.\n\nOn stone!<|im_end|><|im_end|>"
    prompt = tokenizer.apply_chat_template(messages[:2], add_generation_prompt=True, return_dict=True)["input_ids"]
    assert chat["input_ids"][: len(prompt)] == prompt
    assert decode(tokenizer, prompt) == (
        "<|im_start|>system\nthe sea<|im_end|>\n<|im_start|>user\nSun?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_message_that_spells_a_control_token_can_be_read_as_text(tokenizers):
    tokenizer = tokenizers["bpe"]
    messages = [{"role": "user", "content": "sun<|im_end|>"}]
    ids = tokenizer.apply_chat_template(messages, sanitize_control_tokens=True, return_dict=True)["input_ids"]
    assert ids.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 1
    assert decode(tokenizer, ids) == "<|im_start|>user\nsun<|im_end|><|im_end|>\n"


def test_a_custom_template_is_read_from_a_file(tmp_path):
    (tmp_path / "own.jinja").write_text("{% for message in messages %}{{ message['content'] }}\n{% endfor %}")
    tokenizer = train("bpe", chat_template=str(tmp_path / "own.jinja"))
    assert tokenizer.apply_chat_template([{"role": "user", "content": "sun"}], tokenize=False) == "sun\n"
    assert "<|im_end|>" not in tokenizer.all_special_tokens


# --- Errors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "syllables"}, "kind must be one of bpe.*, not 'syllables'"),
        ({"vocab_size": 7, "kind": "word"}, "vocab_size 7 is too small"),
        ({"vocab_size": 259}, "259 is too small: 256 bytes and 5 special tokens need 261"),
        ({"vocab_size": 20, "kind": "unigram"}, "No unigram tokenizer of 20 tokens"),
        ({"min_frequency": 0}, "min_frequency must be at least 1, not 0"),
        ({"min_frequency": 10**6, "kind": "char"}, "No character.*1000000 times"),
        ({"special_tokens": ["user"]}, "'user'.*brackets"),
        ({"special_tokens": ["<|>"]}, "brackets"),
        ({"sample_bytes": 10}, "at least 1000"),
        ({"chat_template": "absent.jinja"}, "absent.jinja cannot be read"),
    ],
)
def test_invalid_arguments_are_one_line_errors(changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        train(changes.pop("kind", "bpe"), **changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", TOKENIZER_KINDS)
def test_no_text_is_an_error(kind):
    with pytest.raises(ValueError, match="texts are empty"):
        train_tokenizer(Sample([], 0, 0), kind=kind)


def test_an_invalid_template_is_an_error(tmp_path):
    (tmp_path / "bad.jinja").write_text("{% for message in %}")
    with pytest.raises(ValueError, match=r"bad.jinja does not render"):
        train("bpe", chat_template=str(tmp_path / "bad.jinja"))
