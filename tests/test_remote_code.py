"""A saved folder is all a stranger needs: stock transformers loads it where our package does not exist."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tiny import some_ids, tiny_gpt2, tiny_model
from torch.testing import assert_close
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, pipeline

import scratch_gpt
from scratch_gpt import (
    ScratchGPTConfig,
    ScratchGPTForCausalLM,
    ScratchGPTForSequenceClassification,
    ScratchGPTModel,
)
from scratch_gpt.conversion import fresh_head
from scratch_gpt.tokenizer_training import train_tokenizer


CODE = [
    *("configuration_scratch_gpt.py", "gpt2_layout.py", "linear_cross_entropy.py", "modeling_scratch_gpt.py"),
]
CLASSES = {
    "AutoModel": ScratchGPTModel,
    "AutoModelForCausalLM": ScratchGPTForCausalLM,
    "AutoModelForSequenceClassification": ScratchGPTForSequenceClassification,
}
PLANTS = ["import scratch_gpt", "from scratch_gpt.modeling.gpt2_layout import GPT2_LAYOUT"]

# Runs in a process of its own. It prints one line of JSON: what it saw.
STRANGER = '''
import importlib.util, json, sys
from pathlib import Path


class Without:
    """An import finder that finds everything but our package, however that is installed."""

    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, *args, **kwargs):
        return None if name.partition(".")[0] == "scratch_gpt" else self.finder.find_spec(name, *args, **kwargs)


sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
assert importlib.util.find_spec("scratch_gpt") is None

import torch
import transformers

root, ids = Path(sys.argv[1]), torch.tensor(json.loads(sys.argv[2]))
trust = {"trust_remote_code": True, "attn_implementation": "eager"}
seen = {"outputs": {}, "again": {}, "from causal": {}}

config = transformers.AutoConfig.from_pretrained(root / "AutoModelForCausalLM", trust_remote_code=True)
seen["config"] = type(config).__module__
for name in ("AutoModel", "AutoModelForCausalLM", "AutoModelForSequenceClassification"):
    auto = getattr(transformers, name)
    model = auto.from_pretrained(root / name, **trust)
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    seen["outputs"][name] = model(ids)[0].tolist()
    model.save_pretrained(root / "again" / name)
    seen["again"][name] = auto.from_pretrained(root / "again" / name, **trust)(ids)[0].tolist()
    seen["from causal"][name] = type(auto.from_pretrained(root / "AutoModelForCausalLM", **trust)).__name__

causal = transformers.AutoModelForCausalLM.from_pretrained(root / "again" / "AutoModelForCausalLM", **trust)
seen["generated"] = causal.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=0).tolist()
gpt2 = type(causal).from_pretrained(root / "gpt2", attn_implementation="eager")
seen["gpt2"] = gpt2(ids).logits.tolist()

classify = transformers.pipeline("text-classification", model=str(root / "classifier"), trust_remote_code=True)
seen["classified"] = classify(["a boat at sea", "sea"], batch_size=2, top_k=None)

seen["planted"] = []
for folder in sorted((root / "planted").iterdir()):
    try:
        transformers.AutoModelForCausalLM.from_pretrained(folder, **trust)
        seen["planted"].append("loaded")
    except ImportError as error:
        seen["planted"].append(str(error))

seen["modules"] = [name for name in sys.modules if name.partition(".")[0] == "scratch_gpt"]
print(json.dumps(seen))
'''


def classifier(root: Path):
    """A classifier with names for its labels; its tokenizer is written beside it, and pads with EOS."""
    tokenizer = train_tokenizer(["a boat at sea"], vocab_size=270)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(root / "classifier")
    model = tiny_model(ScratchGPTForSequenceClassification, vocab_size=270, pad_token_id=tokenizer.pad_token_id)
    fresh_head(model, ["ham", "spam"], has_many=False, seed=0)
    return model


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("stranger")
    for name, model_class in CLASSES.items():
        tiny_model(model_class, num_labels=3).save_pretrained(root / name)
    tiny_gpt2().save_pretrained(root / "gpt2")
    classifier(root).save_pretrained(root / "classifier")
    for number, plant in enumerate(PLANTS):
        folder = root / "planted" / str(number)
        tiny_model().save_pretrained(folder)
        code = folder / "modeling_scratch_gpt.py"
        code.write_text(code.read_text().replace("\nimport math\n", f"\nimport math\n{plant}\n"))
        assert plant in code.read_text()
    return root


@pytest.fixture(scope="module")
def seen(root) -> dict:
    """What a process without our package saw of the folders."""
    (root / "stranger.py").write_text(STRANGER)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HOME": str(root / "home"), "HF_MODULES_CACHE": str(root / "modules"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, root / "stranger.py", root, json.dumps(some_ids().tolist())]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@torch.no_grad()
def outputs(model) -> torch.Tensor:
    return model(some_ids())[0]


def test_the_stranger_never_met_our_package(seen):
    assert seen["modules"] == []
    assert seen["config"].startswith("transformers_modules.")


@pytest.mark.parametrize("name", CLASSES)
def test_every_auto_class_loads_and_says_the_same(seen, name):
    expected = outputs(tiny_model(CLASSES[name], num_labels=3))
    assert_close(torch.tensor(seen["outputs"][name]), expected, atol=1e-5, rtol=0)
    assert seen["from causal"][name] == CLASSES[name].__name__  # one folder serves every Auto class


def test_the_stranger_generates(seen):
    expected = tiny_model().generate(some_ids(), max_new_tokens=8, do_sample=False, pad_token_id=0)
    assert seen["generated"] == expected.tolist()


def test_the_strangers_pipeline_names_the_labels(seen, root):
    at_home = pipeline("text-classification", model=str(root / "classifier"))(["a boat at sea", "sea"], top_k=None)
    for there, here in zip(seen["classified"], at_home, strict=True):
        assert {label["label"] for label in there} == {"ham", "spam"}
        assert [label["score"] for label in there] == pytest.approx([label["score"] for label in here], abs=1e-5)


def test_the_stranger_reads_gpt2(seen):
    assert_close(torch.tensor(seen["gpt2"]), outputs(tiny_gpt2()), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", CLASSES)
def test_what_the_stranger_saves_is_complete(seen, root, name):
    first, again = root / name, root / "again" / name
    assert {file.name for file in again.iterdir()} == {file.name for file in first.iterdir()}
    for file in (*CODE, "config.json"):
        assert (again / file).read_text() == (first / file).read_text(), file
    with safe_open(first / "model.safetensors", "pt") as ours, safe_open(again / "model.safetensors", "pt") as theirs:
        assert set(ours.keys()) == set(theirs.keys())
    assert seen["again"][name] == seen["outputs"][name]
    at_home = CLASSES[name].from_pretrained(again, attn_implementation="eager")
    assert_close(outputs(at_home), torch.tensor(seen["again"][name]), atol=1e-5, rtol=0)


def test_an_absolute_import_of_our_package_does_not_pass(seen):
    assert len(seen["planted"]) == len(PLANTS)
    assert all(re.search(r"not found in your environment: scratch_gpt\b", error) for error in seen["planted"])


# --- With the package ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLASSES)
def test_a_saved_folder_holds_all_it_needs(root, name):
    files = {"config.json", "model.safetensors", *CODE}
    if name == "AutoModelForCausalLM":
        files.add("generation_config.json")
    assert {file.name for file in (root / name).iterdir()} == files
    source = Path(scratch_gpt.__file__).parent / "modeling"
    assert all((root / name / file).read_text() == (source / file).read_text() for file in CODE)
    auto_map = json.loads((root / name / "config.json").read_text())["auto_map"]
    assert auto_map == {
        "AutoConfig": "configuration_scratch_gpt.ScratchGPTConfig",
        **{auto: f"modeling_scratch_gpt.{model_class.__name__}" for auto, model_class in CLASSES.items()},
    }


@pytest.mark.parametrize("auto", [AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification])
def test_with_the_package_the_auto_classes_know_ours_without_trust(root, auto):
    folder = root / auto.__name__
    assert type(AutoConfig.from_pretrained(folder)) is ScratchGPTConfig
    assert type(auto.from_pretrained(folder)) is CLASSES[auto.__name__]
    assert type(auto.from_config(AutoConfig.from_pretrained(folder))) is CLASSES[auto.__name__]
