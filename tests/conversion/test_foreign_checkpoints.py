"""Test foreign checkpoints: they have the same logits, or are refused by name."""

import math
import pickle
import re

import pytest
import torch
import torch.nn.functional as F
from outputs import logits_of
from safetensors.torch import save_file
from tiny import VOCAB, some_ids

from scratch_gpt import (
    ScratchGPTForCausalLM,
    ScratchGPTForSequenceClassification,
    export_gpt2,
    import_checkpoint,
    import_classifier,
)


def plain_gpt(ids, tokens, positions, blocks, norm, head, heads, gelu):
    """Return logits of a GPT-2 network; a block is (ln_1, q, k, v, out, ln_2, up, down), pairs of weight and bias."""
    x = F.embedding(ids, tokens) + positions[: ids.shape[1]]
    for ln_1, q, k, v, out, ln_2, up, down in blocks:
        h = F.layer_norm(x, x.shape[-1:], *ln_1)
        split = lambda y: y.unflatten(-1, (heads, -1)).transpose(1, 2)  # noqa: E731
        a, b, c = (split(F.linear(h, *projection)) for projection in (q, k, v))
        scores = a @ b.mT / math.sqrt(a.shape[-1])
        scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf)
        x = x + F.linear((scores.softmax(-1) @ c).transpose(1, 2).flatten(2), *out)
        x = x + F.linear(gelu(F.linear(F.layer_norm(x, x.shape[-1:], *ln_2), *up)), *down)
    return F.linear(F.layer_norm(x, x.shape[-1:], *norm), head)


def nanogpt_weights(bias: bool, D=32, layers=2, V=VOCAB, T=64):
    shapes = {"transformer.wte.weight": (V, D), "transformer.wpe.weight": (T, D), "transformer.ln_f.weight": (D,)}
    for n in range(layers):
        h = f"transformer.h.{n}."
        shapes |= {h + "ln_1.weight": (D,), h + "ln_2.weight": (D,), h + "attn.c_attn.weight": (3 * D, D)}
        shapes |= {h + "attn.c_proj.weight": (D, D), h + "mlp.c_fc.weight": (4 * D, D)}
        shapes |= {h + "mlp.c_proj.weight": (D, 4 * D)}
    if bias:
        linear = [name for name in shapes if not name.startswith(("transformer.wte", "transformer.wpe"))]
        shapes |= {name.replace("weight", "bias"): shapes[name][:1] for name in linear}
    weights = {name: 0.2 * torch.randn(shape) for name, shape in shapes.items()}
    return weights | {"lm_head.weight": weights["transformer.wte.weight"]}


def nanogpt_logits(w, ids, heads=4, layers=2):
    get = lambda name: (w[name + ".weight"], w.get(name + ".bias"))  # noqa: E731
    blocks = []
    for n in range(layers):
        h = f"transformer.h.{n}."
        weight, bias = get(h + "attn.c_attn")
        qkv = list(zip(weight.chunk(3), bias.chunk(3) if bias is not None else [None] * 3, strict=True))
        names = ("ln_1", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
        ln_1, out, ln_2, up, down = (get(h + name) for name in names)
        blocks.append((ln_1, *qkv, out, ln_2, up, down))
    embeddings = (w["transformer.wte.weight"], w["transformer.wpe.weight"])
    return plain_gpt(ids, *embeddings, blocks, get("transformer.ln_f"), w["lm_head.weight"], heads, F.gelu)


def book_weights(qkv_bias: bool, D=32, layers=2, V=VOCAB, T=64):
    shapes = {"tok_emb.weight": (V, D), "pos_emb.weight": (T, D), "out_head.weight": (V, D)}
    shapes |= {"final_norm.scale": (D,), "final_norm.shift": (D,)}
    for n in range(layers):
        b = f"trf_blocks.{n}."
        for part in ("W_query", "W_key", "W_value"):
            shapes[b + f"att.{part}.weight"] = (D, D)
            if qkv_bias:
                shapes[b + f"att.{part}.bias"] = (D,)
        shapes |= {b + "att.out_proj.weight": (D, D), b + "att.out_proj.bias": (D,)}
        shapes |= {b + "ff.layers.0.weight": (4 * D, D), b + "ff.layers.0.bias": (4 * D,)}
        shapes |= {b + "ff.layers.2.weight": (D, 4 * D), b + "ff.layers.2.bias": (D,)}
        shapes |= {b + f"norm{i}.{kind}": (D,) for i in (1, 2) for kind in ("scale", "shift")}
    weights = {name: 0.2 * torch.randn(shape) for name, shape in shapes.items()}
    return weights | {f"trf_blocks.{n}.att.mask": torch.ones(T, T).triu(1) for n in range(layers)}


def book_logits(w, ids, heads=4, layers=2):
    get = lambda name: (w[name + ".weight"], w.get(name + ".bias"))  # noqa: E731
    norm = lambda name: (w[name + ".scale"], w[name + ".shift"])  # noqa: E731
    blocks = []
    for n in range(layers):
        b = f"trf_blocks.{n}."
        q, k, v, out = (get(b + f"att.{part}") for part in ("W_query", "W_key", "W_value", "out_proj"))
        up, down = get(b + "ff.layers.0"), get(b + "ff.layers.2")
        blocks.append((norm(b + "norm1"), q, k, v, out, norm(b + "norm2"), up, down))
    gelu = lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))  # noqa: E731
    embeddings = (w["tok_emb.weight"], w["pos_emb.weight"])
    return plain_gpt(ids, *embeddings, blocks, norm("final_norm"), w["out_head.weight"], heads, gelu)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("compiled", [True, False])
