"""Test GPT-2's files: every layout loads unchanged; saved files have our layout, whatever was loaded."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from places import TESTS
from safetensors.torch import load_file, save_file
from tiny import VOCAB, some_ids, tiny_gpt2, tiny_model
from torch.testing import assert_close
from transformers import BitsAndBytesConfig, GPT2LMHeadModel, TorchAoConfig

from scratch_gpt import ScratchGPTForCausalLM, ScratchGPTForSequenceClassification, ScratchGPTModel
from scratch_gpt.modeling import gpt2_layout


CLASSES = [ScratchGPTModel, ScratchGPTForCausalLM, ScratchGPTForSequenceClassification]


def hub_layout(stock: GPT2LMHeadModel, folder: Path) -> None:
    """Save in the layout of openai-community/gpt2: no prefix, no head, and the causal masks of old versions."""
    stock.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items() if "lm_head" not in name}
    for layer in range(stock.config.n_layer):
        tensors[f"h.{layer}.attn.bias"] = torch.ones(1, 1, 64, 64).tril()
        tensors[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


LAYOUTS = {
    "prefix": lambda stock, folder: stock.save_pretrained(folder),
    "hub": hub_layout,
    "shards": lambda stock, folder: stock.save_pretrained(folder, max_shard_size="20KB"),
    "untied": lambda stock, folder: tiny_gpt2(tie_word_embeddings=False).save_pretrained(folder),
}


@pytest.fixture(scope="module")
def stock() -> GPT2LMHeadModel:
    return tiny_gpt2()


@pytest.fixture(scope="module", params=LAYOUTS)
def gpt2_folder(request, stock, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    LAYOUTS[request.param](stock, folder)
    return folder


@pytest.fixture(scope="module")
def plain_folder(stock, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("gpt2")
    stock.save_pretrained(folder)
    return folder


def saved_tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for file in sorted(folder.glob("*.safetensors")) for k, v in load_file(file).items()}


# --- GPT-2 in -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@torch.no_grad()
def test_logits_equal_stock_gpt2(gpt2_folder, attention):
    stock = GPT2LMHeadModel.from_pretrained(gpt2_folder, attn_implementation=attention)
    ours = ScratchGPTForCausalLM.from_pretrained(gpt2_folder, attn_implementation=attention)
    assert_close(ours(some_ids()).logits, stock(some_ids()).logits, atol=1e-5, rtol=0)
    assert len(list(gpt2_folder.glob("*.safetensors"))) > 1 or "shards" not in gpt2_folder.name


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@torch.no_grad()
def test_logits_equal_stock_gpt2_in_bfloat16(attention, tmp_path):
    """GPT-2's config names the GELU `gelu_new`: it computes the same plain steps, so it rounds in the same way."""
    tiny_gpt2().save_pretrained(tmp_path)
    options = {"attn_implementation": attention, "dtype": torch.bfloat16}
    ours = ScratchGPTForCausalLM.from_pretrained(tmp_path, **options)(some_ids()).logits
    stock = GPT2LMHeadModel.from_pretrained(tmp_path, **options)(some_ids()).logits
    assert_close(ours, stock, atol=1e-2, rtol=0)
    fused = ScratchGPTForCausalLM.from_pretrained(tmp_path, **options, hidden_act="gelu_pytorch_tanh")
    true = GPT2LMHeadModel.from_pretrained(tmp_path)(some_ids()).logits
    assert (fused(some_ids()).logits - true).norm() < 1.1 * (stock - true).norm()  # the fused GELU is as exact


@pytest.mark.parametrize("model_class", CLASSES)
def test_every_class_loads_every_layout_without_unused_keys(gpt2_folder, model_class):
    model, report = model_class.from_pretrained(gpt2_folder, output_loading_info=True)
    new = {"score.weight"} if model_class is ScratchGPTForSequenceClassification else set()
    head = {"lm_head.weight"} if "untied" in gpt2_folder.name and model_class is not ScratchGPTForCausalLM else set()
    assert set(report["missing_keys"]) == new  # a classifier's head is new and random
    assert set(report["unexpected_keys"]) == head  # an untied head of GPT-2 is unused by the other classes
    assert not report["mismatched_keys"] and not report["error_msgs"]
    hidden = GPT2LMHeadModel.from_pretrained(gpt2_folder).transformer(some_ids()).last_hidden_state
    base = model if model_class is ScratchGPTModel else model.transformer
    assert_close(base(some_ids()).last_hidden_state, hidden, atol=1e-5, rtol=0)


def test_query_key_and_value_are_the_thirds_of_c_attn_bit_for_bit(stock, plain_folder):
    theirs = stock.transformer.h[1].attn.c_attn
    ours = ScratchGPTForCausalLM.from_pretrained(plain_folder).transformer.layers[1].attn
    for n, projection in enumerate((ours.q_proj, ours.k_proj, ours.v_proj)):
        part = slice(32 * n, 32 * (n + 1))
        assert torch.equal(projection.weight, theirs.weight[:, part].T)
        assert torch.equal(projection.bias, theirs.bias[part])


