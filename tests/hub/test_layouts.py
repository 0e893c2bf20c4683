"""Test layouts: stock if possible, kept by a repository, refused if a run cannot have it."""

import json
import shutil

import pytest
import torch
from published_runs import change_config, layout_at, refused
from safetensors.torch import load_file

from scratch_gpt import ScratchGPTForCausalLM
from scratch_gpt.hub.publish import publish, publish_checkpoints
from scratch_gpt_training import publish as publish_recipe


def test_the_stock_layout_is_chosen_if_it_can_express_the_model(run, hub, capsys):
    publish(run, "ada/base")
    assert layout_at(hub, "ada/base") == "gpt2" and json.loads((run / "hub.json").read_text())["layout"] == "gpt2"
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Layout gpt2: stock GPT-2 can express the model")
    assert lines[1] == "Checked: loaded as GPT2LMHeadModel, the staged folder gives the run's 32 greedy ids."
    code = hub.files("ada/base")["README.md"].decode().split("```python\n")[2].split("```")[0]
    assert code.startswith("import scratch_gpt\n") and 'ForCausalLM.from_pretrained("ada/base")' in code
    here: dict = {}
    exec(code, here)
    own = load_file(run / "model" / "model.safetensors")
    assert type(here["model"]) is ScratchGPTForCausalLM
    assert all(torch.equal(tensor, here["model"].state_dict()[name]) for name, tensor in own.items())

    (run / "hub.json").unlink()
    change_config(run, hidden_act="gelu")  # the exact GELU, which GPT-2's format lacks
    publish(run, "ada/exact")
    assert layout_at(hub, "ada/exact") == "scratch_gpt"
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Layout scratch_gpt: ours, with its code, because") and "hidden_act 'gelu'" in lines[0]
    assert lines[1].startswith("Checked: loaded as ScratchGPTForCausalLM,")
    publish_checkpoints(run, "ada/steps")
    assert {layout_at(hub, "ada/steps", f"step-{step}") for step in (1, 2)} == {"scratch_gpt"}


def test_a_repository_keeps_its_layout(home, run, hub, capsys):
    publish(run, "ada/base", layout="scratch_gpt")
    note = (run / "hub.json").read_text()
    (run / "hub.json").unlink()  # the layout is then read from the files on the Hub
    publish(run, "ada/base")
    assert "Layout scratch_gpt: ada/base is already published in this layout." in capsys.readouterr().out
    (run / "hub.json").unlink()
    publish_checkpoints(run, "ada/base")
    assert {layout_at(hub, "ada/base", branch) for branch in ("main", "step-1", "step-2")} == {"scratch_gpt"}

    capsys.readouterr()
    # Read by dry runs and pushes to other repositories, as adapters depend on the layout.
    (run / "hub.json").write_text(note)
    publish_recipe.main([str(run), "--repo", "ada/base", "--dry-run", "true"])
    publish(run, "ada/other")
    assert capsys.readouterr().out.count("Layout scratch_gpt: ada/base is already published in this layout.") == 2
    assert layout_at(hub, "ada/other") == "scratch_gpt"
    publish(run, "ada/base", layout="gpt2")  # an explicit layout replaces it, with a message
    assert "Layout gpt2: as requested; the layout of ada/base was scratch_gpt until now." in capsys.readouterr().out

    change_config(run, hidden_act="gelu")
    before = hub.repos["ada/base"].branches["main"]
    message = r"ada/base is in the layout gpt2 and keeps it.*hidden_act 'gelu'.*layout[ =]'?scratch_gpt'?\."
    refused(message, run, "--repo", "ada/base", capsys=capsys)
    assert hub.repos["ada/base"].branches["main"] == before


def test_layouts_that_a_run_cannot_have_are_refused(home, run, hub, capsys, monkeypatch):
    refused("has no adapter/", run, "--repo", "ada/x", "--layout", "adapter", capsys=capsys)
    shutil.copytree(home / "lora", run.parent / "lora")
    refused(
        r"Publish it first \(base as USER/NAME",
        "lora",
        "--repo",
        "ada/x",
        "--layout",
        "adapter",
        capsys=capsys,
    )
    publish(run, "ada/base", layout="gpt2")
    refused("published in the layout gpt2", "lora", "--repo", "ada/x", "--layout", "adapter", capsys=capsys)
    with pytest.raises(ValueError, match="Only the end of such a run"):
        publish_checkpoints("lora", "ada/x")