def test_nanogpt_checkpoints_are_imported(bias, compiled, tmp_path):
    weights, ids = nanogpt_weights(bias), some_ids()
    arguments = {"n_layer": 2, "n_head": 4, "n_embd": 32, "block_size": 64, "bias": bias, "vocab_size": VOCAB}
    prefix = "_orig_mod." if compiled else ""
    content = {"model": {prefix + name: tensor for name, tensor in weights.items()}, "iter_num": 5, "optimizer": {}}
    torch.save({**content, "model_args": {**arguments, "dropout": 0.0}}, tmp_path / "ckpt.pt")
    model = import_checkpoint(tmp_path / "ckpt.pt")
    assert (logits_of(model, ids) - nanogpt_logits(weights, ids)).abs().max() < 1e-4
    assert model.config.tie_word_embeddings and model.config.resid_dropout == 0
    assert model.lm_head.weight is model.transformer.embed_tokens.weight
    model.save_pretrained(tmp_path / "ours")
    again = ScratchGPTForCausalLM.from_pretrained(tmp_path / "ours")
    assert torch.equal(logits_of(again, ids), logits_of(model, ids))


@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize("wrapped", [True, False])
def test_checkpoints_of_the_book_are_imported(qkv_bias, wrapped, tmp_path):
    weights, ids = book_weights(qkv_bias), some_ids()
    torch.save({"model_state_dict": weights, "optimizer_state_dict": {}} if wrapped else weights, tmp_path / "m.pth")
    config = {"vocab_size": VOCAB, "context_length": 64, "emb_dim": 32, "n_heads": 4, "n_layers": 2}
    model = import_checkpoint(tmp_path / "m.pth", config={**config, "drop_rate": 0.1, "qkv_bias": qkv_bias})
    assert (logits_of(model, ids) - book_logits(weights, ids)).abs().max() < 1e-4
    assert not model.config.tie_word_embeddings and model.config.attention_bias == qkv_bias
    told_wrongly = {**config, "context_length": 1024, "qkv_bias": not qkv_bias}  # the tensors know better
    assert torch.equal(
        logits_of(import_checkpoint(tmp_path / "m.pth", config=told_wrongly), ids), logits_of(model, ids)
    )
    with pytest.raises(ValueError, match="Unknown config field head_count"):
        import_checkpoint(tmp_path / "m.pth", head_count=4)
    short = import_checkpoint(tmp_path / "m.pth", num_attention_heads=4)
    assert torch.equal(logits_of(short, ids), logits_of(model, ids))


WRAPPED = {
    "compiled": lambda name: f"_orig_mod.{name}",
    "DDP": lambda name: f"module.{name}",
    "compiled, then DDP": lambda name: f"module._orig_mod.{name}",
    "each block compiled": lambda name: re.sub(r"(trf_blocks\.\d+)", r"\1._orig_mod", name),
    "FSDP": lambda name: re.sub(r"(trf_blocks\.\d+)", r"\1._fsdp_wrapped_module", f"_fsdp_wrapped_module.{name}"),
}