# --- GPT-2 in, sharded or quantized ---------------------------------------------------------------------------------


def int8(library: str) -> BitsAndBytesConfig | TorchAoConfig:
    """Return a config that quantizes to 8 bits; skip the test if the library is not installed."""
    quantization = pytest.importorskip(f"{library}.quantization" if library == "torchao" else library)
    if library == "torchao":
        return TorchAoConfig(quantization.Int8WeightOnlyConfig())
    return BitsAndBytesConfig(load_in_8bit=True)


@pytest.fixture(scope="module")
def our_folder(plain_folder, tmp_path_factory) -> Path:
    """Return a copy of `plain_folder` in our layout."""
    folder = tmp_path_factory.mktemp("ours")
    ScratchGPTForCausalLM.from_pretrained(plain_folder).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("library", ["bitsandbytes", "torchao"])
@pytest.mark.parametrize("model_class", CLASSES)
@torch.no_grad()
def test_gpt2_files_are_quantized_as_ours_are(model_class, library, plain_folder, our_folder):
    config = int8(library)
    options = {"quantization_config": config, "attn_implementation": "eager", "output_loading_info": True}
    model, report = model_class.from_pretrained(plain_folder, **options)
    assert set(report["missing_keys"]) == {"score.weight"} & model.state_dict().keys()
    assert not report["unexpected_keys"] and not report["mismatched_keys"] and not report["error_msgs"]
    assert (model.is_quantized, model.training) == (True, False)
    assert model.config._attn_implementation == "eager"
    assert model.config.name_or_path == model.name_or_path == str(plain_folder)
    expected = model_class.from_pretrained(our_folder, **options)[0]
    plain = model_class.from_pretrained(plain_folder)
    bodies = [m if model_class is ScratchGPTModel else m.transformer for m in (model, expected, plain)]
    for name, module in bodies[1].named_modules():
        if isinstance(module, torch.nn.Linear):
            assert type(bodies[0].get_submodule(name).weight) is type(module.weight) is not torch.nn.Parameter
    ours, theirs, exact = (body(some_ids()).last_hidden_state for body in bodies)
    assert torch.equal(ours, theirs)
    assert 0 < (ours - exact).abs().max() < 0.5


@pytest.mark.parametrize("key", ["dtype", "num_labels", "generation"])
def test_other_arguments_apply_when_gpt2_files_are_quantized(key, plain_folder, tmp_path):
    options = {"quantization_config": int8("bitsandbytes")}
    if key == "dtype":
        model = ScratchGPTForCausalLM.from_pretrained(plain_folder, dtype=torch.bfloat16, **options)
        assert model.transformer.norm.weight.dtype == torch.bfloat16
    elif key == "num_labels":
        model = ScratchGPTForSequenceClassification.from_pretrained(plain_folder, num_labels=5, **options)
        assert model.score.out_features == model.config.num_labels == 5
    else:
        stock = tiny_gpt2()
        stock.generation_config.max_new_tokens = 7
        stock.save_pretrained(tmp_path / "gpt2", max_shard_size="20KB")
        model = ScratchGPTForCausalLM.from_pretrained(tmp_path, subfolder="gpt2", **options)
        assert model.generation_config.max_new_tokens == 7


def test_gpt2_that_is_stored_quantized_is_refused(plain_folder, tmp_path):
    config = int8("bitsandbytes")
    GPT2LMHeadModel.from_pretrained(plain_folder, quantization_config=config).save_pretrained(tmp_path)
    for options in ({}, {"quantization_config": config}):
        with pytest.raises(ValueError, match="already quantized.*load the original weights") as refused:
            ScratchGPTForCausalLM.from_pretrained(tmp_path, **options)
        assert "\n" not in str(refused.value) and str(tmp_path) in str(refused.value)


def test_another_copy_of_the_code_does_not_change_how_gpt2_files_load(plain_folder):
    """Each folder with remote code registers its conversion table, and transformers keeps the last one."""
    spec = importlib.util.spec_from_file_location("copy_of_gpt2_layout", gpt2_layout.__file__)
    copy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy)
    copy.register_gpt2_layout("scratch_gpt")
    config = int8("bitsandbytes")
    model = ScratchGPTForCausalLM.from_pretrained(plain_folder, quantization_config=config)
    assert model.is_quantized and not model._weight_conversions  # the tensors were loaded in our layout


