"""A run or model folder -> one file that runs without PyTorch: ONNX for onnxruntime, GGUF for llama.cpp.

Both compute in the context that the model has, and neither carries a trace of this machine. An ONNX file is compared
with the model before it gets its name; it has no KV cache, so that each new token costs the whole text anew.
"""

import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from .checkpoints import DRAFT, replace_folder
from .conversion import load_any_head, own_class, refuse_what_gpt2_cannot_say
from .folders import remove
from .locks import hold
from .modeling.modeling_scratch_gpt import (
    ScratchGPTForCausalLM,
    ScratchGPTForSequenceClassification,
    ScratchGPTModel,
    ScratchGPTPreTrainedModel,
)
from .tokenizer import check_vocabulary, load_tokenizer


FOLDER = "exports"
KINDS = ("onnx", "gguf", "gguf-f16")
TOLERANCE = 1e-4  # of the largest output, between a model and its ONNX file


class Exported(NamedTuple):
    """A file that was written, and how far it lies from the model where that was measured."""

    file: Path
    difference: float | None = None


def export(folder: str | Path, *, kind: str, say: Callable[[str], None] = print) -> Exported:
    """Write `folder/exports/KIND/model.onnx` or `.gguf`, whole or not at all; an older one of the kind is replaced.

    Args:
        folder: of a run (its `model` is taken), or a model folder in our layout or GPT-2's.
        kind: "onnx" (fp32; any of our heads), "gguf" (fp32) or "gguf-f16" (its matrices in 16 bits).
        say: is given a line if the lock of a process that has ended is taken over.

    Raises:
        ValueError: no such model, one that another process is writing, what the format cannot express, or a file that
            disagrees with the model.
        ImportError: the extra is not installed.
    """
    if kind not in KINDS:
        raise ValueError(f"export is {kind!r}; it is one of {', '.join(KINDS)}.")
    top = Path(folder)
    source = top / "model" if (top / "model" / "config.json").is_file() else top
    _check_source(source)
    needed = ("onnx", "onnxscript", "onnxruntime") if kind == "onnx" else ("gguf",)
    _need(kind.split("-")[0], needed)
    with hold(top, say):
        return _export(top, source, kind)


def _export(top: Path, source: Path, kind: str) -> Exported:
    tokenizer = load_tokenizer(source)
    model = load_any_head(source).float().eval()
    target = top / FOLDER / kind
    draft = target.with_name(DRAFT + target.name)
    remove(draft)
    draft.mkdir(parents=True)
    try:
        if kind == "onnx":
            difference = write_onnx(model, draft / "model.onnx")
            tokenizer.save_pretrained(draft)
            file = target / "model.onnx"
        else:
            difference = None
            file = target / f"model-{'f16' if kind == 'gguf-f16' else 'f32'}.gguf"
            write_gguf(model, tokenizer, draft / file.name, half=kind == "gguf-f16")
        replace_folder(draft, target)
    finally:
        remove(draft)
    return Exported(file, difference)


def _check_source(source: Path) -> None:
    if (source / "adapter_config.json").exists():
        raise ValueError(
            f"{source} holds an adapter that is not merged, and an export is a whole model. Export its run "
            "(its model/ is the merged one)."
        )
    if not (source / "config.json").is_file():
        raise ValueError(f"{source} is no run and no model folder: it has no config.json.")
    kind = json.loads((source / "config.json").read_text(encoding="utf-8")).get("model_type")
    if kind not in ("scratch_gpt", "gpt2"):
        raise ValueError(f"{source} is a {kind}; only our own models and GPT-2 are exported.")


def _need(extra: str, libraries: tuple[str, ...]) -> None:
    for library in libraries:
        if find_spec(library) is None:
            raise ImportError(f'{library} is not installed; it is of an extra: pip install -e ".[{extra}]"')


# --- ONNX --------------------------------------------------------------------------------------------------------