@pytest.mark.parametrize("wrapper", WRAPPED)
def test_names_of_wrapped_models_are_read(wrapper, tmp_path):
    weights, ids = book_weights(False), some_ids()
    torch.save({WRAPPED[wrapper](name): tensor for name, tensor in weights.items()}, tmp_path / "m.pth")
    model = import_checkpoint(tmp_path / "m.pth", num_attention_heads=4)
    assert (logits_of(model, ids) - book_logits(weights, ids)).abs().max() < 1e-4


def test_safetensors_of_the_book_are_imported(tmp_path):
    weights, ids = book_weights(True), some_ids()
    save_file(weights, tmp_path / "m.safetensors")
    model = import_checkpoint(tmp_path / "m.safetensors", num_attention_heads=4)
    assert (logits_of(model, ids) - book_logits(weights, ids)).abs().max() < 1e-4


@pytest.mark.parametrize("qkv_bias", [True, False])
def test_the_faster_model_of_the_book_is_imported(qkv_bias, tmp_path):
    """GPTModelFast has one matrix for query, key and value, and torch's LayerNorm."""
    weights, ids = book_weights(qkv_bias), some_ids()
    fast = {name: tensor for name, tensor in weights.items() if ".W_" not in name and not name.endswith(".mask")}
    for n in range(2):
        for kind in ("weight", "bias")[: 1 + qkv_bias]:
            parts = [weights[f"trf_blocks.{n}.att.{part}.{kind}"] for part in ("W_query", "W_key", "W_value")]
            fast[f"trf_blocks.{n}.att.qkv.{kind}"] = torch.cat(parts)
    names = {"out_proj": "proj", "scale": "weight", "shift": "bias"}
    renamed = {re.sub("out_proj|scale|shift", lambda match: names[match[0]], name): fast[name] for name in fast}
    torch.save(renamed, tmp_path / "m.pth")
    model = import_checkpoint(tmp_path / "m.pth", num_attention_heads=4)
    assert (logits_of(model, ids) - book_logits(weights, ids)).abs().max() < 1e-4


def with_lora(weights, scaling, rank=4):
    """Return weights with LoRA on each linear layer, as in the book, and plain weights that compute the same."""
    stored, plain = {}, dict(weights)
    for name, tensor in weights.items():
        layer, _, kind = name.rpartition(".")
        if "_emb" in name or "norm" in name or kind == "mask":
            stored[name] = tensor
            continue
        stored[f"{layer}.linear.{kind}"] = tensor
        if kind == "weight":
            rows, columns = tensor.shape
            a, b = 0.2 * torch.randn(columns, rank), 0.2 * torch.randn(rank, rows)
            stored |= {f"{layer}.lora.A": a, f"{layer}.lora.B": b}
            x = torch.eye(columns)
            plain[name] = (F.linear(x, tensor) + scaling * (x @ a @ b)).T  # the output of LinearWithLoRA for each unit
    return stored, plain


def test_lora_layers_of_the_book_are_merged(tmp_path):
    weights, ids = book_weights(True), some_ids()
    stored, plain = with_lora(weights, scaling=0.5)
    torch.save(stored, tmp_path / "m.pth")
    model = import_checkpoint(tmp_path / "m.pth", num_attention_heads=4, lora_scaling=0.5)
    assert (logits_of(model, ids) - book_logits(plain, ids)).abs().max() < 1e-3
    with pytest.raises(
        ValueError, match="m.pth has 13 LoRA layers, and no tensor holds their scaling. Give lora_scaling=N"
    ):
        import_checkpoint(tmp_path / "m.pth", num_attention_heads=4)
    torch.save(weights, tmp_path / "plain.pth")
    with pytest.raises(ValueError, match="plain.pth has no LoRA layers. Remove lora_scaling"):
        import_checkpoint(tmp_path / "plain.pth", num_attention_heads=4, lora_scaling=16)
    del stored["trf_blocks.1.att.W_key.lora.B"]
    torch.save(stored, tmp_path / "m.pth")
    with pytest.raises(ValueError, match="not a complete GPT: it has no trf_blocks.1.att.W_key.lora.B"):
        import_checkpoint(tmp_path / "m.pth", num_attention_heads=4, lora_scaling=16)


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("has_lora", [True, False])
def test_classifiers_of_the_book_are_imported(has_bias, has_lora, tmp_path):
    weights, ids = book_weights(True), some_ids()
    weights["out_head.weight"] = 0.2 * torch.randn(3, 32)
    if has_bias:
        weights["out_head.bias"] = torch.tensor([0.3, -0.2, 0.1])
    stored, plain = with_lora(weights, scaling=0.5) if has_lora else (weights, weights)
    torch.save(stored, tmp_path / "m.pth")
    arguments = {"num_attention_heads": 4, "lora_scaling": 0.5 if has_lora else None}
    labels = {0: "ham", 1: "spam", 2: "other"}
    model = import_classifier(tmp_path / "m.pth", id2label=labels, **arguments)
    expected = book_logits(plain, ids)[:, -1] + weights.get("out_head.bias", torch.zeros(3))
    with torch.no_grad():
        logits = model(ids).logits
    assert (logits - expected).abs().max() < 1e-3
    assert model.config.num_labels == 3 and model.config.label2id["spam"] == 1
    model.save_pretrained(tmp_path / "ours")
    again = ScratchGPTForSequenceClassification.from_pretrained(tmp_path / "ours")
    assert torch.equal(logits_of(again, ids), logits)
    export_gpt2(model, tmp_path / "stock")
    assert import_classifier(tmp_path / "m.pth", **arguments).config.id2label[2] == "LABEL_2"
    with pytest.raises(ValueError, match=r"is a classifier: its out_head has 3 rows.* Read it with import_classifier"):
        import_checkpoint(tmp_path / "m.pth", **arguments)


