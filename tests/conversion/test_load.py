"""Test loading: an incomplete folder is not a model."""

import pytest
from safetensors.torch import load_file, save_file
from tiny import tiny_model

from scratch_gpt import export_gpt2
from scratch_gpt.conversion.load import load_any_head


def test_an_incomplete_folder_is_not_a_model(tmp_path):
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
