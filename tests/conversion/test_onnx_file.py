"""Test ONNX: the file has the logits of the model at any size, or is not kept."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from exported import CONTEXT
from tiny import padded, some_ids, tiny_model

from scratch_gpt import ScratchGPTForSequenceClassification
from scratch_gpt.conversion import export as exports
from scratch_gpt.conversion import onnx_file
from scratch_gpt.conversion.export import export
from scratch_gpt.conversion.onnx_file import Plain


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


def test_an_onnx_file_with_other_logits_is_not_kept(trained, onnx, tmp_path, monkeypatch):
    folder, _, _ = trained
    with pytest.raises(ValueError, match=r"differs from the model by .* was deleted"):
        onnx_file._compare(tiny_model(vocab_size=512, max_position_embeddings=CONTEXT), onnx / "model.onnx")

    def disagrees(model, file):
        file.write_bytes(b"half")
        raise ValueError("differs")

    before = (onnx / "model.onnx").read_bytes()
    monkeypatch.setattr(exports, "write_onnx", disagrees)
    with pytest.raises(ValueError, match="differs"):
        export(folder, kind="onnx")
    assert (onnx / "model.onnx").read_bytes() == before and not list((folder / "exports").glob(".writing-*"))


@torch.no_grad()
def test_torch_export_gives_the_same_logits_at_any_size():
    model = tiny_model()
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence", max=64)}
    ids = some_ids()
    program = torch.export.export(Plain(model), (ids, torch.ones_like(ids)), dynamic_shapes=(sizes, sizes)).module()
    for side in ("left", "right"):
        rows = padded([some_ids(1, length, seed=length)[0] for length in (64, 3, 30)], side=side)
        assert torch.allclose(program(rows["input_ids"], rows["attention_mask"]), model(**rows).logits, atol=1e-5)
