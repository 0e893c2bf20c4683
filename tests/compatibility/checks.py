"""Load published folders with whatever transformers is installed, without the scratch_gpt package, and check results.

    python tests/compatibility/checks.py FOLDER

FOLDER comes from folders.py, which also wrote expected.json. One JSON object is printed: the versions, and for each
check null or the reason why it failed. It runs in a separate process and imports nothing from this repository.
"""

import importlib.util
import json
import re
import shutil
import sys
import traceback
from pathlib import Path

import torch
import transformers
import without_package  # noqa: F401
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    DynamicCache,
    GPT2LMHeadModel,
    pipeline,
)


ROOT = Path(sys.argv[1])
EXPECTED = json.loads((ROOT / "expected.json").read_text())
TRUST = {"trust_remote_code": True}
IDS = torch.tensor(EXPECTED["ids"])  # (B, T)
LENGTH = len(EXPECTED["greedy"][0]) - IDS.shape[1]
# 99 is not a token of these models: old versions' prompt lookup needs an end of text that never occurs.
GREEDY = {"max_new_tokens": LENGTH, "do_sample": False, "pad_token_id": 0, "eos_token_id": 99}
AUTO = {
    "AutoModel": AutoModel,
    "AutoModelForCausalLM": AutoModelForCausalLM,
    "AutoModelForSequenceClassification": AutoModelForSequenceClassification,
}


def near(actual, expected, atol: float = 1e-5) -> None:
    torch.testing.assert_close(actual.detach(), torch.as_tensor(expected), atol=atol, rtol=0)


def causal(**changes):
    model = AutoModelForCausalLM.from_pretrained(ROOT / "AutoModelForCausalLM", **TRUST, **changes)
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    return model


def same_ids(generated) -> None:
    assert generated.tolist() == EXPECTED["greedy"], f"{generated.tolist()} instead of {EXPECTED['greedy']}"


# --- Checks: each raises if something is wrong -----------------------------------------------------------------------


def check_config_and_auto_classes():
    config = AutoConfig.from_pretrained(ROOT / "AutoModelForCausalLM", **TRUST)
    assert type(config).__module__.startswith("transformers_modules.")
    for name, auto in AUTO.items():
        for folder in (name, "AutoModelForCausalLM"):  # one folder serves every Auto class
            model = auto.from_pretrained(ROOT / folder, **TRUST)
            assert type(model).__name__ == EXPECTED["classes"][name], type(model)
        near(auto.from_pretrained(ROOT / name, **TRUST)(IDS)[0], EXPECTED["outputs"][name])


def check_greedy_with_cache():
    same_ids(causal().generate(IDS, **GREEDY))


def check_greedy_without_cache():
    same_ids(causal().generate(IDS, use_cache=False, **GREEDY))


def check_greedy_with_static_cache():
    same_ids(causal().generate(IDS, cache_implementation="static", **GREEDY))


def check_eager_attention():
    same_ids(causal(attn_implementation="eager").generate(IDS, **GREEDY))


def check_beams():
    model = causal()
    beams = [model.generate(IDS, num_beams=3, use_cache=use_cache, **GREEDY).tolist() for use_cache in (True, False)]
    assert beams[0] == beams[1] == EXPECTED["beams"], beams


def check_left_padded_batch():
    model, short = causal(), IDS[1, 4:]
    ids, mask = IDS.clone(), torch.ones_like(IDS)
    ids[1], mask[1, :4] = 0, 0
    ids[1, 4:] = short
    batch = model.generate(ids, attention_mask=mask, **GREEDY)
    assert batch[0].tolist() == EXPECTED["greedy"][0]
    assert batch[1, IDS.shape[1] :].tolist() == model.generate(short[None], **GREEDY)[0, len(short) :].tolist()


def check_cache_of_two_calls():
    model = causal()
    full = model(IDS, use_cache=False).logits
    for chunks in ([7, 5], [1] * 12):
        cache, parts = DynamicCache(), []
        for chunk in IDS.split(chunks, 1):
            parts.append(model(chunk, past_key_values=cache, use_cache=True).logits)
        near(torch.cat(parts, 1), full)
    first = model(IDS[:, :7], use_cache=True)
    kept = first.cache if "cache" in first.__dict__ else first.past_key_values
    near(model(IDS[:, 7:], past_key_values=kept).logits, full[:, 7:])
    near(model(IDS[:, 7:], cache=model_cache(model)).logits, full[:, 7:])
    near(model.transformer(IDS[:, 7:], cache=model_cache(model)).last_hidden_state, model.transformer(IDS)[0][:, 7:])


def model_cache(model):
    cache = DynamicCache()
    model(IDS[:, :7], cache=cache, use_cache=True)
    return cache


def check_no_cache_is_swallowed():
    model = causal()
    for name in ("kv_cache", "past", "layer_past", "cache_params", "state"):
        for module in (model, model.transformer):
            try:
                module(IDS, **{name: DynamicCache()})
            except ValueError as error:
                assert name in str(error)
            else:
                raise AssertionError(f"{name}= was accepted but not used")


def check_assisted_decoding():
    model = causal()
    assistant = AutoModelForCausalLM.from_pretrained(ROOT / "assistant", **TRUST)
    for row, expected in zip(IDS, EXPECTED["greedy"], strict=True):
        for guesses in ({"assistant_model": assistant}, {"prompt_lookup_num_tokens": 3}):
            generated = model.generate(row[None], **guesses, **GREEDY)[0].tolist()
            # Old versions may generate one token too many, with GPT-2 too.
            assert generated[: len(expected)] == expected


