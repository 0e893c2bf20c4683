"""Test LoRA: no change at step 0 or by merging, and runs resume bit for bit."""

import json
import re
import shutil
from dataclasses import fields
from pathlib import Path
from typing import get_args

import crash
import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from adapted import CLASSES, IDS, assert_close, logits, perturbed
from bad_input import fails
from peft import AutoPeftModelForCausalLM, PeftModel
from peft.tuners.lora import Linear as peft_linear
from safetensors.torch import load_file
from stories import STORY
from tiny import tiny_model
from tiny_run import script_evaluations
from transformers import AutoModelForCausalLM, GPT2Config, GPT2ForSequenceClassification

from scratch_gpt import ScratchGPTForCausalLM, ScratchGPTForSequenceClassification
from scratch_gpt.conversion.export import export
from scratch_gpt.conversion.gpt2_export import export_gpt2
from scratch_gpt.conversion.load import load_any_head, load_model
from scratch_gpt.finetuning.lora import INITS, TARGETS, add_lora, merged_state, save_adapter
from scratch_gpt.finetuning.quantization import QUANTIZATION_KINDS
from scratch_gpt.tokenization.training import train_tokenizer
from scratch_gpt_training import generate, pretrain
from scratch_gpt_training.support import options as recipe


# --- Trained parameters ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("targets", TARGETS)
def test_lora_trains_its_targets_and_a_head_and_nothing_else(targets):
    ours = tiny_model(ScratchGPTForSequenceClassification)
    stock = GPT2ForSequenceClassification(GPT2Config(vocab_size=99, n_embd=32, n_layer=2, n_head=4, n_positions=64))
    for model, names in ((ours, TARGETS[targets][0]), (stock, TARGETS[targets][1])):
        add_lora(model, targets=targets, rank=2)
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        inside = {name for name in trained if any(f"{target}.lora_" in name for target in names)}
        head = {"score.lora_A.default.weight", "score.lora_B.default.weight"}
        assert trained - inside == (head if targets == "all-linear" else {"score.weight"})
        adapted = {name.split(".lora_")[0] for name in inside}
        assert len(adapted) == 2 * (4 if model is stock and targets == "all-linear" else len(names))


# --- LoRA layers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("use_dora", [False, True])
@pytest.mark.parametrize("model_class", CLASSES)
def test_at_step_0_an_adapter_changes_no_logit(model_class, use_dora, init):
    model = tiny_model(model_class)
    before = logits(model)
    add_lora(model, targets="all-linear", init=init, use_dora=use_dora, rank=4)
    if init in ("default", "gaussian") and not use_dora:
        assert torch.equal(logits(model), before)
    else:
        assert_close(logits(model), before, 2e-5)  # W is decomposed and recomposed


@pytest.mark.parametrize(("use_rslora", "scale"), [(False, 12 / 4), (True, 12 / 2)])
def test_lora_updates_are_scaled_by_alpha_over_rank_or_its_root(use_rslora, scale):
    model = tiny_model()
    plain = model.transformer.layers[0].attn.q_proj.weight.clone()
    add_lora(model, rank=4, alpha=12, use_rslora=use_rslora)
    layer = perturbed(model).transformer.layers[0].attn.q_proj
    learned = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    assert_close(merged_state(model)["transformer.layers.0.attn.q_proj.weight"], plain + scale * learned)


@pytest.mark.parametrize("changes", [{}, {"use_dora": True}, {"use_rslora": True}, {"init": "pissa"}])
@pytest.mark.parametrize("model_class", CLASSES)
def test_merged_equals_unmerged_and_itself_after_saving_bit_for_bit(model_class, changes, base, tmp_path):
    model = model_class.from_pretrained(base)
    add_lora(model, targets="all-linear", rank=4, **changes)
    unmerged = logits(perturbed(model))
    state = merged_state(model)
    assert torch.equal(logits(model), unmerged)  # merging changed nothing
    model.save_pretrained("merged", state_dict=state)
    merged = model_class.from_pretrained("merged")
    assert_close(logits(merged), unmerged)
    loaded = merged.state_dict()
    assert loaded.keys() == state.keys() and all(torch.equal(loaded[name], state[name]) for name in state)
    assert str(tmp_path) not in (tmp_path / "merged" / "config.json").read_text()


