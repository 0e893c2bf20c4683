"""Test pre-tokenizers: round trips are exact, letters keep their vowel signs, and transformers gives the same ids."""

import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_model
from tokenizers import Regex, pre_tokenizers

from scratch_gpt.conversion.gpt2_export import export_gpt2
from scratch_gpt.tokenization.pre_tokenizers import PRE_TOKENIZERS, find_pre_tokenizer, make_pre_tokenizer
from scratch_gpt.tokenization.tokenizer import decode, encode, extend_tokenizer, fingerprint, load_tokenizer
from scratch_gpt.tokenization.training import train_tokenizer


HINDI = "\u0939\u093f\u0928\u094d\u0926\u0940"  # consonants with vowel signs and a virama
BURMESE = "\u1019\u103c\u1014\u103a\u1019\u102c"
LINES = [
    f"{HINDI} \u092d\u093e\u0937\u093e {BURMESE}, nai\u0308ve, 2026\u0967\u0968!\n\n",
    "def shine(sun_2):\n\treturn {'sea': 13 + sun_2}  # It's DAY'S end\r\n",
    "The shiny sun shines on the sea.   \n",
]
TEXT = "".join(LINES)


@pytest.fixture(scope="module", params=PRE_TOKENIZERS)
def trained(request):
    return request.param, train_tokenizer(LINES * 20, 420, ["<|user|>"], pre_tokenizer=request.param)


def words(name: str, text: str) -> list[str]:
    """Return the pre-tokens of a text."""
    return [text[start:end] for _, (start, end) in make_pre_tokenizer(name).pre_tokenize_str(text)]


# --- What is one pre-token ---------------------------------------------------------------------------------------


def test_a_word_with_vowel_signs_is_one_pre_token_except_for_gpt2():
    for word in (HINDI, BURMESE, "nai\u0308ve"):
        assert words("qwen35", f"{word} {word}") == [word, f" {word}"]
        assert len(words("gpt2", word)) > 1


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_pre_tokens_keep_every_character_in_order(name):
    assert "".join(words(name, TEXT)) == TEXT


def test_digits_signs_and_line_ends():
    assert words("gpt2", "x = 2026.\n\n  self.sun") == ["x", " =", " 2026", ".", "\n\n ", " self", ".", "sun"]
    assert words("qwen35", "x = 2026.\n\n  self.sun") == [
        *("x", " =", " ", "2", "0", "2", "6", ".\n\n"),
        *(" ", " self", ".sun"),
    ]
    assert words("qwen35", "It's DAY'S") == ["It", "'s", " DAY", "'S"]
    assert words("gpt2", "It's DAY'S") == ["It", "'s", " DAY", "'", "S"]


def test_merges_join_consonants_and_vowel_signs():
    sizes = {}
    for name in PRE_TOKENIZERS:
        tokenizer = train_tokenizer([f"{HINDI} {HINDI} "] * 50, 400, pre_tokenizer=name)
        sizes[name] = len(encode(tokenizer, f" {HINDI}"))
    assert sizes["qwen35"] == 1 < sizes["gpt2"]


# --- Round trips -------------------------------------------------------------------------------------------------


def test_every_character_of_the_basic_plane_is_restored(trained):
    _, tokenizer = trained
    characters = [chr(n) for n in range(0x10000) if not 0xD800 <= n < 0xE000]
    for text in ("".join(characters), "a".join(characters), " ".join(characters), "\u0915".join(characters)):
        assert decode(tokenizer, encode(tokenizer, text)) == text


pieces = st.sampled_from(
    [*TEXT, "\u093e", "\u200d", "\ufe0f", "\U0001f31e", "\u2028", "\x85", "\xa0", "'S", "<|user|>"]
)


@given(text=st.lists(st.one_of(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), pieces)).map("".join))
@settings(max_examples=200, deadline=None)
def test_random_text_is_restored_and_never_special(trained, text):
    _, tokenizer = trained
    ids = encode(tokenizer, text)
    assert decode(tokenizer, ids) == text
    assert not {*ids} & {*tokenizer.all_special_ids}
    allowed = encode(tokenizer, text, ["<|user|>"])
    assert allowed.count(tokenizer.convert_tokens_to_ids("<|user|>")) == text.count("<|user|>")
    assert decode(tokenizer, allowed) == text


def test_random_bytes_and_lone_surrogates(trained):
    _, tokenizer = trained
    text = bytes(n * 37 % 256 for n in range(3000)).decode("latin-1")
    assert decode(tokenizer, encode(tokenizer, text)) == text
    with pytest.raises(ValueError, match="half of a character"):
        encode(tokenizer, f"{HINDI}\ud800")


# --- Names and files ---------------------------------------------------------------------------------------------


def test_a_pre_tokenizer_is_recognized_in_a_file(trained):
    name, tokenizer = trained
    content = json.loads(tokenizer.backend_tokenizer.to_str())["pre_tokenizer"]
    assert find_pre_tokenizer(content) == name
    assert find_pre_tokenizer({"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}) == "gpt2"
    other = pre_tokenizers.Split(Regex(r"\p{L}+"), "isolated")
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for unknown in (whole, pre_tokenizers.Sequence([other, whole]), pre_tokenizers.ByteLevel(add_prefix_space=True)):
        assert find_pre_tokenizer(json.loads(unknown.__getstate__())) is None
    assert find_pre_tokenizer({}) is None


LOAD = """
import json, sys
from transformers import AutoTokenizer
for folder in sys.argv[2:]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert "scratch_gpt" not in sys.modules
    print(json.dumps(tokenizer(sys.argv[1], add_special_tokens=False)["input_ids"]))
"""


def test_stock_transformers_gives_the_same_ids(trained, tmp_path):
    _, tokenizer = trained
    extend_tokenizer(tokenizer, ["<|tool|>"], special=True)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    export_gpt2(tiny_model(vocab_size=len(tokenizer)), tmp_path / "gpt2", tokenizer)
    folders = [str(tmp_path / name) for name in ("tokenizer", "gpt2")]
    command = [sys.executable, "-c", LOAD, TEXT, *folders]
    lines = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path).stdout.splitlines()
    assert [json.loads(line) for line in lines] == [encode(tokenizer, TEXT)] * 2
    assert fingerprint(load_tokenizer(folders[0])) == fingerprint(tokenizer)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pre_tokenizer": "gpt-2"}, "pre_tokenizer must be one of gpt2, qwen35, not 'gpt-2'"),
        ({"pre_tokenizer": "qwen35", "kind": "char"}, "pre_tokenizer only works with kind='bpe', not with 'char'"),
    ],
)
def test_an_invalid_pre_tokenizer_is_a_one_line_error(changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        train_tokenizer(LINES, 300, **changes)
    assert "\n" not in str(caught.value)
