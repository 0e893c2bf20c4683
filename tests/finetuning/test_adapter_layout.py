"""Test the layout of adapters: on stock GPT-2 an adapter is stock too."""

from pathlib import Path

import pytest
from adapted import CLASSES, IDS, assert_close, logits, perturbed
from peft import LoraConfig, get_peft_model
from tiny import tiny_gpt2
from transformers import AutoModelForCausalLM

from scratch_gpt.conversion.load import load_model
from scratch_gpt.finetuning.lora import TARGETS, add_lora, save_adapter


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("changes", [{}, {"use_dora": True}, {"use_rslora": True}])
@pytest.mark.parametrize("model_class", CLASSES)
def test_an_adapter_on_stock_gpt2_is_stock_too(model_class, changes, targets, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_gpt2(pad_token_id=0).save_pretrained("gpt2")
    model = load_model("gpt2", model_class=model_class)
    add_lora(model, base="gpt2", targets=targets, rank=4, alpha=12, **changes)
    learned = logits(perturbed(model))
    save_adapter(model, Path("adapter"))
    stock = CLASSES[model_class].from_pretrained("adapter")
    assert type(stock.get_base_model()).__name__.startswith("GPT2")
    unpadded = IDS.clamp(min=1)  # GPT-2's classifier takes any pad id for padding
    assert_close(logits(stock, unpadded), logits(model, unpadded), 2e-5)
    assert_close(logits(load_model("adapter", model_class=model_class).eval()), learned, 2e-5)


def test_adapters_of_other_trainers_on_stock_gpt2_are_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_gpt2().save_pretrained("gpt2")
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["c_attn", "c_proj", "c_fc"], use_dora=True)
    theirs = get_peft_model(AutoModelForCausalLM.from_pretrained("gpt2"), config)
    perturbed(theirs).save_pretrained("theirs")
    assert_close(logits(load_model("theirs").eval()), logits(theirs), 2e-5)
    scales = {"c_fc": 64, "h.0.attn.c_attn": 32, r"h\.1\..*c_proj": 16}
    config = LoraConfig(r=4, lora_alpha=4, target_modules=["c_attn", "c_proj", "c_fc"], alpha_pattern=scales)
    theirs = get_peft_model(AutoModelForCausalLM.from_pretrained("gpt2"), config)
    perturbed(theirs).save_pretrained("scaled")
    assert_close(logits(load_model("scaled").eval()), logits(theirs), 2e-5)
    model = load_model("gpt2")
    with pytest.raises(ValueError, match="lora_init pissa splits gpt2's c_attn"):
        add_lora(model, base="gpt2", init="pissa")
