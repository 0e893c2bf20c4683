"""Test saved folders: they include their code, and with the package installed loading needs no trust.

test_compatibility.py tests such folders in stock transformers without the package.
"""

import json
from pathlib import Path

import pytest
from tiny import tiny_model
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

import scratch_gpt
from scratch_gpt import ScratchGPTConfig, ScratchGPTForCausalLM, ScratchGPTForSequenceClassification, ScratchGPTModel


CODE = [
    *("configuration_scratch_gpt.py", "gpt2_layout.py", "linear_cross_entropy.py", "modeling_scratch_gpt.py"),
]
CLASSES = {
    "AutoModel": ScratchGPTModel,
    "AutoModelForCausalLM": ScratchGPTForCausalLM,
    "AutoModelForSequenceClassification": ScratchGPTForSequenceClassification,
}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("published")
    for name, model_class in CLASSES.items():
        tiny_model(model_class, num_labels=3).save_pretrained(root / name)
    return root


@pytest.mark.parametrize("name", CLASSES)
def test_a_saved_folder_has_all_files_it_needs(root, name):
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
def test_the_auto_classes_load_our_models_without_trust_if_the_package_is_imported(root, auto):
    folder = root / auto.__name__
    assert type(AutoConfig.from_pretrained(folder)) is ScratchGPTConfig
    assert type(auto.from_pretrained(folder)) is CLASSES[auto.__name__]
    assert type(auto.from_config(AutoConfig.from_pretrained(folder))) is CLASSES[auto.__name__]