def test_other_heads_are_refused_by_name(tmp_path):
    weights = book_weights(True)
    torch.save(weights, tmp_path / "m.pth")
    with pytest.raises(ValueError, match="m.pth is a language model.* Read it with import_checkpoint"):
        import_classifier(tmp_path / "m.pth", num_attention_heads=4)
    equal_rows = {**weights, "out_head.weight": torch.ones(2, 32), "out_head.bias": torch.tensor([0.0, 1.0])}
    torch.save(equal_rows, tmp_path / "m.pth")
    with pytest.raises(ValueError, match="a bias that its weights cannot express") as caught:
        import_classifier(tmp_path / "m.pth", num_attention_heads=4)
    assert "\n" not in str(caught.value)


class Harmful:
    def __reduce__(self):
        return print, ("this ran",)


def foreign(kind):
    weights = nanogpt_weights(True)
    arguments = {"n_layer": 2, "n_head": 4, "n_embd": 32, "block_size": 64, "bias": True, "vocab_size": VOCAB}
    return {
        "pickle": {"model": weights, "config": Harmful()},
        "llama": {"model.embed_tokens.weight": torch.zeros(9, 4)},
        "empty": {"epoch": 3},
        "list": [torch.zeros(3)],
        "fork": {"model": weights, "model_args": {**arguments, "use_rmsnorm": True}},
        "missing": {"model": {k: v for k, v in weights.items() if "h.1.mlp" not in k}, "model_args": arguments},
        "headless": weights,
    }[kind]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("pickle", "cannot be opened as a file of tensors"),
        ("llama", "'model.embed_tokens.weight', which neither nanoGPT"),
        ("empty", "no token and position embeddings"),
        ("list", "no token and position embeddings"),
        ("fork", "another GPT than nanoGPT's: it has use_rmsnorm"),
        ("missing", "is not a complete GPT.*layers.1.mlp"),
        ("headless", "num_attention_heads"),
    ],
)
def test_other_files_are_refused_by_name(kind, message, tmp_path, capsys):
    file = tmp_path / "ckpt.pt"
    torch.save(foreign(kind), file)
    with pytest.raises(ValueError, match=message) as caught:
        import_checkpoint(file)
    assert "\n" not in str(caught.value)
    assert "this ran" not in capsys.readouterr().out


def test_files_that_are_not_checkpoints_are_refused(tmp_path):
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps(Harmful()))
    torch.save({"model": {}, "config": Harmful()}, tmp_path / "archive.pt")
    for name in ("text.pt", "pickle.pt", "archive.pt"):
        with pytest.raises(ValueError, match="cannot be opened as a file of tensors") as caught:
            import_checkpoint(tmp_path / name)
        assert not re.search("weights_only|torch|allowlist", str(caught.value))  # torch's advice is to run the code
    with pytest.raises(ValueError, match="does not exist"):
        import_checkpoint(tmp_path / "absent.pt")
