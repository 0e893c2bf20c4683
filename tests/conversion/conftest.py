"""Fixtures for the tests of conversion."""

import sysconfig

import pytest
import torch
from exported import CONTEXT
from tiny import tiny_config

from scratch_gpt import ScratchGPTForCausalLM
from scratch_gpt.conversion.export import export
from scratch_gpt.data.sources.python_docs import python_documentation
from scratch_gpt.tokenization.tokenizer import encode
from scratch_gpt.tokenization.training import train_tokenizer


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Train a model on some of Python's documentation; return its run folder, the model and its tokenizer."""
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


@pytest.fixture(scope="session")
def onnx(trained):
    """Export the trained model to ONNX and return the folder."""
    pytest.importorskip("onnxruntime")
    folder, _, _ = trained
    assert export(folder, kind="onnx").difference < 1e-3
    return folder / "exports" / "onnx"