def test_an_adapter_for_gpt2_files_is_not_quantized_with_its_base(plain_folder, tmp_path):
    from peft import LoraConfig, get_peft_model

    base = ScratchGPTForCausalLM.from_pretrained(plain_folder)
    get_peft_model(base, LoraConfig(target_modules=["q_proj"], init_lora_weights=False)).save_pretrained(tmp_path)
    config = int8("bitsandbytes")
    with pytest.raises(ValueError, match="load_adapter") as refused:
        ScratchGPTForCausalLM.from_pretrained(tmp_path, quantization_config=config)
    assert "\n" not in str(refused.value)
    model = ScratchGPTForCausalLM.from_pretrained(plain_folder, quantization_config=config)
    before = model(some_ids()).logits
    model.load_adapter(tmp_path)
    assert (model(some_ids()).logits - before).abs().max() > 0.01


def test_gpt2_files_are_read_into_shards(plain_folder):
    """With tensor parallelism and FSDP, each of two processes owns contiguous parts of the right weights."""
    paths = os.pathsep.join([str(TESTS / "helpers"), str(TESTS.parent)])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--"]
    command += [TESTS / "helpers" / "gpt2_sharded_worker.py", plain_folder]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines() == ["tp_size True True None True", "fsdp_size True True None True"]


# --- Ours out -------------------------------------------------------------------------------------------------------

LINEARS = ["attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.o_proj", "mlp.up_proj", "mlp.down_proj"]
BASE_KEYS = {"embed_tokens.weight", "embed_positions.weight", "norm.weight", "norm.bias"} | {
    f"layers.{n}.{module}.{kind}"
    for n in (0, 1)
    for module in ("ln_1", "ln_2", *LINEARS)
    for kind in ("weight", "bias")
}
NATIVE_KEYS = {"transformer." + key for key in BASE_KEYS}


def from_config(tmp_path, plain_folder):
    return tiny_model()


def from_gpt2(tmp_path, plain_folder):
    return ScratchGPTForCausalLM.from_pretrained(plain_folder)


def from_native(tmp_path, plain_folder):
    tiny_model().save_pretrained(tmp_path / "native")
    return ScratchGPTForCausalLM.from_pretrained(tmp_path / "native")