class Plain(nn.Module):
    """A model as a function: input_ids (B, T), attention_mask (B, T) -> its first output, without a cache."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)[0]


def write_onnx(model: ScratchGPTPreTrainedModel, file: Path) -> float:
    """Write a model as ONNX, and return the largest difference between what the two compute.

    `input_ids` and `attention_mask`, both int64 (batch, sequence), padded on either side -> `logits` (batch, sequence,
    vocabulary) or, of a classifier, (batch, classes); of a model without a head `last_hidden_state`. The file's own
    metadata holds the context, and a classifier's labels. Weights of 2 GB and more lie beside it, in `.data`.

    Raises:
        ValueError: the file computes something else than the model.
    """
    context = model.config.max_position_embeddings
    model.set_attn_implementation("eager")  # plain steps; what it computes for padding is defined too
    ids = torch.zeros(2, min(8, context), dtype=torch.long)
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence", max=context)}
    kind = own_class(model)
    output = "last_hidden_state" if kind is ScratchGPTModel else "logits"
    with _quiet():
        program = torch.onnx.export(
            *(Plain(model), (ids, torch.ones_like(ids))),
            dynamo=True,
            verbose=False,
            dynamic_shapes=(sizes, sizes),
            input_names=["input_ids", "attention_mask"],
            output_names=[output],
        )
    _forget_sources(program.model)
    program.model.metadata_props["context"] = str(context)
    if kind is ScratchGPTForSequenceClassification:
        names = model.config.id2label
        program.model.metadata_props["labels"] = json.dumps([names[id] for id in sorted(names)])
    program.save(str(file))
    return _compare(model, file)


def _forget_sources(model) -> None:
    # The exporter notes for each node which line of which file it came from.
    graphs = [model.graph, *model.functions.values()]
    for graph in graphs:
        nodes = [*graph.all_nodes()]
        values = [*graph.inputs, *(value for node in nodes for value in node.outputs)]
        for part in (graph, *nodes, *values, *getattr(graph, "initializers", {}).values()):
            part.metadata_props.clear()
            part.doc_string = None
    model.metadata_props.clear()
    model.doc_string = None


@torch.no_grad()
def _compare(model: ScratchGPTPreTrainedModel, file: Path) -> float:
    # On the longest rows that there are, on padding of both sides, and on a single token.
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    context = model.config.max_position_embeddings
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (3, context), generator=draw)
    mask = torch.ones_like(ids)
    mask[1, : context // 2], mask[2, (context + 1) // 2 :] = 0, 0
    worst = 0.0
    for rows, seen in ((ids, mask), (ids[:1, :1], mask[:1, :1])):
        ours = Plain(model)(rows, seen)
        theirs = torch.from_numpy(session.run(None, {"input_ids": rows.numpy(), "attention_mask": seen.numpy()})[0])
        difference = (ours - theirs).abs()
        if ours.dim() == 3:  # what stands at padding means nothing
            difference = difference[seen.bool()]
        limit = TOLERANCE * max(1.0, float(ours.abs().max()))
        if not float(difference.max()) <= limit:
            raise ValueError(
                f"The ONNX file differs from the model by {float(difference.max()):.2g}, and {limit:.2g} is the most. "
                "It was not kept."
            )
        worst = max(worst, float(difference.max()))
    return worst


@contextmanager
def _quiet() -> Iterator[None]:
    # The exporter warns of libraries that are not there, and of its own calls.
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


# --- GGUF --------------------------------------------------------------------------------------------------------


def write_gguf(
    model: ScratchGPTPreTrainedModel, tokenizer: PreTrainedTokenizerBase, file: Path, *, half: bool = False
) -> None:
    """Write a language model and its tokenizer as llama.cpp reads them (architecture gpt2); `half`: matrices as f16.

    Raises:
        ValueError: what llama.cpp's GPT-2 cannot express: by name, before anything is written.
    """
    import gguf

    refuse_what_gpt2_cannot_say(model)
    if own_class(model) is not ScratchGPTForCausalLM:
        raise ValueError(
            f"A GGUF file holds a language model, and this is a {type(model).__name__}: export it as onnx."
        )
    config = model.config
    vocabulary = _read_vocabulary(tokenizer, config.vocab_size)
    writer = gguf.GGUFWriter(file, "gpt2")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_layer_norm_eps(config.layer_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16 if half else gguf.LlamaFileType.ALL_F32)

    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
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

    for name, tensor in _to_gguf(model).items():
        is_matrix = tensor.dim() == 2 and name != "position_embd.weight"  # which is only looked up
        writer.add_tensor(name, (tensor.half() if half and is_matrix else tensor.float()).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _to_gguf(model: ScratchGPTForCausalLM) -> dict[str, torch.Tensor]:
    # llama.cpp multiplies by (out, in) as nn.Linear does, so nothing is transposed; query, key and value are one.
    body = model.transformer
    tensors = {"token_embd.weight": body.embed_tokens.weight, "position_embd.weight": body.embed_positions.weight}
    for n, block in enumerate(body.layers):
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
    """A byte-level BPE -> tokens by id, their types, the merges, and whether a text begins with BOS, ends in EOS."""
    from gguf import TokenType

    check_vocabulary(tokenizer, rows)
    content = json.loads(tokenizer.backend_tokenizer.to_str()) if tokenizer.is_fast else {}
    _refuse_what_gguf_cannot_split(content)
    added = {item["id"]: item for item in content["added_tokens"]}
    by_id = {id: token for token, id in tokenizer.get_vocab().items()}
    tokens = [by_id.get(id, f"<|unused {id}|>") for id in range(rows)]  # a model may have more rows than tokens
    types = []
    for id in range(rows):
        item = added.get(id)
        kind = TokenType.NORMAL if id in by_id else TokenType.UNUSED
        types.append(kind if item is None else TokenType.CONTROL if item["special"] else TokenType.USER_DEFINED)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in content["model"]["merges"]]
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    begins, ends = whole[:1] != plain, whole[-1:] != plain
    framed = [tokenizer.bos_token_id] * begins + plain + [tokenizer.eos_token_id] * ends
    if whole != framed:
        raise ValueError("The tokenizer adds more to a text than BOS and EOS, which GGUF cannot express.")
    return {"tokens": tokens, "types": types, "merges": merges, "begins": begins, "ends": ends}


def _refuse_what_gguf_cannot_split(content: dict[str, Any]) -> None:
    # llama.cpp has one way of its own for each name of a pre-tokenizer; "gpt-2" is plain byte-level BPE.
    def refuse(what: str):
        raise ValueError(f"The tokenizer {what}, and only GPT-2's byte-level BPE is exported as GGUF.")

    model, split = content.get("model", {}), content.get("pre_tokenizer") or {}
    if model.get("type") != "BPE" or split.get("type") != "ByteLevel":
        refuse(f"is a {model.get('type', 'slow one')} on {split.get('type', 'whole texts')}")
    if content.get("normalizer"):
        refuse(f"has a normalizer ({content['normalizer'].get('type')})")
    if split.get("add_prefix_space") or not split.get("use_regex", True):
        refuse("cuts texts in another way")
    odd = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges")
    if named := [name for name in odd if model.get(name)]:
        refuse(f"has {named[0]}")
    for item in content["added_tokens"]:
        if item["lstrip"] or item["rstrip"] or item["single_word"]:
            refuse(f"takes the space beside {item['content']!r} away")


__all__ = ["FOLDER", "KINDS", "Exported", "Plain", "export", "write_gguf", "write_onnx"]