# --- Saved and loaded --------------------------------------------------------------------------------------------


def test_a_disabled_adapter_equals_its_base_and_rows_of_a_batch_use_their_own_adapter(base):
    alone = []
    for name in ("one", "two"):
        model = ScratchGPTForCausalLM.from_pretrained(base)
        add_lora(model, base=base, rank=4, use_dora=False)
        alone.append(logits(perturbed(model)))
        save_adapter(model, Path(name))
    both = PeftModel.from_pretrained(ScratchGPTForCausalLM.from_pretrained(base), "one", adapter_name="one")
    both.load_adapter("two", adapter_name="two")
    plain = logits(ScratchGPTForCausalLM.from_pretrained(base))
    with both.disable_adapter():
        assert torch.equal(logits(both), plain)
    mixed = logits(both.eval(), adapter_names=["one", "two"])
    assert_close(mixed[0], alone[0][0])
    assert_close(mixed[1], alone[1][1])
    assert (mixed[0] - alone[1][0]).abs().max() > 0.01


@pytest.mark.parametrize("changes", [{"targets": "most"}, {"init": "magic"}])
def test_an_unknown_lora_option_is_a_one_line_error(changes):
    with pytest.raises(ValueError, match="it must be one of "):
        add_lora(tiny_model(), **changes)


# --- In a run ----------------------------------------------------------------------------------------------------

RUN = ["--device", "cpu", "--mixed-precision", "no", "--max-length", "32", "--max-steps", "6", "--batch-size", "4"]
RUN += ["--checkpoint-every", "3", "--keep", "9", "--eval-batches", "4", "--dropout", "0.1", "--learning-rate", "1e-2"]
LORA = ["--tune", "lora", "--lora-rank", "4", "--lora-dropout", "0.1", "--lora-targets", "all-linear"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Make a folder with a text and a base model of its vocabulary."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "story.txt").write_text(STORY)
    tokenizer = train_tokenizer([STORY], vocab_size=300)
    tiny_model(vocab_size=len(tokenizer), initializer_range=0.02).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    return folder


@pytest.fixture(autouse=True)
def _at_home(request, monkeypatch):
    if "home" in request.fixturenames:
        monkeypatch.chdir(request.getfixturevalue("home"))


def run(*words) -> None:
    for state in (AcceleratorState, PartialState):
        state._reset_state()
    pretrain.main(["--dataset", "story.txt", *RUN, *map(str, words)])


@pytest.fixture(scope="module")
def tuned(home):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        run("--model", "base", "--output-dir", "lora", *LORA, "--keep-best", "true", "--test-fraction", 0.1)
    return home / "lora"


def test_a_run_saves_the_merged_model_and_the_adapter_separately(home, tuned):
    merged = AutoModelForCausalLM.from_pretrained(tuned / "model")
    adapted = AutoPeftModelForCausalLM.from_pretrained("lora/adapter")
    assert_close(logits(merged), logits(adapted))
    before, after = load_file("base/model.safetensors"), load_file(tuned / "model" / "model.safetensors")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if re.search(r"(proj)\.weight$", name)}
    content = json.loads((tuned / "evaluation.json").read_text())["results"]
    assert content["validation"]["loss"] < content["before/validation"]["loss"]
    assert content["test"]["loss"] == pytest.approx(content["validation"]["loss"], abs=0.3)
    files = [file for file in (tuned / "adapter").iterdir() if file.suffix != ".safetensors"]
    assert all(file.suffix == ".json" and str(home) not in file.read_text() for file in files)


def test_a_lora_run_resumes_bit_for_bit(home, tuned):
    shutil.copytree(tuned, "again")
    Path("again/evaluation.json").unlink()
    shutil.rmtree("again/checkpoints/step-6")
    words = ["--model", "base", *LORA, "--keep-best", "true", "--test-fraction", 0.1]
    run(*words, "--output-dir", "again", "--resume", "latest")
    assert crash.differences(crash.outcome(tuned), crash.outcome(Path("again"))) == []
    for name in ("adapter_model.safetensors", "adapter_config.json", "base.json"):
        assert (tuned / "adapter" / name).read_bytes() == Path("again/adapter", name).read_bytes()


