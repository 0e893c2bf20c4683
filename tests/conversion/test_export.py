"""Test exports: files have no trace of this machine, printed code runs, unsupported models are refused."""

import json
import re
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from bad_input import fails
from exported import PROMPTS

from scratch_gpt import ScratchGPTForCausalLM
from scratch_gpt.conversion import export as exports
from scratch_gpt.conversion.export import export
from scratch_gpt.tokenization.tokenizer import encode
from scratch_gpt_training import publish as publish_recipe


def test_no_export_has_a_trace_of_this_machine(trained, onnx):
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


def test_the_code_that_an_onnx_export_prints_runs(onnx, capsys, monkeypatch):
    monkeypatch.setattr(exports, "export", lambda *_, **__: exports.Exported(onnx / "model.onnx", 1e-6))
    publish_recipe.main(["run", "--export", "onnx"])
    said = capsys.readouterr().out.split("Next:\n")[1]
    exec("\n".join(line.removeprefix("    ") for line in said.splitlines()), {})
    assert capsys.readouterr().out == "(1, 1, 512)\n"


def test_folders_that_are_not_models_and_missing_extras_are_refused(trained, tmp_path, capsys, monkeypatch):
    folder, _, _ = trained
    refused = partial(fails, capsys=capsys, main=publish_recipe.main)
    refused([tmp_path, "--export", "onnx"], "not a run or model folder")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    refused([tmp_path, "--export", "gguf"], "is a llama. Only our own models and GPT-2")
    (tmp_path / "adapter_config.json").write_text("{}")
    refused([tmp_path, "--export", "gguf"], "an adapter that is not merged")
    refused([folder, "--export", "gguf", "--repo", "ada/x"], "Remove --repo")
    refused([folder, "--export", "tflite"], "--export 'tflite' is not one of")
    for extra, library in (("onnx", "onnxruntime"), ("gguf", "gguf")):
        monkeypatch.setitem(sys.modules, library, None)
        refused([folder, "--export", extra], rf'{library} is not installed.*pip install "scratch_gpt\[{extra}\]"')


@torch.no_grad()
def test_torchao_in_8_bits_changes_logits_little_and_generates(trained):
    library = pytest.importorskip(
        "torchao.quantization",
        reason="not installed by default, as it prints a warning at every start: pip install torchao",
    )
    folder, model, tokenizer = trained
    small = ScratchGPTForCausalLM.from_pretrained(folder / "model")
    library.quantize_(small, library.Int8WeightOnlyConfig())
    ids = torch.tensor([encode(tokenizer, PROMPTS[3])])
    ours, theirs = model(ids).logits, small(ids).logits
    assert 0 < (ours - theirs).abs().max() < 0.05 * ours.abs().max()
    assert small.generate(ids, max_new_tokens=8, do_sample=False).shape == (1, ids.shape[1] + 8)
