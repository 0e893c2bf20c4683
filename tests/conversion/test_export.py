"""Exports compute what the model computes, in onnxruntime, llama.cpp, CTranslate2, torch.export and torchao."""

import json
import re
import sys
import sysconfig
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from bad_input import fails
from tiny import padded, some_ids, tiny_config, tiny_gpt2, tiny_model

from scratch_gpt import ScratchGPTForCausalLM, ScratchGPTForSequenceClassification, export_gpt2
from scratch_gpt.conversion import export as exports
from scratch_gpt.conversion import onnx_file
from scratch_gpt.conversion.export import export
from scratch_gpt.conversion.onnx_file import Plain
from scratch_gpt.data.rows.conversations import encode_prompt
from scratch_gpt.data.sources.python_docs import python_documentation
from scratch_gpt.generation.generate import generate
from scratch_gpt.tokenization.chat_templates import store_format
from scratch_gpt.tokenization.tokenizer import decode, encode
from scratch_gpt.tokenization.training import train_tokenizer
from scratch_gpt_training import publish as publish_recipe


CONTEXT = 256
PROMPTS = ["The", "class Node:\n\n    def  ", "it's 12345 caf\u00e9s\t\u6f22 <x>", "Return a list of"]
TIE = (
    0.01  # nearer than this, the best two tokens are decided by how a library rounds (ggml's GELU is a table in fp16)
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder around a model that has learned some of Python's documentation, the model, and its tokenizer."""
    documents = python_documentation(sysconfig.get_path("stdlib"), sysconfig.get_python_version())
    text = "".join(document["text"] for document, _ in zip(documents, range(12), strict=False))[:60_000]
    tokenizer = train_tokenizer([text], vocab_size=512)
    ids = torch.tensor(encode(tokenizer, text))
    torch.manual_seed(0)
    sizes = {"vocab_size": 512, "hidden_size": 64, "max_position_embeddings": CONTEXT, "initializer_range": 0.02}
    model = ScratchGPTForCausalLM(tiny_config(**sizes, bos_token_id=0, eos_token_id=0, pad_token_id=1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        starts = torch.randint(len(ids) - CONTEXT, (4,)).tolist()
        rows = torch.stack([ids[start : start + CONTEXT] for start in starts])
        model(rows, labels=rows).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    folder = tmp_path_factory.mktemp("trained") / "run"
    model.eval().save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return folder, model, tokenizer


def save(model, tokenizer, folder: Path) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def greedily(model, ids: list[int], count: int) -> tuple[list[int], list[float]]:
    """The `count` likeliest tokens in turn, and by how much each was ahead of the second."""
    whole = generate(model, torch.tensor([ids]), max_new_tokens=count, temperature=0)
    with torch.no_grad():
        best = model(whole[:, :-1]).logits[0, len(ids) - 1 :].topk(2).values
    return whole[0, len(ids) :].tolist(), (best[:, 0] - best[:, 1]).tolist()


# --- GGUF --------------------------------------------------------------------------------------------------------


def llama(file: Path):
    """llama.cpp on a file: one thread, no cache from prompt to prompt, and that of attention in fp32."""
    library = pytest.importorskip("xllamacpp", reason="llama.cpp's wheel is not there: pip install xllamacpp")
    wanted = library.CommonParams()
    wanted.model.path = str(file)
    wanted.n_parallel = wanted.cpuparams.n_threads = wanted.cpuparams_batch.n_threads = 1
    wanted.cache_type_k = wanted.cache_type_v = library.ggml_type.GGML_TYPE_F32
    wanted.fit_params = wanted.warmup = wanted.cache_prompt = False
    wanted.n_gpu_layers, wanted.verbosity = 0, -1
    return library.Server(wanted)


def complete(server, prompt: str, count: int) -> tuple[str, int]:
    """llama.cpp's likeliest text, and the tokens it saw in the prompt."""
    answer = server.handle_completions({"prompt": prompt, "max_tokens": count, "temperature": 0, "top_k": 1})
    return answer["choices"][0]["text"], answer["usage"]["prompt_tokens"]


def same_tokens(server, model, tokenizer, prompt: str, count: int, tie: float) -> int:
    """How many tokens llama.cpp and we begin with alike; where they part, our best two have to be a tie."""
    ids = encode(tokenizer, prompt)
    ours, ahead = greedily(model, ids, count)
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
    same = [same_tokens(server, model, tokenizer, prompt, 200, tie) for prompt in prompts]
    assert same.count(200) >= len(prompts) / 2


VARIANTS = {
    "no bias": {"attention_bias": False},
    "more rows than tokens": {"vocab_size": 520},
    "untied": {"tie_word_embeddings": False},
    "narrow": {"intermediate_size": 48, "layer_norm_eps": 0.1},
}


@pytest.mark.parametrize("changes", [*VARIANTS.values(), None], ids=[*VARIANTS, "stock GPT-2"])
def test_every_shape_that_gpt2_has_is_the_same_in_llama_cpp(trained, changes, tmp_path):
    _, _, tokenizer = trained
    model = tiny_gpt2(vocab_size=512) if changes is None else tiny_model(**{"vocab_size": 512, **changes})
    file = export(save(model, tokenizer, tmp_path), kind="gguf").file
    ours = ScratchGPTForCausalLM.from_pretrained(tmp_path)
    assert same_tokens(llama(file), ours, tokenizer, "The list", 30, tie=0.1) >= 3


def test_a_chat_is_the_same_chat_in_llama_cpp(trained, tmp_path):
    tokenizer = train_tokenizer(["a boat at sea"], vocab_size=300)
    model = tiny_model(vocab_size=300, max_position_embeddings=64)
    store_format(tokenizer, "chatml", model)
    server = llama(export(save(model, tokenizer, tmp_path), kind="gguf").file)
    messages = [{"role": "user", "content": " a boat at sea?"}]
    ids = encode_prompt(tokenizer, messages)
    ours, _ = greedily(model, ids, 20)
    said = server.handle_chat_completions({"messages": messages, "max_tokens": 20, "temperature": 0, "top_k": 1})
    assert said["usage"]["prompt_tokens"] == len(ids)
    assert said["choices"][0]["message"]["content"] == decode(tokenizer, ours)


# --- ONNX --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def onnx(trained):
    """The folder of the trained model's ONNX file."""
    pytest.importorskip("onnxruntime")
    folder, _, _ = trained
    assert export(folder, kind="onnx").difference < 1e-3
    return folder / "exports" / "onnx"


def session(folder: Path):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])


@torch.no_grad()
def test_onnx_gives_the_models_logits_for_any_batch_length_and_padding(trained, onnx):
    _, model, _ = trained
    run = session(onnx)
    assert run.get_modelmeta().custom_metadata_map == {"context": str(CONTEXT)}
    for side in ("left", "right"):
        rows = padded([some_ids(1, length, seed=length)[0] for length in (CONTEXT, 5, 1, 17)], side=side)
        theirs = run.run(["logits"], {name: rows[name].numpy() for name in ("input_ids", "attention_mask")})[0]
        difference = (torch.from_numpy(theirs) - model(**rows).logits).abs()
        assert difference[rows["attention_mask"].bool()].max() < 1e-3
    too_long = np.zeros((1, CONTEXT + 1), dtype=np.int64)
    with pytest.raises(Exception, match="out of data bounds"):
        run.run(None, {"input_ids": too_long, "attention_mask": too_long + 1})


def test_a_classifier_is_exported_with_its_labels(tmp_path):
    run = pytest.importorskip("onnxruntime").InferenceSession
    labels = {"id2label": {0: "ham", 1: "spam"}, "label2id": {"ham": 0, "spam": 1}}
    model = tiny_model(ScratchGPTForSequenceClassification, num_hidden_layers=1, **labels)
    assert onnx_file.write_onnx(model, tmp_path / "model.onnx") < 1e-4
    known = run(str(tmp_path / "model.onnx")).get_modelmeta().custom_metadata_map
    assert json.loads(known["labels"]) == ["ham", "spam"]


def test_no_export_holds_a_trace_of_this_machine(trained, onnx):
    library = pytest.importorskip("onnx")
    folder, _, _ = trained
    export(folder, kind="gguf")
    there = {path.name: path.read_bytes() for path in (folder / "exports").rglob("*.*") if path.is_file()}
    assert there.keys() >= {"model.onnx", "model-f32.gguf", "tokenizer.json", "tokenizer_config.json"}
    places = [str(place).encode() for place in (folder, Path.home(), Path.cwd(), sys.prefix)]
    assert not [name for name, content in there.items() if any(place in content for place in places)]
    graph = library.load(onnx / "model.onnx")
    del graph.graph.initializer[:]  # numbers
    assert not re.search(r"\.py|stack_trace|doc_string|torch\.|/\w+/", str(graph))


def test_an_onnx_file_that_disagrees_is_not_kept(trained, onnx, tmp_path, monkeypatch):
    folder, _, _ = trained
    with pytest.raises(ValueError, match=r"differs from the model by .* was not kept"):
        onnx_file._compare(tiny_model(vocab_size=512, max_position_embeddings=CONTEXT), onnx / "model.onnx")

    def disagrees(model, file):
        file.write_bytes(b"half")
        raise ValueError("differs")

    before = (onnx / "model.onnx").read_bytes()
    monkeypatch.setattr(exports, "write_onnx", disagrees)
    with pytest.raises(ValueError, match="differs"):
        export(folder, kind="onnx")
    assert (onnx / "model.onnx").read_bytes() == before and not list((folder / "exports").glob(".writing-*"))


def test_the_lines_that_an_onnx_export_prints_run(onnx, capsys, monkeypatch):
    monkeypatch.setattr(exports, "export", lambda *_, **__: exports.Exported(onnx / "model.onnx", 1e-6))
    publish_recipe.main(["run", "--export", "onnx"])
    said = capsys.readouterr().out.split("Next:\n")[1]
    exec("\n".join(line.removeprefix("    ") for line in said.splitlines()), {})
    assert capsys.readouterr().out == "(1, 1, 512)\n"


# --- What is refused ---------------------------------------------------------------------------------------------


def test_what_gguf_cannot_express_is_refused_by_name(trained, tmp_path, capsys):
    pytest.importorskip("gguf")
    _, _, bpe = trained
    chars = train_tokenizer(["a boat at sea"], kind="char", vocab_size=60)
    lower = train_tokenizer(["a boat at sea"], vocab_size=300)
    from tokenizers import normalizers, processors

    lower.backend_tokenizer.normalizer = normalizers.Lowercase()
    twice = train_tokenizer(["a boat at sea"], vocab_size=300)
    ends = [("<|endoftext|>", 0)]
    twice.backend_tokenizer.post_processor = processors.TemplateProcessing(
        "$A <|endoftext|> <|endoftext|>", None, ends
    )
    whole = partial(tiny_model, vocab_size=512)
    cases = {
        "and this is a ScratchGPTForSequenceClassification": (whole(ScratchGPTForSequenceClassification), bpe),
        "hidden_act 'relu'": (whole(hidden_act="relu"), bpe),
        "rope_theta": (whole(rope_theta=1e4), bpe),
        "is a WordLevel on Split": (whole(), chars),
        r"has a normalizer \(Lowercase\)": (whole(), lower),
        "adds more to a text than BOS and EOS": (whole(), twice),
        "ids up to 511, but the model's vocab_size is 300": (tiny_model(vocab_size=300), bpe),
    }
    for n, (message, (model, tokenizer)) in enumerate(cases.items()):
        folder = save(model, tokenizer, tmp_path / str(n))
        fails([folder, "--export", "gguf"], message, capsys, main=publish_recipe.main)
        assert not list((folder / "exports").iterdir())


def test_folders_that_are_not_models_and_missing_extras_are_refused(trained, tmp_path, capsys, monkeypatch):
    folder, _, _ = trained
    refused = partial(fails, capsys=capsys, main=publish_recipe.main)
    refused([tmp_path, "--export", "onnx"], "not a run or model folder")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    refused([tmp_path, "--export", "gguf"], "is a llama; only our own models and GPT-2")
    (tmp_path / "adapter_config.json").write_text("{}")
    refused([tmp_path, "--export", "gguf"], "an adapter that is not merged")
    refused([folder, "--export", "gguf", "--repo", "ada/x"], "leave --repo out")
    refused([folder, "--export", "tflite"], "invalid choice: 'tflite'")
    for extra, library in (("onnx", "onnxruntime"), ("gguf", "gguf")):
        monkeypatch.setitem(sys.modules, library, None)
        refused([folder, "--export", extra], rf'{library} is not installed.*pip install "scratch_gpt\[{extra}\]"')


# --- Other clients -----------------------------------------------------------------------------------------------


@torch.no_grad()
def test_torch_export_gives_the_same_logits_at_any_size():
    model = tiny_model()
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence", max=64)}
    ids = some_ids()
    program = torch.export.export(Plain(model), (ids, torch.ones_like(ids)), dynamic_shapes=(sizes, sizes)).module()
    for side in ("left", "right"):
        rows = padded([some_ids(1, length, seed=length)[0] for length in (64, 3, 30)], side=side)
        assert torch.allclose(program(rows["input_ids"], rows["attention_mask"]), model(**rows).logits, atol=1e-5)


def test_ctranslate2_writes_the_same_tokens(trained, tmp_path, monkeypatch):
    library = pytest.importorskip("ctranslate2", reason="146 MB, not in dev: pip install ctranslate2")
    from ctranslate2.converters import transformers as converter

    folder, model, tokenizer = trained
    export_gpt2(folder / "model", tmp_path / "stock")
    again = type(tokenizer).from_pretrained(tmp_path / "stock")
    again.unk_token = again.eos_token  # which no text has, and CTranslate2 wants
    again.save_pretrained(tmp_path / "stock")
    words = ["ct2", "--model", str(tmp_path / "stock"), "--output_dir", str(tmp_path / "ct2")]
    monkeypatch.setattr("sys.argv", words)
    converter.main()
    generator = library.Generator(str(tmp_path / "ct2"), intra_threads=1)
    ids = encode(tokenizer, PROMPTS[0])
    ours, ahead = greedily(model, ids, 200)
    how = {"max_length": 200, "include_prompt_in_result": False, "end_token": []}
    theirs = generator.generate_batch([tokenizer.convert_ids_to_tokens(ids)], **how)[0].sequences_ids[0]
    same = next((n for n in range(200) if theirs[n : n + 1] != ours[n : n + 1]), 200)
    assert same == 200 or ahead[same] < TIE


@torch.no_grad()
def test_torchao_in_8_bits_changes_logits_little_and_generates(trained):
    library = pytest.importorskip("torchao.quantization", reason="warns at every start: pip install torchao, then out")
    folder, model, tokenizer = trained
    small = ScratchGPTForCausalLM.from_pretrained(folder / "model")
    library.quantize_(small, library.Int8WeightOnlyConfig())
    ids = torch.tensor([encode(tokenizer, PROMPTS[3])])
    ours, theirs = model(ids).logits, small(ids).logits
    assert 0 < (ours - theirs).abs().max() < 0.05 * ours.abs().max()
    assert small.generate(ids, max_new_tokens=8, do_sample=False).shape == (1, ids.shape[1] + 8)
