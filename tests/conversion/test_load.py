"""Laws of conversion: stock GPT-2 out and back bit for bit, foreign checkpoints in, refusals that write nothing."""

import math
import pickle
import re

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tiny import VOCAB, some_ids, tiny_gpt2, tiny_model
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from scratch_gpt import (
    ScratchGPTForCausalLM,
    ScratchGPTForSequenceClassification,
    ScratchGPTModel,
    export_gpt2,
    import_checkpoint,
)
from scratch_gpt.conversion.load import load_any_head
from scratch_gpt.tokenization.training import train_tokenizer


def logits_of(model, ids):
    with torch.no_grad():
        output = model(ids)
    return output.logits if "logits" in output else output.last_hidden_state


# --- Out ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("history", ["gpt2", "native", "folder"])
def test_the_round_trip_is_bit_equal_whatever_the_models_history(history, tmp_path):
    stock = tiny_gpt2()
    stock.save_pretrained(tmp_path / "stock")
    model = ScratchGPTForCausalLM.from_pretrained(tmp_path / "stock")
    if history != "gpt2":
        model.save_pretrained(tmp_path / "native")
        model = ScratchGPTForCausalLM.from_pretrained(tmp_path / "native")
    export_gpt2(tmp_path / "native" if history == "folder" else model, tmp_path / "out")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("stock", "out"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("changes", [{}, {"attention_bias": False}, {"tie_word_embeddings": False}])
def test_exported_folders_are_stock_gpt2(changes, tmp_path):
    model, ids = tiny_model(**changes), some_ids()
    tokenizer = train_tokenizer(["a shiny sun"], vocab_size=258)
    export_gpt2(model, tmp_path / "out", tokenizer=tokenizer)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(stock).__module__ == "transformers.models.gpt2.modeling_gpt2"
    assert stock.config.tie_word_embeddings == model.config.tie_word_embeddings
    assert (logits_of(stock, ids) - logits_of(model, ids)).abs().max() < 1e-5
    assert not list((tmp_path / "out").glob("*.py"))
    assert len(AutoTokenizer.from_pretrained(tmp_path / "out")) == len(tokenizer)


@pytest.mark.parametrize(
    ("ours", "auto"),
    [(ScratchGPTModel, AutoModel), (ScratchGPTForSequenceClassification, AutoModelForSequenceClassification)],
)
def test_the_other_heads_are_exported_too(ours, auto, tmp_path):
    model, ids = tiny_model(ours, pad_token_id=98, num_labels=3), some_ids(vocab_size=98)
    model.save_pretrained(tmp_path / "ours")
    export_gpt2(tmp_path / "ours", tmp_path / "out")
    stock = auto.from_pretrained(tmp_path / "out").eval()
    assert "gpt2" in type(stock).__module__
    assert (logits_of(stock, ids) - logits_of(model, ids)).abs().max() < 1e-5
    assert type(load_any_head(tmp_path / "out")) is ours  # and come in as what they are


def test_a_folder_that_is_not_whole_is_no_model(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    name = "transformer.layers.0.mlp.up_proj.weight"
    save_file({key: value for key, value in weights.items() if key != name}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=f"it lacks {name}"):
        export_gpt2(tmp_path, tmp_path / "out")
    (tmp_path / "model.safetensors").write_bytes(b"not whole")
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_any_head(tmp_path)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"), [({"hidden_act": "relu"}, "hidden_act 'relu'"), ({"rope_theta": 1e4}, "rope_theta")]
)
def test_what_gpt2_cannot_express_is_refused_by_name_and_nothing_is_written(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export_gpt2(tiny_model(**changes), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_an_unmerged_adapter_is_refused_and_a_merged_one_is_exported(tmp_path):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model, ids = peft.get_peft_model(tiny_model(), config), some_ids()
    for adapted in (model, model.base_model.model):
        with pytest.raises(ValueError, match="unmerged adapter"):
            export_gpt2(adapted, tmp_path / "out")
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match="unmerged adapter"):
        export_gpt2(tmp_path / "adapter", tmp_path / "out")
    merged = model.merge_and_unload().eval()
    export_gpt2(merged, tmp_path / "out")
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert (logits_of(stock, ids) - logits_of(merged, ids)).abs().max() < 1e-5


def test_a_folder_that_is_not_empty_is_left_alone(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="not an empty folder"):
        export_gpt2(tiny_model(), tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_a_failed_write_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr("transformers.GPT2LMHeadModel.save_pretrained", full)
    with pytest.raises(OSError, match="No space"):
        export_gpt2(tiny_model(), tmp_path / "out")
    assert not list(tmp_path.iterdir())


# --- In: the two networks computed plainly from their own tensors -------------------------------------------------


def plain_gpt(ids, tokens, positions, blocks, norm, head, heads, gelu):
    """Logits of a GPT-2 shaped network; a block is (ln_1, q, k, v, out, ln_2, up, down), pairs of weight and bias."""
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
def test_nanogpt_checkpoints_come_in(bias, compiled, tmp_path):
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
def test_the_books_checkpoints_come_in(qkv_bias, wrapped, tmp_path):
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
    with pytest.raises(ValueError, match="no config field head_count"):
        import_checkpoint(tmp_path / "m.pth", head_count=4)
    short = import_checkpoint(tmp_path / "m.pth", num_attention_heads=4)
    assert torch.equal(logits_of(short, ids), logits_of(model, ids))


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
        ("pickle", "cannot be opened as tensors alone"),
        ("llama", "'model.embed_tokens.weight', which neither nanoGPT"),
        ("empty", "no token and position embeddings"),
        ("list", "no token and position embeddings"),
        ("fork", "another GPT than nanoGPT's: it has use_rmsnorm"),
        ("missing", "does not hold a whole GPT.*layers.1.mlp"),
        ("headless", "num_attention_heads"),
    ],
)
def test_anything_else_is_refused_by_name(kind, message, tmp_path, capsys):
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
        with pytest.raises(ValueError, match="cannot be opened as tensors alone") as caught:
            import_checkpoint(tmp_path / name)
        assert not re.search("weights_only|torch|allowlist", str(caught.value))  # torch's advice is to run the code
    with pytest.raises(ValueError, match="There is no file"):
        import_checkpoint(tmp_path / "absent.pt")
