"""Test GGUF: llama.cpp generates the same tokens, and features that the format lacks are refused."""

import json
from functools import partial
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from bad_input import fails
from exported import PROMPTS, TIE, greedy_tokens, save
from tiny import tiny_gpt2, tiny_model

from scratch_gpt import ScratchGPTForCausalLM, ScratchGPTForSequenceClassification
from scratch_gpt.conversion.export import export
from scratch_gpt.data.rows.conversations import encode_prompt
from scratch_gpt.tokenization.chat_templates import store_format
from scratch_gpt.tokenization.pre_tokenizers import PRE_TOKENIZERS
from scratch_gpt.tokenization.tokenizer import decode, encode
from scratch_gpt.tokenization.training import train_tokenizer
from scratch_gpt_training import publish as publish_recipe


SCRIPTS = (  # Hindi, Burmese, Tamil, Arabic with vowel signs, Chinese, Latin with a combining mark
    "\u0939\u093f\u0928\u094d\u0926\u0940 \u092d\u093e\u0937\u093e, \u0967\u0968",
    "\u1019\u103c\u1014\u103a\u1019\u102c\u1018\u102c\u101e\u102c",
    "\u0ba4\u0bae\u0bbf\u0bb4\u0bcd (\u0bae\u0bca\u0bb4\u0bbf)",
    "\u0645\u064f\u062d\u064e\u0645\u0651\u064e\u062f",
    "\u4e16\u754c\uff0c\u4eba\u6743\u3002",
    "nai\u0308ve o\u0308l, DAY'S",
)


def llama(file: Path):
    """Start llama.cpp with a file: one thread, no cache between prompts, an fp32 cache of keys and values."""
    library = pytest.importorskip("xllamacpp", reason="llama.cpp is not installed: pip install xllamacpp")
    wanted = library.CommonParams()
    wanted.model.path = str(file)
    wanted.n_parallel = wanted.cpuparams.n_threads = wanted.cpuparams_batch.n_threads = 1
    wanted.cache_type_k = wanted.cache_type_v = library.ggml_type.GGML_TYPE_F32
    wanted.fit_params = wanted.warmup = wanted.cache_prompt = False
    wanted.n_gpu_layers, wanted.verbosity = 0, -1
    return library.Server(wanted)


def complete(server, prompt: str, count: int) -> tuple[str, int]:
    """Return llama.cpp's greedy text, and the number of tokens in the prompt."""
    answer = server.handle_completions({"prompt": prompt, "max_tokens": count, "temperature": 0, "top_k": 1})
    return answer["choices"][0]["text"], answer["usage"]["prompt_tokens"]


def count_equal_tokens(server, model, tokenizer, prompt: str, count: int, tie: float) -> int:
    """Count the first tokens equal in llama.cpp and ours; where they differ, our best two must be a tie."""
    ids = encode(tokenizer, prompt)
    ours, ahead = greedy_tokens(model, ids, count)
    text, seen = complete(server, prompt, count)
    assert seen == len(ids)
    same = next(n for n in range(count, -1, -1) if text.startswith(decode(tokenizer, ours[:n]).rstrip("\ufffd")))
    assert same == count or ahead[same] < tie, (prompt, same, ahead[same])
    return same


@pytest.mark.parametrize("kind", ["gguf", "gguf-f16"])
def test_llama_cpp_writes_the_same_text_as_the_trained_model(trained, kind, capsys):
    folder, model, tokenizer = trained
    publish_recipe.main([str(folder), "--export", kind])
    file = next((folder / "exports" / kind).iterdir())
    assert f"Written: {file}, {file.stat().st_size:,} bytes" in capsys.readouterr().out
    server, tie = llama(file), TIE if kind == "gguf" else 0.1
    prompts = PROMPTS if kind == "gguf" else PROMPTS[:2]
    same = [count_equal_tokens(server, model, tokenizer, prompt, 200, tie) for prompt in prompts]
    assert same.count(200) >= len(prompts) / 2


VARIANTS = {
    "no bias": {"attention_bias": False},
    "more rows than tokens": {"vocab_size": 520},
    "untied": {"tie_word_embeddings": False},
    "narrow": {"intermediate_size": 48, "layer_norm_eps": 0.1},
}


@pytest.mark.parametrize("changes", [*VARIANTS.values(), None], ids=[*VARIANTS, "stock GPT-2"])
def test_every_gpt2_shape_gives_the_same_text_in_llama_cpp(trained, changes, tmp_path):
    _, _, tokenizer = trained
    model = tiny_gpt2(vocab_size=512) if changes is None else tiny_model(**{"vocab_size": 512, **changes})
    file = export(save(model, tokenizer, tmp_path), kind="gguf").file
    ours = ScratchGPTForCausalLM.from_pretrained(tmp_path)
    assert count_equal_tokens(llama(file), ours, tokenizer, "The list", 30, tie=0.1) >= 3


