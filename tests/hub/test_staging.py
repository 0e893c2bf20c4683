"""Test staging: files that are not the output of the run are refused."""

import json
import os
import shutil
from pathlib import Path

import torch
import yaml
from published_runs import change_config, refused
from safetensors.torch import load_file, save_file
from tiny import png

from scratch_gpt import ScratchGPTForCausalLM
from scratch_gpt.hub import staging as published
from scratch_gpt.hub.staging import stage
from scratch_gpt.runs.folder import MODEL_CODE
from scratch_gpt_training import evaluate


def test_weights_over_the_limit_are_cut_into_shards_that_load(run, quick, monkeypatch):
    monkeypatch.setattr(published, "_cut_weights", lambda folder, cut=published._cut_weights: cut(folder, 40_000))
    for layout in ("scratch_gpt", "gpt2"):
        out = stage(run, repo="ada/base", layout=layout)
        assert len(list(out.glob("model-*-of-*.safetensors"))) > 1 and not (out / "model.safetensors").exists()
        whole, cut = (ScratchGPTForCausalLM.from_pretrained(folder) for folder in (run / "model", out))
        assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), cut.parameters(), strict=True))


def test_a_folder_with_other_outputs_than_the_run_is_not_published(home, run, quick, capsys, monkeypatch):
    lora, mails = (shutil.copytree(home / name, run.parent / name) for name in ("lora", "mails"))
    (run / "hub.json").write_text(json.dumps({"repo": "ada/base", "commit": "0" * 40, "layout": "scratch_gpt"}))
    kinds = {(run, "gpt2"): "GPT2LMHeadModel", (run, "scratch_gpt"): "ScratchGPTForCausalLM"}
    kinds |= {(mails, "gpt2"): "GPT2ForSequenceClassification", (lora, "adapter"): "ScratchGPTForCausalLM"}
    kinds |= {(mails, "scratch_gpt"): "ScratchGPTForSequenceClassification"}
    kinds |= {(mails, "adapter"): "ScratchGPTForSequenceClassification"}
    for (folder, layout), name in kinds.items():
        stage(folder, repo="ada/x", layout=layout)
        assert f"Checked: loaded as {name}, the staged folder gives the" in capsys.readouterr().out
        shutil.rmtree(folder / "published")

    def damage(draft: Path) -> None:
        (file,) = draft.glob("*.safetensors")
        tensors = load_file(file)
        # The weights of LoRA are small after two steps.
        name = max(name for name in tensors if name.endswith("weight"))
        file.unlink()  # it is linked to the file of the run
        save_file({**tensors, name: -tensors[name]}, file, metadata={"format": "pt"})

    def damage_tokenizer(draft: Path) -> None:
        text = (draft / "tokenizer.json").read_text()
        content = json.loads(text)
        content["model"]["merges"] = content["model"]["merges"][5:]
        (draft / "tokenizer.json").write_text(json.dumps(content))

    for change, message in ((damage, "its logits differ by up to"), (damage_tokenizer, "its tokenizer turns")):
        monkeypatch.setattr(published, "_cut_weights", change)
        for (folder, layout), name in kinds.items():
            words = (folder, "--repo", "ada/x", "--layout", layout, "--dry-run", "true")
            refused(f"Nothing was published: loaded as {name}, .*({message})", *words, capsys=capsys)
            assert not (folder / "published").exists() and not list(folder.glob(".writing-*"))


def test_an_adapter_whose_base_cannot_be_compared_is_reported(home, run, quick, capsys):
    lora = shutil.copytree(home / "lora", run.parent / "lora")
    file = lora / "adapter" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": "ada/none"}))
    stage(lora, repo="ada/x", layout="adapter")
    assert "Not compared with the run: the adapter's base ada/none is not on this machine." in capsys.readouterr().out
    settings = (lora / "run.yaml").read_text()
    (lora / "run.yaml").write_text(settings.replace("quantize_base: 'no'", "quantize_base: nf4"))
    stage(lora, repo="ada/x", layout="adapter")
    assert "Not compared with the run: the adapter was trained on its base in nf4" in capsys.readouterr().out