def test_adapter_and_test_score_are_those_of_the_best_model(home, monkeypatch):
    """Training lowers the loss in every step; scripted evaluations make the first step the best."""
    words = ["--model", "base", *LORA, "--test-fraction", 0.1, "--learning-rate", 3e-2, "--warmup-steps", 0]
    run(*words, "--output-dir", "one-step", "--max-steps", 1)
    with monkeypatch.context() as patch:
        measured = script_evaluations(patch, [2.0, 1.0, 2.0])
        run(*words, "--output-dir", "wild", "--keep-best", "true", "--eval-every", 1)
    best, last, first = (
        AutoModelForCausalLM.from_pretrained(name) for name in ("wild/model", "wild/last", "one-step/model")
    )
    assert_close(logits(best), logits(AutoPeftModelForCausalLM.from_pretrained("wild/adapter")))
    assert_close(logits(best), logits(first))
    assert (logits(best) - logits(last)).abs().max() > 0.1
    content, once = (
        json.loads(Path(f"{name}/evaluation.json").read_text(encoding="utf-8")) for name in ("wild", "one-step")
    )
    assert content["protocol"]["step"] == 1
    assert measured[1] - measured[-1] > 0.02  # the last model has another loss
    assert content["results"]["test"]["loss"] == pytest.approx(once["results"]["test"]["loss"], abs=1e-4)


def test_an_adapter_can_be_a_base_and_a_frozen_run_changes_only_the_named_parts(home, tuned, capsys):
    run("--model", "lora/adapter", "--output-dir", "on", "--tune", "last-block")
    said = capsys.readouterr().out
    assert "last-block: the head shares its weights with the token embedding" in said and "Training 12,768 of " in said
    before = load_model("lora/adapter").state_dict()
    after = load_file("on/model/model.safetensors")
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert changed == {name for name in after if name.startswith(("transformer.layers.1.", "transformer.norm."))}


@pytest.mark.parametrize(
    "how",
    [
        ["--gradient-checkpointing", "true"],
        ["--mixed-precision", "bf16"],
        ["--use-dora", "true", "--use-rslora", "true"],
        ["--quantize-base", "int8"],
    ],
)
def test_lora_trains_with_each_training_option(how, home, capsys):
    folder = how[0].strip("-")
    run("--model", "base", "--output-dir", folder, *LORA, "--max-steps", 3, *how)
    lines = [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    losses = [line["eval_loss"] for line in lines if "eval_loss" in line]
    assert losses[-1] < losses[0]
    checkpoint, model = (load_model(f"{folder}/{name}").state_dict() for name in ("checkpoints/step-3", "model"))
    assert all(torch.equal(checkpoint[name], model[name]) for name in model)


def test_a_checkpoint_of_lora_is_loaded_like_a_model_or_refused(tuned, tmp_path):
    folder = str(tuned / "checkpoints" / "step-6")
    for load in (generate.load_language_model, lambda name: load_any_head(Path(name))):
        found, model = load(folder).state_dict(), load(str(tuned / "model")).state_dict()
        assert found.keys() == model.keys() and all(torch.equal(found[name], model[name]) for name in model)
    run("--model", folder, "--output-dir", "onwards", *LORA, "--max-steps", 1)
    assert_close(logits(load_model("onwards/adapter")), logits(load_model("onwards/model")))
    with pytest.raises(ValueError, match="is a checkpoint of a ScratchGPTForCausalLM"):
        load_model(folder, model_class=ScratchGPTForSequenceClassification)
    shutil.copytree(folder, tmp_path / "cut")
    file = tmp_path / "cut" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    for load in (load_model, load_any_head):
        with pytest.raises(ValueError, match="cut cannot be loaded: model.safetensors has changed since"):
            load(tmp_path / "cut")


def test_a_checkpoint_of_lora_is_exported_like_the_model(tuned, tmp_path):
    pytest.importorskip("gguf")
    for name in ("checkpoints/step-6", "model"):
        shutil.copytree(tuned / name, tmp_path / name)
    checkpoint, model = (export(tmp_path / name, kind="gguf").file for name in ("checkpoints/step-6", "model"))
    assert checkpoint.read_bytes() == model.read_bytes()
    export_gpt2(tmp_path / "checkpoints" / "step-6", tmp_path / "stock")
    assert_close(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "stock")), logits(load_model(tuned / "model")))