def from_merged_lora(tmp_path, plain_folder):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(target_modules=["q_proj", "down_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    adapted = get_peft_model(from_gpt2(tmp_path, plain_folder), config).eval()
    expected = adapted(some_ids()).logits
    merged = adapted.merge_and_unload()
    assert_close(merged(some_ids()).logits, expected, atol=1e-5, rtol=0)
    assert (expected - from_gpt2(tmp_path, plain_folder)(some_ids()).logits).abs().max() > 0.1
    return merged


@pytest.mark.parametrize("history", [from_config, from_gpt2, from_native, from_merged_lora])
@pytest.mark.parametrize("shard_size", ["50GB", "20KB"])
def test_saved_names_are_ours_for_every_history(history, shard_size, tmp_path, plain_folder):
    model = history(tmp_path, plain_folder)
    model.save_pretrained(tmp_path / "out", max_shard_size=shard_size)
    tensors = saved_tensors(tmp_path / "out")
    assert set(tensors) == NATIVE_KEYS  # a tied head is stored once
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in tensors.items())
    assert (len(list((tmp_path / "out").glob("*.safetensors"))) > 1) == (shard_size == "20KB")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("scratch_gpt", ["ScratchGPTForCausalLM"])
    assert not {"n_embd", "n_ctx", "summary_type", "activation_function"} & set(config)
    options = {"attn_implementation": model.config._attn_implementation, "output_loading_info": True}
    again, report = ScratchGPTForCausalLM.from_pretrained(tmp_path / "out", **options)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert torch.equal(again(some_ids()).logits, model.eval()(some_ids()).logits)
    assert again.lm_head.weight is again.transformer.embed_tokens.weight


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("model_class", CLASSES)
def test_saved_and_loaded_is_bit_equal(model_class, bias, tied, tmp_path):
    model = tiny_model(model_class, attention_bias=bias, tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    again, report = model_class.from_pretrained(tmp_path, attn_implementation="eager", output_loading_info=True)
    assert not any(report.values())
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in again.state_dict().items())
    assert torch.equal(again(some_ids())[0], model(some_ids())[0])
    keys = BASE_KEYS if model_class is ScratchGPTModel else NATIVE_KEYS
    extra = {"score.weight"} if model_class is ScratchGPTForSequenceClassification else set()
    if model_class is ScratchGPTForCausalLM and not tied:
        extra = {"lm_head.weight"}
    biases = {key for key in keys if key.endswith(("q_proj.bias", "k_proj.bias", "v_proj.bias"))}
    assert set(saved_tensors(tmp_path)) == (keys | extra) - (set() if bias else biases)


@pytest.mark.parametrize("saved", CLASSES)
@pytest.mark.parametrize("loaded", CLASSES)
def test_a_body_loads_into_models_with_other_heads(saved, loaded, tmp_path):
    model = tiny_model(saved)
    model.save_pretrained(tmp_path)
    again, report = loaded.from_pretrained(tmp_path, output_loading_info=True)
    new = {"score.weight"} if loaded is ScratchGPTForSequenceClassification and saved is not loaded else set()
    assert set(report["missing_keys"]) == new
    body, body_again = (m if isinstance(m, ScratchGPTModel) else m.transformer for m in (model, again))
    assert all(torch.equal(tensor, body.state_dict()[name]) for name, tensor in body_again.state_dict().items())


def test_a_stored_dtype_is_kept(plain_folder, tmp_path):
    ScratchGPTForCausalLM.from_pretrained(plain_folder, dtype=torch.bfloat16).save_pretrained(tmp_path)
    assert {tensor.dtype for tensor in saved_tensors(tmp_path).values()} == {torch.bfloat16}
    assert ScratchGPTForCausalLM.from_pretrained(tmp_path).dtype == torch.bfloat16
    assert ScratchGPTForCausalLM.from_pretrained(tmp_path)(some_ids()).logits.shape == (2, 12, VOCAB)


# --- Every parameter owns its memory --------------------------------------------------------------------------------


def assert_owned(model) -> None:
    parameters = dict(model.named_parameters())  # a tied head is listed once
    assert all(parameter.is_contiguous() for parameter in parameters.values())
    assert all(parameter.untyped_storage().nbytes() == parameter.nbytes for parameter in parameters.values())
    assert len({parameter.untyped_storage().data_ptr() for parameter in parameters.values()}) == len(parameters)


@pytest.mark.parametrize("model_class", CLASSES)
def test_every_parameter_owns_contiguous_memory_after_loading_any_layout(gpt2_folder, model_class, tmp_path):
    for dtype in (torch.float32, torch.bfloat16):
        model = model_class.from_pretrained(gpt2_folder, dtype=dtype)
        assert_owned(model)
    model.save_pretrained(tmp_path)
    assert_owned(model_class.from_pretrained(tmp_path))
    assert_owned(model.train())


@pytest.mark.parametrize("optimizer", ["AdamW", "Adam", "SGD", "Adagrad"])
def test_a_fused_step_equals_the_plain_step(plain_folder, optimizer):
    """Fused optimizers update contiguous memory: with a view they would change a neighboring parameter."""
    weights = []
    for fused in (True, False):
        model = ScratchGPTForCausalLM.from_pretrained(plain_folder)  # in eval mode, as loaded
        step = getattr(torch.optim, optimizer)(model.parameters(), lr=1e-2, fused=fused)
        model(some_ids(), labels=some_ids()).loss.backward()
        step.step()
        weights.append(dict(model.named_parameters()))
    before = dict(ScratchGPTForCausalLM.from_pretrained(plain_folder).named_parameters())
    for name, tensor in weights[0].items():
        assert_close(tensor, weights[1][name], atol=1e-6, rtol=1e-5)
        assert name.endswith("k_proj.bias") or not torch.equal(tensor, before[name])  # its exact gradient is 0


def test_tools_that_save_by_storage_keep_every_tensor(plain_folder, tmp_path):
    import safetensors.torch
    from accelerate import Accelerator

    model = ScratchGPTForCausalLM.from_pretrained(plain_folder)
    expected, names = model(some_ids()).logits, {name for name, _ in model.named_parameters()}
    accelerator = Accelerator(cpu=True)
    prepared = accelerator.prepare(model)
    accelerator.save_model(prepared, tmp_path / "model")
    accelerator.save_state(tmp_path / "state")
    safetensors.torch.save_model(model, tmp_path / "plain.safetensors")
    for name in ("model/model.safetensors", "state/model.safetensors", "plain.safetensors"):
        saved = {key.replace("lm_head", "transformer.embed_tokens") for key in load_file(tmp_path / name)}
        assert saved == names  # a tied head has either name
    vector = torch.nn.utils.parameters_to_vector(model.parameters())
    torch.nn.utils.vector_to_parameters(vector.clone(), model.parameters())
    assert torch.equal(model(some_ids()).logits, expected)


def test_blocks_offloaded_to_disk_compute_the_same(plain_folder, tmp_path):
    where = {"transformer.embed_tokens": "cpu", "transformer.embed_positions": "cpu", "transformer.dropout": "cpu"}
    where |= {"transformer.layers": "disk", "transformer.norm": "cpu", "lm_head": "cpu"}
    model = ScratchGPTForCausalLM.from_pretrained(plain_folder, device_map=where, offload_folder=tmp_path)
    expected = ScratchGPTForCausalLM.from_pretrained(plain_folder)(some_ids()).logits
    assert_close(model(some_ids()).logits, expected, atol=1e-5, rtol=0)
