"""Test encoders: gigatoken gives the ids of tokenizers, or is not used."""

import os
import pickle
import random
import signal

import numpy as np
import pytest

from scratch_gpt.tokenization import encoders, fast_worker, training
from scratch_gpt.tokenization.encoders import Encoder, Worker, WorkerStopped, unusual_first
from scratch_gpt.tokenization.tokenizer import END_OF_TEXT, encode_batch
from scratch_gpt.tokenization.training import Sample, sample_texts, train_tokenizer


WORDS = "the cat sat on the mat and I'm sure they'll see 1234567 things, won't they?  "
TEXTS = [
    WORDS * 40,
    "",
    " ",
    f"a {END_OF_TEXT} b<|pad|>",
    "naïve café \u0928\u092e\u0938\u094d\u0924\u0947 \u4f60\u597d \U0001f600\u200d\U0001f680",
    "\x00\x07\ufeff\u2028 \r\n\t x",
    "x" * 3000,
]
fast = pytest.mark.skipif(
    encoders.find_spec("gigatoken") is None, reason='needs gigatoken: pip install "scratch_gpt[fast]"'
)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS * 3, 400, encoder="tokenizers")


def lists(rows) -> list[list[int]]:
    return [[*map(int, ids)] for ids in rows]


@fast
def test_gigatoken_gives_the_ids_of_tokenizers(tokenizer, monkeypatch):
    encoder = Encoder(tokenizer, sample=lambda: TEXTS)
    assert encoder.record is None
    assert lists(encoder(TEXTS)) == encode_batch(tokenizer, TEXTS)
    assert encoder.record is not None and encoder.record.keys() == {"name", "version"}
    assert encoder.record["name"] == "gigatoken"
    monkeypatch.setattr(
        "scratch_gpt.tokenization.tokenizer.ENCODED_PIECE", 50
    )  # long texts are cut at the same places
    assert lists(encoder(TEXTS)) == encode_batch(tokenizer, TEXTS)


@fast
def test_random_texts_have_equal_ids(tokenizer):
    draws, encoder = random.Random(0), Encoder(tokenizer)
    letters = [chr(code) for code in (*range(0x20, 0x250), 0x301, 0x93F, 0x4E00, 0x1F600, *range(0x2000, 0x2030))] + [
        "  ",
        "\n",
        "'s",
        "'LL",
    ]
    texts = ["".join(draws.choices(letters, k=draws.randrange(60))) for _ in range(3000)]
    assert lists(encoder(texts)) == encode_batch(tokenizer, texts)
    assert encoder.record is not None and encoder.record["name"] == "gigatoken"


@fast
def test_one_different_id_rules_gigatoken_out(tokenizer, monkeypatch, capsys):
    encode = Encoder._encode
    monkeypatch.setattr(Encoder, "_encode", lambda self, texts: [ids[:-1] for ids in encode(self, texts)])
    encoder = Encoder(tokenizer, sample=lambda: TEXTS)
    assert lists(encoder(TEXTS)) == encode_batch(tokenizer, TEXTS)
    assert encoder.record is not None and encoder.record["name"] == "tokenizers"
    assert encoder.record["reason"].startswith("gigatoken gives other ids for ")
    assert capsys.readouterr().out.count("\n") == 1


@fast
@pytest.mark.skipif(os.name == "nt", reason="uses SIGKILL")
def test_tokenizers_goes_on_if_the_process_of_gigatoken_is_killed(tokenizer, capsys):
    encoder = Encoder(tokenizer, sample=lambda: TEXTS)
    encoder(TEXTS)
    assert encoder._worker is not None
    os.kill(encoder._worker.process.pid, signal.SIGKILL)
    assert lists(encoder(TEXTS)) == encode_batch(tokenizer, TEXTS) == lists(encoder(TEXTS))
    assert (
        capsys.readouterr().out == "gigatoken stopped (its process has ended): the texts are encoded by tokenizers.\n"
    )
    assert encoder.record is not None and encoder.record["reason"] == "gigatoken stopped (its process has ended)"


@fast
def test_a_copy_of_an_encoder_starts_its_own_process(tokenizer):
    encoder = Encoder(tokenizer, sample=lambda: TEXTS)
    encoder(TEXTS)
    copy = pickle.loads(pickle.dumps(encoder))
    assert copy.record == encoder.record and copy._worker is None
    assert lists(copy(TEXTS)) == encode_batch(tokenizer, TEXTS)
    assert copy._worker.process.pid != encoder._worker.process.pid


@fast
def test_an_error_of_a_request_is_not_the_end_of_the_process():
    worker = Worker()
    with pytest.raises(WorkerStopped, match="KeyError"):
        worker.ask({"do": "encode"}, *encoders.fast_worker.join([b"no tokenizer yet"]))
    assert worker.process.poll() is None
    worker.close()


@fast
def test_an_unpaired_surrogate_is_the_error_of_tokenizers(tokenizer):
    encoder = Encoder(tokenizer, sample=lambda: TEXTS)
    encoder(TEXTS)
    with pytest.raises(ValueError, match="not valid Unicode"):
        encoder(["fine", "\ud800"])
    assert lists(encoder(["fine"])) == encode_batch(tokenizer, ["fine"])


@pytest.mark.parametrize("kind", ["wordpiece", "unigram", "word", "char"])
def test_other_kinds_are_encoded_by_tokenizers_without_a_word(kind, capsys):
    other = train_tokenizer(TEXTS * 3, 400, kind=kind)
    encoder = Encoder(other, sample=lambda: TEXTS)
    assert lists(encoder(TEXTS)) == encode_batch(other, TEXTS)
    assert encoder.record is not None and encoder.record.keys() == {"name", "version"}
    assert encoder.record["name"] == "tokenizers" and capsys.readouterr().out == ""