def test_a_run_on_a_quantized_base_resumes_bit_for_bit(home):
    words = ["--model", "base", "--tune", "lora", "--quantize-base", "nf4", "--mixed-precision", "bf16"]
    words += ["--gradient-checkpointing", "true", "--validation-fraction", 0]
    run(*words, "--output-dir", "nf4")
    shutil.copytree("nf4", "nf4-again")
    shutil.rmtree("nf4-again/checkpoints/step-6")
    Path("nf4-again/evaluation.json").unlink()
    run(*words, "--output-dir", "nf4-again", "--resume", "latest")
    assert crash.differences(crash.outcome(Path("nf4")), crash.outcome(Path("nf4-again"))) == []


def test_a_compiled_adapter_has_the_same_gradients():
    gradients = []
    for compiled in (False, True):
        model = tiny_model()
        torch.manual_seed(1)
        add_lora(model, rank=4)
        perturbed(model)
        if compiled:
            model.compile(backend="aot_eager", fullgraph=True)
        model(IDS, labels=IDS).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters() if parameter.requires_grad])
    for one, other in zip(*gradients, strict=True):
        assert_close(one, other)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("use_rslora", [False, True])
def test_our_layer_function_equals_pefts_layer(precision, use_rslora, monkeypatch):
    model = tiny_model()
    add_lora(model, rank=4, alpha=8, use_rslora=use_rslora)
    perturbed(model).train()
    layers = [layer for layer in model.modules() if isinstance(layer, peft_linear)]
    assert len({type(layer) for layer in layers}) == 1 and type(layers[0]) is not peft_linear
    found = []
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            loss = model(IDS, labels=IDS).loss
        model.zero_grad()
        loss.backward()
        found.append([loss, *(parameter.grad for parameter in model.parameters() if parameter.requires_grad)])
        monkeypatch.setattr(type(layers[0]), "forward", peft_linear.forward)  # from here on peft's function
    tolerance = 1e-4 if precision == torch.float32 else 0.03  # bf16 has eight bits and rounds at different points
    for ours, pefts in zip(*found, strict=True):
        assert (ours - pefts).norm() <= tolerance * pefts.norm()


def test_the_recipes_choices_equal_those_of_the_library():
    choices = {item.name: get_args(item.type) for item in fields(recipe.Run)}
    assert choices["lora_targets"] == tuple(TARGETS) and choices["lora_init"] == INITS
    assert choices["quantize_base"] == ("no", *QUANTIZATION_KINDS)


BAD = {
    "--tune most": "--tune must be full, last-block, last-N-blocks, head or lora",
    "--tune last-0-blocks": "--tune must be full",
    "--tune last-3-blocks": "the model has 2 blocks",
    "--tune head": "this model's head is its token embedding",
    "--lora-rank 4": "--lora-rank only works with --tune lora",
    "--tune lora --lora-rank 0": "--lora-rank must be at least 1",
    "--tune lora --lora-dropout 1": "--lora-dropout must be below 1",
    "--tune lora --quantize-base nf4 --use-dora true": "--use-dora needs the base's weights unquantized",
    "--tune lora --lora-targets most": "lora.targets.*most",
}


@pytest.mark.parametrize("line", BAD)
def test_bad_input_is_a_one_line_error(line, home, capsys):
    words = ["--dataset", "story.txt", "--output-dir", "bad", "--model", "base", *RUN, *line.split()]
    fails(words, BAD[line], capsys)
    assert not Path("bad").exists()


def test_lora_needs_a_base_and_a_resumed_run_needs_its_rank(home, tuned, capsys):
    fails(["--tune", "lora", "--output-dir", "bad"], "--tune lora needs --model", capsys)
    words = ["--config", "lora/run.yaml", "--resume", "latest", "--output-dir", "lora", "--max-steps", 9]
    fails([*words, "--lora-alpha", 3], r"another --lora-alpha \(16.0 -> 3.0\)", capsys)