def test_a_chat_has_the_same_tokens_in_llama_cpp(trained, tmp_path):
    tokenizer = train_tokenizer(["a boat at sea"], vocab_size=300)
    model = tiny_model(vocab_size=300, max_position_embeddings=64)
    store_format(tokenizer, "chatml", model)
    server = llama(export(save(model, tokenizer, tmp_path), kind="gguf").file)
    messages = [{"role": "user", "content": " a boat at sea?"}]
    ids = encode_prompt(tokenizer, messages)
    ours, _ = greedy_tokens(model, ids, 20)
    said = server.handle_chat_completions({"messages": messages, "max_tokens": 20, "temperature": 0, "top_k": 1})
    assert said["usage"]["prompt_tokens"] == len(ids)
    assert said["choices"][0]["message"]["content"] == decode(tokenizer, ours)


def tokenize(server, text: str) -> list[int]:
    """Return llama.cpp's ids of a text, without special tokens."""
    content = json.dumps({"content": text, "add_special": False, "parse_special": False}).encode()
    request = Request(f"{server.listening_address}/tokenize", content, {"Content-Type": "application/json"})
    with urlopen(request) as answer:
        return json.load(answer)["tokens"]


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_every_pre_tokenizer_has_the_same_ids_in_llama_cpp(name, tmp_path):
    gguf = pytest.importorskip("gguf")
    texts = [f"{text} It's 2026.\n\n  def f(x):\n\treturn x[13]\n" for text in SCRIPTS]
    tokenizer = train_tokenizer(texts * 9, vocab_size=400, pre_tokenizer=name)
    file = export(save(tiny_model(vocab_size=len(tokenizer)), tokenizer, tmp_path), kind="gguf").file
    stored = gguf.GGUFReader(file).fields["tokenizer.ggml.pre"].contents()
    assert stored == PRE_TOKENIZERS[name].gguf_name
    server = llama(file)
    blocks = ["".join(map(chr, range(n, n + 512))) for n in range(0, 0x10000, 512) if not 0xD800 <= n < 0xE000]
    for text in (*texts, "".join(texts), *blocks):
        assert tokenize(server, text) == encode(tokenizer, text), ascii(text[:40])


def test_features_that_gguf_lacks_are_refused_by_name(trained, tmp_path, capsys):
    pytest.importorskip("gguf")
    _, _, bpe = trained
    chars = train_tokenizer(["a boat at sea"], kind="char", vocab_size=60)
    lower = train_tokenizer(["a boat at sea"], vocab_size=300)
    from tokenizers import Regex, normalizers, pre_tokenizers, processors

    lower.backend_tokenizer.normalizer = normalizers.Lowercase()
    twice = train_tokenizer(["a boat at sea"], vocab_size=300)
    ends = [("<|endoftext|>", 0)]
    twice.backend_tokenizer.post_processor = processors.TemplateProcessing(
        "$A <|endoftext|> <|endoftext|>", None, ends
    )
    ours = {name: train_tokenizer(["a boat at sea"], vocab_size=300, pre_tokenizer=name) for name in PRE_TOKENIZERS}
    split = pre_tokenizers.Split(Regex(r"\p{L}+| "), "isolated")
    levels = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    ours["qwen35"].backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, levels])
    ours["gpt2"].backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    whole = partial(tiny_model, vocab_size=512)
    cases = {
        "and this is a ScratchGPTForSequenceClassification": (whole(ScratchGPTForSequenceClassification), bpe),
        "hidden_act 'relu'": (whole(hidden_act="relu"), bpe),
        "rope_theta": (whole(rope_theta=1e4), bpe),
        "is a WordLevel on Split": (whole(), chars),
        r"has a normalizer \(Lowercase\)": (whole(), lower),
        "adds more to a text than BOS and EOS": (whole(), twice),
        r"pattern that llama.cpp does not have \(Sequence\).*gpt2 or qwen35": (whole(), ours["qwen35"]),
        r"pattern that llama.cpp does not have \(ByteLevel\)": (whole(), ours["gpt2"]),
        "ids up to 511, but the model's vocab_size is 300": (tiny_model(vocab_size=300), bpe),
    }
    for n, (message, (model, tokenizer)) in enumerate(cases.items()):
        folder = save(model, tokenizer, tmp_path / str(n))
        fails([folder, "--export", "gguf"], message, capsys, main=publish_recipe.main)
        assert not list((folder / "exports").iterdir())