def test_an_added_word_is_found_in_texts(tokenizer):
    extended = pickle.loads(pickle.dumps(tokenizer))
    extended.add_tokens(["sat on"])
    encoder = Encoder(extended, sample=lambda: TEXTS)
    assert lists(encoder(TEXTS)) == encode_batch(extended, TEXTS)
    assert extended.convert_tokens_to_ids("sat on") in encoder(TEXTS)[0]


def test_without_gigatoken_tokenizers_encodes_and_its_name_is_an_error(tokenizer, monkeypatch):
    monkeypatch.setattr(encoders, "find_spec", lambda name: None)
    monkeypatch.setattr("scratch_gpt.utils.extras.find_spec", lambda name: None)
    encoder = Encoder(tokenizer)
    assert lists(encoder(TEXTS)) == encode_batch(tokenizer, TEXTS)
    with pytest.raises(ImportError, match=r"scratch_gpt\[fast\]"):
        Encoder(tokenizer, "gigatoken")
    with pytest.raises(ValueError, match="must be one of auto, tokenizers, gigatoken"):
        Encoder(tokenizer, "fastest")


def test_the_sample_begins_with_unusual_lines():
    lines = ["plain words"] * 5000
    lines[100] = "x" * 500
    lines[200] = "\u0928\u092e\u0938\u094d"
    lines[300] = f"a {END_OF_TEXT} inside"
    lines[400] = "a \x07 bell"
    text = "\n".join(lines)
    sample = unusual_first([text], [END_OF_TEXT])
    assert sample[0] == lines[100]
    assert {lines[200], lines[300], lines[400], "", END_OF_TEXT} <= set(sample)
    assert "\n\n".join([text]) == "".join(part for part in sample if "plain words\nplain" in part)  # all of it


CORPORA = {
    "english": [WORDS * 300, "It was the best of times, it was the worst of times. " * 200],
    "code": ["def f(x):\n    return {x: [x ** 2, 'a\\n']}  # comment\n\n" * 300],
    "hindi": ["\u0938\u092d\u0940 \u092e\u0928\u0941\u0937\u094d\u092f\u094b\u0902 \u0915\u094b " * 400],
    "chinese": ["\u4eba\u4eba\u751f\u800c\u81ea\u7531\uff0c\u5728\u5c0a\u4e25\u548c\u6743\u5229\u4e0a " * 400],
    "arabic": ["\u064a\u0648\u0644\u062f \u062c\u0645\u064a\u0639 \u0627\u0644\u0646\u0627\u0633 " * 400],
    "russian": [
        "\u0412\u0441\u0435 \u043b\u044e\u0434\u0438 \u0440\u043e\u0436\u0434\u0430\u044e\u0442\u0441\u044f " * 400
    ],
    "korean": ["\ubaa8\ub4e0 \uc778\uac04\uc740 \ud0dc\uc5b4\ub0a0 \ub54c\ubd80\ud130 " * 400],
    "tiny": ["ab ab abc"],
    "repeated": ["aaaa aaa aa a " * 500, "a" * 5000],
    "numbers": [" ".join(str(number * 7919) for number in range(4000))],
    "spaces": ["x \n\t  y" + " " * count for count in range(200)],
    "special": [f"{END_OF_TEXT} <|pad|> [UNK] \x00\x01\xff\u00ff " * 300],
}


@fast
@pytest.mark.parametrize("corpus", CORPORA)
def test_both_trainers_make_the_same_file(corpus, monkeypatch):
    monkeypatch.setattr(training, "BYTES_PER_TOKEN", 0)
    sample = sample_texts(CORPORA[corpus])
    assert corpus == "tiny" or training._fast_merges(sample, 2, 258) is not None
    for size in (262, 300, 600):
        one = train_tokenizer(sample, size, encoder="auto")
        other = train_tokenizer(sample, size, encoder="tokenizers")
        assert one.backend_tokenizer.to_str() == other.backend_tokenizer.to_str()


@fast
def test_gigatoken_trains_where_it_is_faster(monkeypatch):
    sample = sample_texts(CORPORA["english"])
    monkeypatch.setattr(training, "BYTES_PER_TOKEN", 100)
    assert training._fast_merges(sample, 2, 280) is not None
    assert training._fast_merges(sample, 2, sample.bytes_used // training.BYTES_PER_TOKEN + 1) is None
    monkeypatch.setattr(training, "BYTES_PER_TOKEN", 0)
    assert training._fast_merges(sample, 2, 5000) is None  # so many pairs do not occur twice
    assert training._fast_merges(Sample([b"ab"], 2, 2), 1, 258) is None  # nor can two bytes give two merges
    assert np.array_equal(training._letters_of_bytes()[33:126], [chr(byte) for byte in range(33, 126)])


@fast
def test_the_worker_loads_the_tokenizer_again_because_it_keeps_every_word(tokenizer, monkeypatch):
    monkeypatch.setattr(fast_worker, "LOADED_BYTES", 1000)
    state, loaded = {}, []
    fast_worker.answer({"do": "load"}, [encoders.reduced_tokenizer(tokenizer)], state)
    for text in TEXTS:
        _, ids = fast_worker.answer({"do": "encode"}, [*fast_worker.join([text.encode()])], state)
        assert np.frombuffer(ids, dtype=np.uint32).tolist() == encode_batch(tokenizer, [text])[0]
        loaded.append(state["tokenizer"])
    assert len({*map(id, loaded)}) == 2  # again after the first text, which is long