def test_links_in_a_run_are_refused_by_name(run, quick, capsys, tmp_path):
    (tmp_path / "diary").write_text("Dear diary")
    (tmp_path / "elsewhere").mkdir()
    for name in (
        "loss.png",
        "model/vocab.txt",
        "model/tokenizer.json",
        "metrics.jsonl",
        "evaluation.json",
        "run.yaml",
    ):
        path, kept = run / name, tmp_path / "kept"
        if path.exists():
            path.rename(kept)
        path.symlink_to(kept if kept.exists() else tmp_path / "diary")
        refused(rf"{path} is a link\.", run, "--repo", "ada/x", "--dry-run", "true", capsys=capsys)
        path.unlink()
        if kept.exists():
            kept.rename(path)
    for name in ("model", "tracking", "published", "checkpoints/step-1"):
        if (run / name).exists():
            (run / name).rename(tmp_path / "elsewhere" / "folder")
        (run / name).symlink_to(tmp_path / "elsewhere" / "folder", target_is_directory=True)
        refused(f"{run / name} is a link", run, "--repo", "ada/x", "--dry-run", "true", capsys=capsys)
        (run / name).unlink()
        if (tmp_path / "elsewhere" / "folder").exists():
            (tmp_path / "elsewhere" / "folder").rename(run / name)
    os.mkfifo(run / "emissions.csv")
    refused(r"emissions\.csv is not a regular file", run, "--repo", "ada/x", "--dry-run", "true", capsys=capsys)
    (run / "emissions.csv").unlink()
    stage(run, repo="ada/x")


def test_changed_code_in_a_run_is_not_published_and_pictures_are_checked(run, quick, capsys):
    code = run / "model" / "modeling_scratch_gpt.py"
    code.write_text(code.read_text() + "\nimport os\n")
    out = stage(run, repo="ada/x", layout="scratch_gpt")
    for name, path in MODEL_CODE.items():
        assert (out / name).read_bytes() == path.read_bytes()
    shutil.copyfile("/etc/passwd", run / "loss.png")
    words = (run, "--repo", "ada/x", "--dry-run", "true")
    refused(r"assets/loss\.png: not a PNG picture", *words, capsys=capsys)
    (run / "loss.png").write_bytes(png((b"tEXt", b"Comment\0hf_" + b"a1" * 17)))
    refused(r"assets/loss\.png, line 1: a Hugging Face token", *words, capsys=capsys)
    (run / "loss.png").unlink()
    change_config(run, auto_map={"AutoModelForCausalLM": "eve/x--modeling_scratch_gpt.ScratchGPTForCausalLM"})
    refused(r"config\.json: auto_map names code", *words, "--layout", "scratch_gpt", capsys=capsys)


def test_results_of_public_tasks_are_staged_in_the_hubs_format(run, quick, tmp_path):
    choices = {"text": ["sun", "sea"], "label": ["A", "B"]}
    (tmp_path / "tasks").mkdir()
    line = json.dumps({"question": "Is it the", "choices": choices, "answerKey": "B"})
    (tmp_path / "tasks" / "arc_easy.jsonl").write_text(line)
    words = [run / "model", "--tasks", "arc_easy", "--task-files", tmp_path / "tasks", "--output-dir", run]
    evaluate.main([*map(str, words), "--device", "cpu"])
    out = stage(run, repo="ada/base", layout="gpt2")
    (entry,) = yaml.safe_load((out / ".eval_results" / "scratch_gpt.yaml").read_text())
    assert entry["dataset"] == {"id": "allenai/ai2_arc", "task_id": "ARC-Easy"} and entry["value"] in (0, 1)
    assert "| arc_easy | acc | " in (out / "README.md").read_text()
    (run / "evaluation.json").unlink()
    assert not (stage(run, repo="ada/base", layout="gpt2") / ".eval_results" / "scratch_gpt.yaml").exists()
