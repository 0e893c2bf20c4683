"""Test saved adapters: complete, loaded by PEFT and by us, and only on their base."""

import json
import shutil
from pathlib import Path

import pytest
from adapted import CLASSES, IDS, assert_close, logits, perturbed
from peft import AutoPeftModelForCausalLM, PeftModel
from tiny import tiny_model

from scratch_gpt import ScratchGPTForCausalLM, ScratchGPTForSequenceClassification
from scratch_gpt.conversion.load import load_model
from scratch_gpt.finetuning.lora import TARGETS, add_lora, save_adapter
from scratch_gpt.finetuning.trainable import count_parameters


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("model_class", CLASSES)
def test_a_saved_adapter_is_loaded_by_peft_and_by_us_with_its_trained_head(model_class, targets, base, tmp_path):
    model = model_class.from_pretrained(base)
    add_lora(model, base=str(tmp_path / base), targets=targets, rank=4)
    learned = logits(perturbed(model))
    save_adapter(model, Path("adapter"))
    assert {file.name for file in Path("adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "base.json",
    }
    said = "".join(file.read_text() for file in Path("adapter").glob("*.json"))
    assert str(tmp_path) not in said and json.loads(Path("adapter/adapter_config.json").read_text(encoding="utf-8"))[
        "target_modules"
    ] == sorted(TARGETS[targets][0])
    assert_close(logits(PeftModel.from_pretrained(model_class.from_pretrained(base), "adapter")), learned)
    assert_close(logits(CLASSES[model_class].from_pretrained("adapter")), learned)
    ours = load_model("adapter", model_class=model_class)
    assert_close(logits(ours.eval()), learned)
    assert type(ours) is model_class and count_parameters(ours)[0] == count_parameters(ours)[1]


@pytest.mark.parametrize("changes", [{"init": "pissa"}, {"init": "olora"}, {"use_dora": True}, {"use_rslora": True}])
def test_every_kind_of_lora_is_saved_completely(changes, base):
    model = ScratchGPTForCausalLM.from_pretrained(base)
    add_lora(model, base=base, rank=4, **changes)
    learned = logits(perturbed(model))
    save_adapter(model, Path("adapter"))
    assert_close(logits(AutoPeftModelForCausalLM.from_pretrained("adapter")), learned)
    assert_close(logits(load_model("adapter").eval()), learned)


def test_a_classifiers_labels_are_saved_with_its_adapter(base):
    names = {0: "ham", 1: "spam", 2: "eggs"}
    model = ScratchGPTForSequenceClassification.from_pretrained(base, id2label=names)
    add_lora(model, base=base)
    save_adapter(perturbed(model), Path("adapter"))
    again = load_model("adapter", model_class=ScratchGPTForSequenceClassification)
    assert again.config.id2label == names and again.config.label2id == {"ham": 0, "spam": 1, "eggs": 2}
    assert_close(logits(again.eval()), logits(model))
    trunk = load_model("adapter").transformer  # as a language model, without the classifier's head
    assert_close(trunk.eval()(IDS).last_hidden_state, again.transformer(IDS).last_hidden_state)


def test_an_adapter_on_an_adapter_finds_the_base(base):
    first = ScratchGPTForCausalLM.from_pretrained(base)
    add_lora(first, base=base)
    save_adapter(perturbed(first), Path("first"))
    second = load_model("first")
    add_lora(second, base="first")
    save_adapter(perturbed(second), Path("second"))
    assert_close(logits(load_model("second").eval()), logits(second))


def test_an_adapter_for_another_base_is_a_one_line_error(base):
    model = ScratchGPTForCausalLM.from_pretrained(base)
    add_lora(model, base=base)
    save_adapter(model, Path("adapter"))
    tiny_model(seed=1).save_pretrained(base)
    with pytest.raises(ValueError, match="The adapter adapter was made on other weights than those that base has now"):
        load_model("adapter")
    tiny_model(num_hidden_layers=3).save_pretrained(base)
    with pytest.raises(ValueError, match="made on a base of num_hidden_layers 2, but base has 3"):
        load_model("adapter")
    Path("adapter/base.json").unlink()  # as other trainers save it
    tiny_model(hidden_size=16).save_pretrained(base)
    with pytest.raises(ValueError, match="The adapter adapter does not fit base"):
        load_model("adapter")
    Path("adapter/adapter_model.safetensors").write_bytes(b"cut off")
    with pytest.raises(ValueError, match="The adapter adapter cannot be read"):
        load_model("adapter")
    save_adapter(model, Path("adapter"))
    shutil.rmtree(base)
    with pytest.raises(ValueError, match="The adapter adapter needs its base, base: base cannot be loaded"):
        load_model("adapter")