def check_pipelines():
    generate = pipeline("text-generation", model=str(ROOT / "chat"), **TRUST)
    said = generate(EXPECTED["prompt"], return_full_text=False, max_new_tokens=8, do_sample=False)
    assert said[0]["generated_text"] == EXPECTED["continued"], said
    said = generate(EXPECTED["messages"], max_new_tokens=8, do_sample=False)
    assert said[0]["generated_text"][-1]["content"] == EXPECTED["answer"], said
    classify = pipeline("text-classification", model=str(ROOT / "classifier"), **TRUST)
    for found, expected in zip(classify(EXPECTED["texts"], batch_size=2, top_k=None), EXPECTED["scores"], strict=True):
        found = {label["label"]: label["score"] for label in found}
        assert found.keys() == expected.keys() and all(abs(found[key] - expected[key]) < 1e-5 for key in found), found


def check_chat_template():
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "chat", **TRUST)
    text = tokenizer.apply_chat_template(EXPECTED["messages"], tokenize=False, add_generation_prompt=True)
    assert text == EXPECTED["chat"], text
    ids = tokenizer.apply_chat_template(EXPECTED["messages"], add_generation_prompt=True, return_dict=True)[
        "input_ids"
    ]
    assert list(ids) == EXPECTED["chat_ids"], ids


def check_saved_again():
    for name, auto in AUTO.items():
        again = ROOT / "again" / name
        shutil.rmtree(again, ignore_errors=True)
        auto.from_pretrained(ROOT / name, **TRUST).save_pretrained(again)
        files = {file.name for file in (ROOT / name).iterdir()}
        assert {file.name for file in again.iterdir()} == files, {file.name for file in again.iterdir()} ^ files
        for file in files:
            if file.endswith(".py"):
                assert (again / file).read_text() == (ROOT / name / file).read_text(), file
        with (
            safe_open(ROOT / name / "model.safetensors", "pt") as one,
            safe_open(again / "model.safetensors", "pt") as two,
        ):
            assert set(one.keys()) == set(two.keys())
        near(auto.from_pretrained(again, **TRUST)(IDS)[0], EXPECTED["outputs"][name])


def check_stock_gpt2_files():
    model = type(causal()).from_pretrained(ROOT / "gpt2")
    near(model(IDS).logits, EXPECTED["gpt2"])
    near(model(IDS).logits, GPT2LMHeadModel.from_pretrained(ROOT / "gpt2")(IDS).logits)
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        assert parameter.is_contiguous(), f"{name} is not contiguous"
        assert parameter.untyped_storage().nbytes() == parameter.nbytes, f"{name} shares the memory of another tensor"
    assert len({parameter.untyped_storage().data_ptr() for parameter in parameters.values()}) == len(parameters)
    model.save_pretrained(ROOT / "again" / "gpt2")
    near(AutoModelForCausalLM.from_pretrained(ROOT / "again" / "gpt2", **TRUST)(IDS).logits, EXPECTED["gpt2"])


def check_stock_gpt2_files_quantized():
    if importlib.util.find_spec("bitsandbytes") is None:
        return
    config = BitsAndBytesConfig(load_in_8bit=True)
    model_class = type(causal())
    model_class.from_pretrained(ROOT / "gpt2").save_pretrained(ROOT / "again" / "gpt2")
    model = model_class.from_pretrained(ROOT / "gpt2", quantization_config=config)
    assert type(model.transformer.layers[1].attn.v_proj.weight).__name__ == "Int8Params"
    expected = model_class.from_pretrained(ROOT / "again" / "gpt2", quantization_config=config)
    near(model(IDS).logits, expected(IDS).logits)


def check_tensor_parallel_plan():
    plan = causal().tp_plan
    assert plan["lm_head"] == "colwise_gather_output" and plan["transformer.embed_tokens"] == "embedding_rowwise", plan


def check_published_stock_layout():
    model = AutoModelForCausalLM.from_pretrained(ROOT / "stock", trust_remote_code=False)
    assert type(model) is GPT2LMHeadModel
    same_ids(model.generate(IDS, **GREEDY))


def check_adapter():
    from peft import PeftModel

    near(PeftModel.from_pretrained(causal(), ROOT / "adapter")(IDS).logits, EXPECTED["adapted"])
    near(PeftModel.from_pretrained(causal(), ROOT / "adapter").merge_and_unload()(IDS).logits, EXPECTED["adapted"])


def check_training_step():
    model = causal().train()
    loss = model(IDS, labels=IDS).loss
    near(loss, EXPECTED["loss"])
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    near(model(IDS[:, :-1], shift_labels=IDS[:, 1:]).loss, EXPECTED["loss"])


def check_absolute_imports_are_refused():
    for folder in sorted((ROOT / "planted").iterdir()):
        try:
            AutoModelForCausalLM.from_pretrained(folder, **TRUST)
        except ImportError as error:
            assert re.search(r"not found in your environment: scratch_gpt\b", str(error)), error
        else:
            raise AssertionError(f"{folder.name} was loaded")


def main() -> None:
    from importlib.metadata import version

    packages = ("transformers", "huggingface_hub", "tokenizers", "safetensors", "torch")
    report = {"versions": {name: version(name) for name in packages}, "checks": {}}
    for name, check in list(globals().items()):
        if name.startswith("check_"):
            transformers.set_seed(0)
            try:
                check()
                report["checks"][name.removeprefix("check_")] = None
            except Exception as error:
                said = " ".join(str(error).split())[:300]
                line = next(frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.name == name)
                report["checks"][name.removeprefix("check_")] = f"{type(error).__name__}, line {line}: {said}"
    report["own_modules"] = [name for name in sys.modules if name.partition(".")[0] == "scratch_gpt"]
    print(json.dumps(report))


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    main()
