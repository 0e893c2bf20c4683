"""Tiny models and ids for the tests: width 32, 2 blocks, 4 heads, 99 tokens, 64 positions, no dropout."""

import zlib
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from scratch_gpt import ScratchGPTConfig, ScratchGPTForCausalLM


VOCAB = 99
# Ten times GPT-2's initializer range: at width 32 GPT-2's value leaves every output near 0 and hides errors.
INITIALIZER_RANGE = 0.2


def tiny_config(**changes) -> ScratchGPTConfig:
    sizes = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    dropouts = {"embed_dropout": 0.0, "attention_dropout": 0.0, "resid_dropout": 0.0}
    rest = {"max_position_embeddings": 64, "initializer_range": INITIALIZER_RANGE}
    return ScratchGPTConfig(**{**sizes, **dropouts, **rest, **changes})


def shake_vectors(model: torch.nn.Module) -> None:
    """Move biases and norms away from 0 and 1: at these values a test would not notice a missing or swapped vector."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))


def tiny_model(model_class=ScratchGPTForCausalLM, *, seed: int = 0, attention: str = "eager", **changes):
    """Return one of our models in eval mode; a seed gives the same weights with every attention implementation."""
    torch.manual_seed(seed)
    model: PreTrainedModel = model_class._from_config(tiny_config(**changes), attn_implementation=attention)
    shake_vectors(model)
    return model.eval()


def tiny_gpt2(*, seed: int = 0, attention: str = "eager", **changes) -> GPT2LMHeadModel:
    """Return a stock GPT-2 of the same shape in eval mode."""
    torch.manual_seed(seed)
    sizes = {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
    rest = {"bos_token_id": None, "eos_token_id": None, "initializer_range": INITIALIZER_RANGE}
    config = GPT2Config(**{**sizes, **rest, **changes})
    model = GPT2LMHeadModel._from_config(config, attn_implementation=attention)
    shake_vectors(model)
    return model.eval()


def some_ids(rows: int = 2, length: int = 12, *, seed: int = 0, vocab_size: int = VOCAB) -> torch.Tensor:
    """Return random token ids (rows, length)."""
    return torch.randint(vocab_size, (rows, length), generator=torch.Generator().manual_seed(seed))


def padded(texts: list[torch.Tensor], *, side: str = "left", length: int | None = None, pad_id: int = 0) -> dict:
    """Pad 1-D id tensors of uneven length on one side; return input_ids and attention_mask (B, T)."""
    length = length or max(map(len, texts))
    ids, mask = torch.full((len(texts), length), pad_id), torch.zeros(len(texts), length, dtype=torch.long)
    for row, text in enumerate(texts):
        start = length - len(text) if side == "left" else 0
        ids[row, start : start + len(text)] = text
        mask[row, start : start + len(text)] = 1
    return {"input_ids": ids, "attention_mask": mask}


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    """Return a PNG of one gray pixel with extra chunks (type, content) before its end."""
    header, pixel = (1).to_bytes(4, "big") * 2 + bytes((8, 0, 0, 0, 0)), zlib.compress(b"\0\x80")
    chunks = ((b"IHDR", header), (b"IDAT", pixel), *chunks, (b"IEND", b""))
    sizes = (len(content).to_bytes(4, "big") for _, content in chunks)
    checks = (zlib.crc32(kind + content).to_bytes(4, "big") for kind, content in chunks)
    parts = zip(sizes, chunks, checks, strict=True)
    return b"\x89PNG\r\n\x1a\n" + b"".join(size + kind + content + check for size, (kind, content), check in parts)


def remote_class(folder: Path, model_class: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """Load a class from the code saved in a folder, as `trust_remote_code=True` does."""
    return get_class_from_dynamic_module(f"modeling_scratch_gpt.{model_class.__name__}", str(folder))
