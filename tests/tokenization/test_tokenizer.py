"""Test tokenizers: nothing is lost, spelled special tokens are text, added tokens do not change old ones."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_gpt2, tiny_model
from transformers import AutoTokenizer

from scratch_gpt.tokenization.tokenizer import (
    END_OF_TEXT,
    PAD,
    check_vocabulary,
    decode,
    encode,
    encode_batch,
    extend_tokenizer,
    fingerprint,
    load_tokenizer,
    tokenizer_report,
)
from scratch_gpt.tokenization.training import train_tokenizer


CORPUS = [
    "the shiny sun shines on the sea " * 20,
    "a sea of shiny stones, a sun of stone " * 20,
    "naïve 世界 \U0001f31e",
]
SPECIALS = [END_OF_TEXT, PAD, "<|user|>"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(CORPUS, vocab_size=320, special_tokens=["<|user|>"])


# All of Unicode except lone surrogates, which are not text.
any_text = st.text(st.characters(exclude_categories=["Cs"]))
with_specials = st.lists(st.one_of(any_text, st.sampled_from(SPECIALS))).map("".join)


@given(text=with_specials)
@settings(max_examples=200, deadline=None)
def test_any_text_is_restored_by_decoding(tokenizer, text):
    assert decode(tokenizer, encode(tokenizer, text)) == text


@given(text=with_specials)
@settings(max_examples=100, deadline=None)
def test_special_spellings_are_plain_text_unless_allowed(tokenizer, text):
    special_ids = set(tokenizer.all_special_ids)
    assert not special_ids & set(encode(tokenizer, text))
    allowed = encode(tokenizer, text, allowed_special=[END_OF_TEXT])
    assert allowed.count(tokenizer.eos_token_id) == text.count(END_OF_TEXT)
    assert not (special_ids - {tokenizer.eos_token_id}) & set(allowed)
    assert decode(tokenizer, allowed) == text


def test_allowing_an_unknown_token_is_an_error(tokenizer):
    with pytest.raises(ValueError, match="nope"):
        encode(tokenizer, "a", allowed_special=["<|nope|>"])


def test_batches_equal_single_texts(tokenizer):
    assert encode_batch(tokenizer, CORPUS) == [encode(tokenizer, text) for text in CORPUS]
    assert encode_batch(tokenizer, []) == []


def test_a_long_text_is_encoded_in_pieces_and_gives_the_same_ids(tokenizer, monkeypatch):
    text = "Once upon a time,  there were 3 brothers...\n\n  Their names are not known; ours   aren't to them. " * 9
    whole = encode_batch(tokenizer, [text, "short"])
    monkeypatch.setattr("scratch_gpt.tokenization.tokenizer.ENCODED_PIECE", 40)
    assert encode_batch(tokenizer, [text, "short"]) == whole
    assert decode(tokenizer, encode_batch(tokenizer, ["x" * 95])[0]) == "x" * 95  # no space at which to split


def test_encoding_plain_text_does_not_change_the_tokenizer(tokenizer):
    encode_batch(tokenizer, [END_OF_TEXT])
    assert tokenizer(END_OF_TEXT)["input_ids"] == [tokenizer.eos_token_id]


def test_training_is_deterministic_and_compresses():
    how = {"vocab_size": 320, "special_tokens": ["<|user|>"]}
    tokenizer, again = train_tokenizer(CORPUS, **how), train_tokenizer(CORPUS, **how)
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    assert len(encode(tokenizer, CORPUS[0])) < len(CORPUS[0].encode()) / 2
    assert tokenizer.eos_token_id == 0 and tokenizer.pad_token_id == 1


def test_saved_and_reloaded_is_identical(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    assert again.special_tokens_map == tokenizer.special_tokens_map
    text = "sun <|user|> sea" + END_OF_TEXT
    assert encode(again, text, [END_OF_TEXT]) == encode(tokenizer, text, [END_OF_TEXT])


def test_a_fingerprint_covers_everything_that_decides_the_ids(tokenizer, tmp_path):
    first = fingerprint(tokenizer)
    tokenizer(["sun", "the shiny sea"], padding=True, truncation=True, max_length=2)  # padding in a call has no effect
    tokenizer.save_pretrained(tmp_path)
    assert fingerprint(tokenizer) == fingerprint(load_tokenizer(tmp_path)) == first
    assert fingerprint(train_tokenizer(CORPUS, vocab_size=280, special_tokens=["<|user|>"])) != first
    for change in ({"eos_token": PAD}, {"chat_template": "{{ messages }}"}, {"extra_special_tokens": ["<|more|>"]}):
        assert fingerprint(AutoTokenizer.from_pretrained(tmp_path, **change)) != first


def test_gpt2s_fingerprint_survives_saving(data, tmp_path):
    gpt2 = load_tokenizer(data / "gpt2-tokenizer")
    gpt2.save_pretrained(tmp_path)
    assert fingerprint(load_tokenizer(tmp_path)) == fingerprint(gpt2)


def test_gpt2_tokenizer_gives_its_known_ids(data):
    gpt2 = load_tokenizer(data / "gpt2-tokenizer")
    known = [40, 367, 2885, 1464, 1807, 3619, 402, 271, 10899, 2138, 257, 7026, 15632]
    assert encode(gpt2, "I HAD always thought Jack Gisburn rather a cheap genius") == known
    assert encode(gpt2, END_OF_TEXT, [END_OF_TEXT]) == [50256]
    assert 50256 not in encode(gpt2, END_OF_TEXT)


def test_every_language_is_restored_by_decoding(data, tokenizer):
    for file in sorted((data / "multilingual").glob("*.txt")):
        text = file.read_text(encoding="utf-8")
        assert decode(tokenizer, encode(tokenizer, text)) == text, file.name


def test_too_small_a_vocabulary_is_an_error():
    with pytest.raises(ValueError, match="100 is too small.*258"):
        train_tokenizer(CORPUS, vocab_size=100)


def test_a_vocabulary_larger_than_the_models_is_an_error(tokenizer):
    check_vocabulary(tokenizer, len(tokenizer))
    with pytest.raises(ValueError, match=f"ids up to {len(tokenizer) - 1}.*vocab_size is 100"):
        check_vocabulary(tokenizer, 100)


def test_a_missing_tokenizer_is_a_one_line_error(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    for name in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ValueError, match="No tokenizer could be loaded") as caught:
            load_tokenizer(name)
        assert "\n" not in str(caught.value)


# --- More tokens -------------------------------------------------------------------------------------------------


@pytest.fixture
def small():
    return train_tokenizer(CORPUS, vocab_size=262)  # tests change it


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("make", [tiny_model, tiny_gpt2])
@pytest.mark.parametrize("padding", [0, 1, 9])  # rows of the model without a token
def test_new_embedding_rows_are_the_mean_and_old_ones_stay(make, tied, special, padding, small):
    model = make(vocab_size=len(small) + padding, tie_word_embeddings=tied)
    old = {table: part.weight.detach()[: len(small)].clone() for table, part in tables(model).items()}
    before = len(small)
    assert extend_tokenizer(small, ["<|a|>", "<|b|>", "<|a|>", "t"], model, special=False) == 2
    assert extend_tokenizer(small, ["<|c|>"], special=special) == 1
    assert len(small) == before + 3
    assert model.config.vocab_size == model.get_input_embeddings().num_embeddings == before + max(2, padding)
    for table, part in tables(model).items():
        weight = part.weight.detach()
        assert len(weight) == model.config.vocab_size
        assert torch.equal(weight[:before], old[table])
        assert torch.equal(weight[before : before + 2], old[table].mean(0).expand(2, -1))
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied
    ids = torch.tensor([encode(small, "sun <|a|>sea")])
    assert before in ids and model(ids).logits.shape[-1] == model.config.vocab_size


def tables(model) -> dict:
    return {"input": model.get_input_embeddings(), "output": model.get_output_embeddings()}


def test_tokens_added_as_special_or_as_words_survive_saving(small, tmp_path):
    text = "sun <|a|> shiny <|b|>"
    plain = encode(small, text)
    assert extend_tokenizer(small, ["<|a|>"], special=True) == 1
    assert encode(small, text) == plain  # a spelled special token is text
    assert extend_tokenizer(small, ["<|b|>"]) == 1
    assert extend_tokenizer(small, ["<|a|>", "<|b|>"]) == 0
    small.save_pretrained(tmp_path)
    again = load_tokenizer(tmp_path)
    assert fingerprint(again) == fingerprint(small)
    a, b = again.convert_tokens_to_ids(["<|a|>", "<|b|>"])
    assert encode(again, text).count(b) == 1 and a not in encode(again, text)
    assert encode(again, text, ["<|a|>"]).count(a) == 1
    assert decode(again, encode(again, text, ["<|a|>"])) == text


def test_tokens_that_cannot_be_added_are_errors_and_change_nothing(small):
    before = fingerprint(small)
    for tokens, model, message in [
        ([""], None, "empty token"),
        (["t", "<|a|>"], None, "'t' is already a word"),
        (["<|a|>"], tiny_model(vocab_size=99), "vocab_size is 99"),
    ]:
        with pytest.raises(ValueError, match=message):
            extend_tokenizer(small, tokens, model, special=True)
    assert fingerprint(small) == before


# --- The report --------------------------------------------------------------------------------------------------


def test_the_report_counts_correctly(tokenizer, small):
    texts = ["the sun", "a stone \U0001f31e"]
    report = tokenizer_report(tokenizer, texts, {"small": small}, CORPUS[:2], rare=25)
    tokens = len(encode(tokenizer, texts[0])) + len(encode(tokenizer, texts[1]))
    assert (report["texts"], report["bytes"], report["tokens"]) == (2, 19, tokens)
    assert report["bytes_per_token"] == 19 / tokens
    assert report["peers"] == {"small": 19 / sum(map(len, encode_batch(small, texts)))}
    assert report["round_trip_failures"] == report["unknown"] == 0
    assert report["fingerprint"] == fingerprint(tokenizer)
    counts = [id for text in CORPUS[:2] for id in encode(tokenizer, text)]
    ordinary = set(range(len(tokenizer))) - set(tokenizer.all_special_ids)
    assert report["unused"]["count"] == len(ordinary - set(counts))
    few = {id for id in ordinary if 0 < counts.count(id) < 25}
    assert few and set(tokenizer.convert_tokens_to_ids(report["under_trained"]["tokens"])) == few


def test_a_report_without_text_is_an_error(tokenizer):
    with pytest.raises(ValueError, match="held-out texts are empty"):
        tokenizer_report(tokenizer, [])
