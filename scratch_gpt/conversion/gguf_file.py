"""Write a GGUF file for llama.cpp."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
from transformers import PreTrainedTokenizerBase

from ..modeling.modeling_scratch_gpt import ScratchGPTBlock, ScratchGPTForCausalLM, ScratchGPTPreTrainedModel
from ..tokenization.pre_tokenizers import PRE_TOKENIZERS, find_pre_tokenizer
from ..tokenization.tokenizer import check_vocabulary
from .gpt2_export import check_exportable_to_gpt2
from .load import own_class


def write_gguf(
    model: ScratchGPTPreTrainedModel, tokenizer: PreTrainedTokenizerBase, file: Path, *, half: bool = False
) -> None:
    """Write a language model and its tokenizer in llama.cpp's gpt2 architecture; `half` stores matrices as f16.

    Raises:
        ValueError: llama.cpp's GPT-2 cannot represent the model. Nothing is written then.
    """
    import gguf

    check_exportable_to_gpt2(model)
    if own_class(model) is not ScratchGPTForCausalLM:
        raise ValueError(
            f"A GGUF file holds a language model, and this is a {type(model).__name__}. Export it as onnx."
        )
    config = model.config
    vocabulary = _read_vocabulary(tokenizer, config.vocab_size)
    writer = gguf.GGUFWriter(file, "gpt2")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(cast(int, config.intermediate_size))
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_layer_norm_eps(config.layer_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16 if half else gguf.LlamaFileType.ALL_F32)

    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary["pre_tokenizer"])
    writer.add_token_list(vocabulary["tokens"])
    writer.add_token_types(vocabulary["types"])
    writer.add_token_merges(vocabulary["merges"])
    for role in ("bos", "eos", "pad", "unk"):
        id = getattr(tokenizer, f"{role}_token_id")
        if id is not None:
            getattr(writer, f"add_{role}_token_id")(id)
    writer.add_add_bos_token(vocabulary["begins"])
    writer.add_add_eos_token(vocabulary["ends"])
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)

    for name, tensor in _to_gguf(cast(ScratchGPTForCausalLM, model)).items():
        is_matrix = tensor.dim() == 2 and name != "position_embd.weight"  # a lookup table stays in fp32
        writer.add_tensor(name, (tensor.half() if half and is_matrix else tensor.float()).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _to_gguf(model: ScratchGPTForCausalLM) -> dict[str, torch.Tensor]:
    # llama.cpp multiplies by (out, in) as nn.Linear does, so nothing is transposed; q, k and v become one tensor.
    body = model.transformer
    tensors = {"token_embd.weight": body.embed_tokens.weight, "position_embd.weight": body.embed_positions.weight}
    for n, block in enumerate(cast(Iterable[ScratchGPTBlock], body.layers)):
        projections = (block.attn.q_proj, block.attn.k_proj, block.attn.v_proj)
        biases = [p.weight.new_zeros(p.out_features) if p.bias is None else p.bias for p in projections]
        tensors[f"blk.{n}.attn_qkv.weight"] = torch.cat([projection.weight for projection in projections])
        tensors[f"blk.{n}.attn_qkv.bias"] = torch.cat(biases)
        names = {"attn_norm": block.ln_1, "attn_output": block.attn.o_proj, "ffn_norm": block.ln_2}
        names |= {"ffn_up": block.mlp.up_proj, "ffn_down": block.mlp.down_proj}
        for name, module in names.items():
            tensors |= {f"blk.{n}.{name}.weight": module.weight, f"blk.{n}.{name}.bias": module.bias}
    tensors |= {"output_norm.weight": body.norm.weight, "output_norm.bias": body.norm.bias}
    if not model.config.tie_word_embeddings:
        tensors["output.weight"] = model.lm_head.weight
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


def _read_vocabulary(tokenizer: PreTrainedTokenizerBase, rows: int) -> dict[str, Any]:
    """Return the pre-tokenizer, the tokens by id, their types, the merges, and whether a text gets BOS and EOS."""
    from gguf import TokenType

    check_vocabulary(tokenizer, rows)
    content = json.loads(cast(Any, tokenizer).backend_tokenizer.to_str()) if tokenizer.is_fast else {}
    pre_tokenizer = _check_byte_level_bpe(content)
    added = {item["id"]: item for item in content["added_tokens"]}
    by_id = {id: token for token, id in tokenizer.get_vocab().items()}
    tokens = [by_id.get(id, f"<|unused {id}|>") for id in range(rows)]  # a model may have more rows than tokens
    types = []
    for id in range(rows):
        item = added.get(id)
        kind = TokenType.NORMAL if id in by_id else TokenType.UNUSED
        types.append(kind if item is None else TokenType.CONTROL if item["special"] else TokenType.USER_DEFINED)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in content["model"]["merges"]]
    plain = cast(list[int], tokenizer("a", add_special_tokens=False)["input_ids"])
    ids = cast(list[int], tokenizer("a")["input_ids"])
    begins, ends = ids[:1] != plain, ids[-1:] != plain
    if ids != [tokenizer.bos_token_id] * begins + plain + [tokenizer.eos_token_id] * ends:
        raise ValueError("The tokenizer adds more to a text than BOS and EOS, which GGUF cannot represent.")
    facts = {"tokens": tokens, "types": types, "merges": merges, "begins": begins, "ends": ends}
    return {"pre_tokenizer": pre_tokenizer, **facts}


def _check_byte_level_bpe(content: dict[str, Any]) -> str:
    # Return llama.cpp's name of the pre-tokenizer: it has the pattern of each name, and a file has only the name.
    def refuse(difference: str) -> NoReturn:
        names = " or ".join(name for name, known in PRE_TOKENIZERS.items() if known.gguf_name is not None)
        raise ValueError(
            f"The tokenizer {difference}. GGUF needs a byte-level BPE with the pre-tokenizer {names}: train one."
        )

    model, split = content.get("model", {}), content.get("pre_tokenizer") or {}
    if model.get("type") != "BPE":
        refuse(f"is a {model.get('type', 'slow tokenizer')} on {split.get('type', 'unsplit text')}")
    if content.get("normalizer"):
        refuse(f"has a normalizer ({content['normalizer'].get('type')})")
    known = PRE_TOKENIZERS.get(find_pre_tokenizer(split) or "")
    if known is None or known.gguf_name is None:
        refuse(f"splits text by a pattern that llama.cpp does not have ({split.get('type', 'no pre-tokenizer')})")
    options = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges")
    if present := [name for name in options if model.get(name)]:
        refuse(f"has {present[0]}")
    for item in content["added_tokens"]:
        if item["lstrip"] or item["rstrip"] or item["single_word"]:
            refuse(f"strips the space next to {item['content']!r}")
    return known.gguf_name


__all__ = ["write_gguf"]
