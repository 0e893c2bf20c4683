"""Publishing, with the official client against a Hub on loopback: what goes up is what a stranger gets."""

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import hub_server
import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from bad_input import fails
from huggingface_hub import HfApi, constants
from huggingface_hub.utils import _http
from places import TESTS
from safetensors.torch import load_file, save_file
from tiny import png, tiny_model
from transformers import AutoModelForCausalLM
from transformers.utils import hub as transformers_hub

from scratch_gpt import ScratchGPTForCausalLM
from scratch_gpt.hub import publish as hub_module
from scratch_gpt.hub import staging as published
from scratch_gpt.hub.publish import publish, publish_checkpoints
from scratch_gpt.hub.readback import check_outputs, outputs_of
from scratch_gpt.hub.staging import files_of, stage
from scratch_gpt.runs.folder import CODE
from scratch_gpt.runs.record import base_model, read_record
from scratch_gpt.tokenization.tokenizer import load_tokenizer
from scratch_gpt.utils.foreign import shown
from scratch_gpt_training import classify, pretrain
from scratch_gpt_training import publish as publish_recipe


STORY = "The old sailor walked to the shiny sea, and the sun shone on ninety quiet boats.\n" * 60
SMALL = ["--max-length", "128", "--device", "cpu", "--max-steps", "2", "--eval-batches", "1", "--log-every", "1"]
NEW = ["--preset", "tiny", "--vocab-size", "300", "--config-overrides", "hidden_size=32,num_hidden_layers=2"]
LORA = ["--tune", "lora", "--lora-rank", "2"]


def recipe(module, *words) -> None:
    for state in (AcceleratorState, PartialState):
        state._reset_state()
    module.main([str(word) for word in words])


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """Runs of every kind: base, chat (a base with a template, as instruct leaves it), and two with an adapter."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "story.txt").write_text(STORY)
    mails = "".join(f"{('ham', 'spam')[n % 2]}\tThis is mail number {n}.\n" for n in range(40))
    (folder / "mails.tsv").write_text(mails)
    before = os.getcwd()
    os.chdir(folder)
    try:
        story = ["--dataset", "story.txt", *SMALL]
        recipe(pretrain, *story, *NEW, "--output-dir", "base", "--report-to", "tensorboard", "--eval-every", "1")
        recipe(pretrain, *story, *LORA, "--model", "base/model", "--output-dir", "lora")
        mails = ["--dataset", "mails.tsv", "--column-names", "label,text", *SMALL, *LORA]
        recipe(classify, *mails, "--model", "base/model", "--output-dir", "mails")
    finally:
        os.chdir(before)
    shutil.copytree(folder / "base", folder / "chat")
    (folder / "chat" / "model" / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant: "
    )
    manifest = json.loads((folder / "chat" / "manifest.json").read_text())
    (folder / "chat" / "manifest.json").write_text(json.dumps({**manifest, "task": "instruct"}))
    return folder


@pytest.fixture
def run(home, tmp_path, monkeypatch) -> Path:
    """A copy of the base run, to be changed; the working folder is around it."""
    shutil.copytree(home / "base", tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "base"


@pytest.fixture
def quick(monkeypatch):
    """Pictures that cost nothing."""
    for name in ("plot_attention", "plot_parameters", "plot_token_lengths"):
        put = lambda _, *rest: next(path for path in rest if isinstance(path, Path)).write_bytes(png())  # noqa: E731
        monkeypatch.setattr(published, name, put)


@pytest.fixture
def hub(monkeypatch, tmp_path, quick):
    """A running Hub, which this process' client asks, with a token that may write."""
    with hub_server.serve() as server:
        monkeypatch.setenv("HF_TOKEN", hub_server.WRITER)
        for name, value in (("HF_HUB_OFFLINE", False), ("HF_HUB_DISABLE_XET", True), ("ENDPOINT", server.url)):
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setattr(transformers_hub, "_hf_api", None)  # which remembers an endpoint
        yield server


def uploads(hub, since: int = 0) -> list[str]:
    return [asked for asked in hub.requests[since:] if asked.startswith("PUT ") or "/commit/" in asked]


# --- What goes up ------------------------------------------------------------------------------------------------

OURS = {"README.md", "config.json", "configuration_scratch_gpt.py", "evaluation.json", "generation_config.json"}
OURS |= {
    "gpt2_layout.py",
    "linear_cross_entropy.py",
    "metrics.jsonl",
    "model.safetensors",
    "modeling_scratch_gpt.py",
    "tokenizer.json",
}
OURS |= {"tokenizer_config.json", *(f"assets/{name}.png" for name in ("attention", "loss", "parameters", "tokens"))}
STOCK = {name for name in OURS if not name.endswith(".py")}


def test_only_files_on_the_allow_list_are_published(run, hub):
    for name in ("training_args.json", ".env", "notes.txt", "optimizer.safetensors"):
        (run / "model" / name).write_text("mine")
    push = publish(run, "ada/base", layout="scratch_gpt")
    there = hub.files("ada/base")
    (events,) = set(there) - OURS
    assert set(there) - {events} == OURS and events.startswith("tensorboard/events.out.tfevents.")
    assert events.count(".") == 4 and events.endswith(".0")  # neither the host's name nor the process' number
    assert there == {name: (run / "published" / name).read_bytes() for name in files_of(run / "published")}
    assert push.has_changed and push.commit == hub.repos["ada/base"].branches["main"]
    kinds = {name: file.is_lfs for name, file in hub.repos["ada/base"].commits[push.commit].items()}
    assert kinds["model.safetensors"] and not kinds["README.md"]
    assert any("/lfs/" in asked and asked.endswith("/1") for asked in hub.requests)  # weights went up in parts
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (run / "model", run / "published"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert published.left_behind(run)[-4:] == [
        f"model/{name}" for name in sorted((".env", "notes.txt", "optimizer.safetensors", "training_args.json"))
    ]


def test_publishing_again_commits_only_changes(run, hub):
    first = publish(run, "ada/base")
    asked = len(hub.requests)
    again = publish(run, "ada/base")
    assert not again.has_changed and again.commit == first.commit and not uploads(hub, asked)
    content = json.loads((run / "evaluation.json").read_text())
    content["results"]["validation"]["loss"] = 1.25
    (run / "evaluation.json").write_text(json.dumps(content))
    before = hub.files("ada/base")
    assert publish(run, "ada/base").has_changed
    after = hub.files("ada/base")
    assert {name for name in after if after[name] != before[name]} == {"README.md", "evaluation.json"}
    assert b"| validation | loss | " in after["README.md"] and b"| 1.25 |" in after["README.md"]


def test_hand_edits_on_the_hub_are_kept(run, hub):
    publish(run, "ada/base", layout="scratch_gpt")
    card = hub.files("ada/base")["README.md"].decode()
    by_hand = card.replace("# base\n", "# base\n\nFor my mother.\n").replace(
        "library_name", "license: mit\nlibrary_name"
    )
    HfApi().upload_file(path_or_fileobj=by_hand.encode(), path_in_repo="README.md", repo_id="ada/base")
    HfApi().upload_file(path_or_fileobj=b"thanks", path_in_repo="THANKS.md", repo_id="ada/base")
    own = "models/old/weights.safetensors"
    HfApi().upload_file(path_or_fileobj=b"mine", path_in_repo=own, repo_id="ada/base")
    assert not publish(run, "ada/base").has_changed
    publish(run, "ada/base", layout="gpt2")
    there = hub.files("ada/base")
    kept = there["README.md"].decode()
    assert "For my mother." in kept and "license: mit" in kept and "stock GPT-2" in kept
    assert (
        there["THANKS.md"] == b"thanks"
        and there["models/old/weights.safetensors"] == b"mine"
        and "modeling_scratch_gpt.py" not in there
    )  # the layout's own files go


def test_an_interrupted_upload_resumes(run, hub):
    weights = hashlib.sha256((run / "model" / "model.safetensors").read_bytes()).hexdigest()
    hub.refuse = rf"PUT /lfs/{weights}"
    with pytest.raises(ValueError, match=r"model\.safetensors.*the same command goes on"):
        publish(run, "ada/base", layout="scratch_gpt")
    assert len(hub.repos["ada/base"].log) == 1  # nothing was committed
    hub.refuse, arrived = "", set(hub.objects)
    asked = len(hub.requests)
    assert publish(run, "ada/base", layout="scratch_gpt").has_changed and arrived
    assert not any(oid in line for line in uploads(hub, asked) for oid in arrived)


def test_checkpoints_are_published_on_branches(run, hub):
    publish(run, "ada/base", layout="scratch_gpt")
    main = hub.files("ada/base")
    publish(run, "ada/base", revision="draft", licence="mit")
    assert hub.files("ada/base") == main and b"license: mit" in hub.files("ada/base", "draft")["README.md"]
    assert b'revision="draft"' in hub.files("ada/base", "draft")["README.md"]
    publish_checkpoints(run, "ada/base")
    assert set(hub.repos["ada/base"].branches) == {"main", "draft", "step-1", "step-2"}
    for step in (1, 2):
        own = load_file(run / "checkpoints" / f"step-{step}" / "model.safetensors")
        model = AutoModelForCausalLM.from_pretrained("ada/base", revision=f"step-{step}", cache_dir=run / "cache")
        weights = model.state_dict()
        assert all(torch.equal(tensor, weights[name]) for name, tensor in own.items())
        card = hub.files("ada/base", f"step-{step}")["README.md"].decode()
        assert f"step {step} (a checkpoint)" in card and "test" not in card.split("model-index")[1].split("---")[0]


def test_a_private_repository_is_private(run, hub, monkeypatch):
    publish(run, "ada/secret", private=True)
    assert hub.repos["ada/secret"].private
    publish(run, "ada/open")
    with pytest.raises(ValueError, match="exists already, and is public"):
        publish(run, "ada/open", private=True)
    monkeypatch.setenv("HF_TOKEN", hub_server.STRANGER)
    with pytest.raises(OSError, match="ada/secret"):
        AutoModelForCausalLM.from_pretrained("ada/secret", cache_dir=run / "cache")


def test_weights_over_the_limit_are_cut_into_shards_that_load(run, quick, monkeypatch):
    monkeypatch.setattr(published, "_cut_weights", lambda folder, cut=published._cut_weights: cut(folder, 40_000))
    for layout in ("scratch_gpt", "gpt2"):
        out = stage(run, repo="ada/base", layout=layout)
        assert len(list(out.glob("model-*-of-*.safetensors"))) > 1 and not (out / "model.safetensors").exists()
        whole, cut = (ScratchGPTForCausalLM.from_pretrained(folder) for folder in (run / "model", out))
        assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), cut.parameters(), strict=True))


def test_push_to_hub_of_a_model_works(hub, tmp_path):
    model = tiny_model()
    model.push_to_hub("ada/plain")
    assert "tokenizer.json" not in hub.files("ada/plain")  # which training/publish.py brings, with the card
    again = AutoModelForCausalLM.from_pretrained("ada/plain", cache_dir=tmp_path / "cache")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


# --- In which layout ----------------------------------------------------------------------------------------------


def layout_at(hub, repo: str, revision: str = "main") -> str:
    there = hub.files(repo, revision)
    has_code = any(name.endswith(".py") for name in there)
    if "adapter_config.json" in there:
        assert not has_code and "config.json" not in there
        return "adapter"
    layout = json.loads(there["config.json"])["model_type"]
    assert has_code == (layout == "scratch_gpt")
    return layout


def change_config(run: Path, **fields) -> None:
    file = run / "model" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def test_the_stock_layout_is_chosen_where_it_can_express_the_model(run, hub, capsys):
    publish(run, "ada/base")
    assert layout_at(hub, "ada/base") == "gpt2" and json.loads((run / "hub.json").read_text())["layout"] == "gpt2"
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Layout gpt2: stock GPT-2 expresses the model")
    assert lines[1] == "Checked: loaded as GPT2LMHeadModel, the staged folder gives the run's 32 greedy ids."
    code = hub.files("ada/base")["README.md"].decode().split("```python\n")[2].split("```")[0]
    assert code.startswith("import scratch_gpt\n") and 'ForCausalLM.from_pretrained("ada/base")' in code
    here: dict = {}
    exec(code, here)
    own = load_file(run / "model" / "model.safetensors")
    assert type(here["model"]) is ScratchGPTForCausalLM
    assert all(torch.equal(tensor, here["model"].state_dict()[name]) for name, tensor in own.items())

    (run / "hub.json").unlink()
    change_config(run, hidden_act="gelu")  # the exact one, for which GPT-2 has no name
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
    (run / "hub.json").unlink()  # the files on the Hub say it
    publish(run, "ada/base")
    assert "Layout scratch_gpt: ada/base is published in it already." in capsys.readouterr().out
    (run / "hub.json").unlink()
    publish_checkpoints(run, "ada/base")
    assert {layout_at(hub, "ada/base", branch) for branch in ("main", "step-1", "step-2")} == {"scratch_gpt"}

    capsys.readouterr()
    (run / "hub.json").write_text(note)  # which a dry run reads, and a push to another place: adapters are made on it
    publish_recipe.main([str(run), "--repo", "ada/base", "--dry-run", "true"])
    publish(run, "ada/other")
    assert capsys.readouterr().out.count("Layout scratch_gpt: ada/base is published in it already.") == 2
    assert layout_at(hub, "ada/other") == "scratch_gpt"
    publish(run, "ada/base", layout="gpt2")  # by name it changes, with a word about it
    assert "Layout gpt2: chosen by name; ada/base has been in the layout scratch_gpt until now." in (
        capsys.readouterr().out
    )

    change_config(run, hidden_act="gelu")
    before = hub.repos["ada/base"].branches["main"]
    message = r"ada/base is in the layout gpt2 and keeps it.*hidden_act 'gelu'.*layout[ =]'?scratch_gpt'?\."
    refused(message, run, "--repo", "ada/base", capsys=capsys)
    assert hub.repos["ada/base"].branches["main"] == before


def test_a_run_with_lora_is_published_merged_and_its_adapter_by_name(home, run, hub, capsys):
    publish(run, "ada/base", layout="scratch_gpt")
    lora = shutil.copytree(home / "lora", run.parent / "lora")
    publish(lora, "ada/lora", layout="adapter")
    publish(lora, "ada/merged")
    publish(lora, "ada/lora")  # which holds the adapter alone
    assert (layout_at(hub, "ada/merged"), layout_at(hub, "ada/lora")) == ("gpt2", "adapter")
    refused("ada/lora holds an adapter and keeps that layout, but this run has none.*layout[ =]'?gpt2", run, "--repo",
            "ada/lora", capsys=capsys)  # fmt: skip
    assert layout_at(hub, "ada/lora") == "adapter"


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
        name = max(name for name in tensors if name.endswith("weight"))  # LoRA's are small after two steps
        file.unlink()  # the run's own file has a link to it
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


def test_an_adapter_whose_base_cannot_be_compared_says_so(home, run, quick, capsys):
    lora = shutil.copytree(home / "lora", run.parent / "lora")
    file = lora / "adapter" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": "ada/none"}))
    stage(lora, repo="ada/x", layout="adapter")
    assert "Not compared with the run: the adapter's base ada/none is not on this machine." in capsys.readouterr().out
    settings = (lora / "run.yaml").read_text()
    (lora / "run.yaml").write_text(settings.replace("quantize_base: 'no'", "quantize_base: nf4"))
    stage(lora, repo="ada/x", layout="adapter")
    assert "Not compared with the run: the adapter was trained on its base in nf4" in capsys.readouterr().out


def test_the_readback_accepts_ties_and_names_them(run):
    model, tokenizer = ScratchGPTForCausalLM.from_pretrained(run / "model").bfloat16(), load_tokenizer(run / "model")
    assert outputs_of(model, tokenizer).dtype == torch.bfloat16
    first = outputs_of(model, tokenizer).ids[0]
    twin = (first + 1) % model.config.vocab_size
    with torch.no_grad():
        rows = model.get_input_embeddings().weight
        rows[twin] = rows[first]
    expected = outputs_of(model, tokenizer)
    other = twin if expected.ids[0] == first else first
    swapped = expected._replace(ids=[other, *expected.ids[1:]])
    line = check_outputs(swapped, model, run / "model")
    assert f"greedy ids, except for ties in bfloat16: id 1 is {other} or {expected.ids[0]}." in line
    far = expected.scores[-1].argmin().item()
    with pytest.raises(ValueError, match=rf"greedy id 32 of 32 is \d+, not {far}\."):
        check_outputs(expected._replace(ids=[*expected.ids[:-1], far]), model, run / "model")


# --- What does not ------------------------------------------------------------------------------------------------


def refused(message, *words, capsys):
    fails([*words], message, capsys, main=publish_recipe.main)


def test_a_leak_is_named_and_nothing_is_pushed(run, hub, capsys):
    lines = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(lines + json.dumps({"step": 3, "sample": "hf_" + "a1" * 17}) + "\n")
    number = lines.count("\n") + 1
    refused(rf"metrics\.jsonl, line {number}: a Hugging Face token", run, "--repo", "ada/base", capsys=capsys)
    assert not hub.repos and not (run / "published").exists()
    (run / "metrics.jsonl").write_text(lines)
    manifest = json.loads((run / "manifest.json").read_text())
    source = {**manifest["sources"][0], "files": [{"name": "caf\u00e9hf_" + "a1" * 17}]}
    (run / "manifest.json").write_text(json.dumps({**manifest, "sources": [source]}))
    refused(r"README\.md, line \d+: a Hugging Face token", run, "--repo", "ada/base", capsys=capsys)
    (run / "manifest.json").write_text(json.dumps(manifest))
    (run / "model" / "old.bin").write_bytes(b"x")
    refused(r"old\.bin is a pickle", run, "--repo", "ada/base", capsys=capsys)


def test_links_in_a_run_are_refused_and_name_themselves(run, quick, capsys, tmp_path):
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


def test_code_that_was_changed_in_a_run_is_not_published_and_a_picture_is_one(run, quick, capsys):
    code = run / "model" / "modeling_scratch_gpt.py"
    code.write_text(code.read_text() + "\nimport os\n")
    out = stage(run, repo="ada/x", layout="scratch_gpt")
    for name, path in CODE.items():
        assert (out / name).read_bytes() == path.read_bytes()
    shutil.copyfile("/etc/passwd", run / "loss.png")
    words = (run, "--repo", "ada/x", "--dry-run", "true")
    refused(r"assets/loss\.png: not a PNG picture", *words, capsys=capsys)
    (run / "loss.png").write_bytes(png((b"tEXt", b"Comment\0hf_" + b"a1" * 17)))
    refused(r"assets/loss\.png, line 1: a Hugging Face token", *words, capsys=capsys)
    (run / "loss.png").unlink()
    change_config(run, auto_map={"AutoModelForCausalLM": "eve/x--modeling_scratch_gpt.ScratchGPTForCausalLM"})
    refused(r"config\.json: auto_map names code", *words, "--layout", "scratch_gpt", capsys=capsys)


def test_access_is_refused_in_one_line(run, hub, capsys, monkeypatch):
    go = (run, "--repo", "ada/base")
    monkeypatch.setenv("HF_TOKEN", hub_server.READER)
    refused("may read, not write", *go, capsys=capsys)
    monkeypatch.setenv("HF_TOKEN", hub_server.STRANGER)
    refused("the token is eve's, which may write under eve", *go, capsys=capsys)
    monkeypatch.setenv("HF_TOKEN", "hf_nonsense")
    refused("does not know this token", *go, capsys=capsys)
    monkeypatch.setenv("HF_TOKEN", hub_server.FINE)
    refused("no write scope for ada", *go, capsys=capsys)
    monkeypatch.delenv("HF_TOKEN")
    refused("There is no token.*hf auth login", *go, capsys=capsys)
    assert not hub.repos


def test_invalid_and_taken_repository_names_are_refused(run, hub, capsys):
    for name in ("base", "a/b/c", "ada/--x", "ada/b c"):
        refused("user/name", run, "--repo", name, capsys=capsys)
    refused("Give a run and where it goes", run, capsys=capsys)
    api = HfApi()
    api.create_repo("ada/taken")
    api.upload_file(path_or_fileobj=b"# Another's", path_in_repo="README.md", repo_id="ada/taken")
    api.upload_file(path_or_fileobj=b"x", path_in_repo="model.safetensors", repo_id="ada/taken")
    refused("name ada/taken is taken", run, "--repo", "ada/taken", capsys=capsys)
    assert hub.files("ada/taken") == {"README.md": b"# Another's", "model.safetensors": b"x"}


def test_without_a_network_or_room_it_says_so(run, hub, capsys, monkeypatch):
    go = (run, "--repo", "ada/base")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused("switched off here", *go, capsys=capsys)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    refused(r"127\.0\.0\.1:9 cannot be reached", *go, capsys=capsys)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(published.shutil, "copyfile", full)
    refused("No space left on device.*Make room", *go, capsys=capsys)
    assert not hub.repos and not (run / "published").exists() and not list(run.glob(".writing-*"))


TROUBLE = {
    "never answers": r"cannot be reached \(ReadTimeout after 0\.3 s\)",
    "resets": r"cannot be reached \((ReadError|RemoteProtocolError)\)",
    "portal": "does not answer as a Hub does: a network that asks to log in",
    "page": "does not answer as a Hub does",
    "empty": "does not answer as a Hub does",
    "list": "does not answer as a Hub does",
    "other": "does not answer as a Hub does",
    429: r"limits how often it is asked \(.*\)\. Wait some minutes",
    503: "has a fault of its own",
    500: "has a fault of its own",
}
ASKED = ["GET /api/whoami", "GET /api/models/ada/base$", "POST /api/repos/create", "POST .*/commit/"]


@pytest.mark.parametrize("status", TROUBLE)
def test_every_failing_request_to_the_hub_is_one_clear_line(status, run, hub, capsys, monkeypatch):
    monkeypatch.setattr(hub_module, "READ", 0.3)
    monkeypatch.setattr(_http.time, "sleep", lambda _: None)
    monkeypatch.setattr(hub_module, "stage", lambda *_, **__: staged)
    staged = run / "model"
    hub.status, usual = status, _http._GLOBAL_CLIENT_FACTORY
    for hub.refuse in ASKED:
        start = time.monotonic()
        refused(rf"{TROUBLE[status]}.*Nothing is lost: the same command goes on\.", run, "--repo", "ada/base",
                capsys=capsys)  # fmt: skip
        assert time.monotonic() - start < 5, hub.refuse
    assert _http._GLOBAL_CLIENT_FACTORY is usual
    words = ["--dataset", "x", *SMALL, *NEW, "--output-dir", run / "new", "--push-to-hub", "ada/base"]
    hub.refuse = "GET /api/whoami"
    fails(words, TROUBLE[status], capsys, main=pretrain.main)
    assert not (run / "new").exists()


def test_a_hub_that_asks_to_wait_for_an_hour_is_not_waited_for(hub, monkeypatch, tmp_path):
    hub.refuse, hub.status = "/resolve/|/batch|/tree/", 429
    for headers in ({"Retry_After": "3600"}, {"RateLimit": '"api";r=0;t=3600'}):
        hub.headers = headers
        with pytest.raises(ValueError, match=r"limits how often it is asked \(429 .*wait 3,600 s\)"):
            with hub_module.clear_errors("ada/x"):
                _http.http_backoff("GET", f"{hub.url}/ada/x/resolve/main/x")


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
    with pytest.raises(ValueError, match="only the end of such a run"):
        publish_checkpoints("lora", "ada/x")


def test_the_base_of_an_adapter_is_pinned_to_its_commit(home, run, hub, monkeypatch):
    commit = publish(run, "ada/base", layout="scratch_gpt").commit
    shutil.copytree(home / "lora", run.parent / "lora")
    file = run.parent / "lora" / "adapter" / "adapter_config.json"
    config = json.loads(file.read_text())
    for base in ("ada/base", "ada/none"):
        file.write_text(json.dumps({**config, "base_model_name_or_path": base, "revision": None}))
        if base == "ada/none":
            with pytest.raises(ValueError, match="base ada/none is not on the Hub"):
                publish("lora", "ada/lora", layout="adapter")
        else:
            publish("lora", "ada/lora", layout="adapter")
        there = json.loads(hub.files("ada/lora")["adapter_config.json"])
        assert (there["base_model_name_or_path"], there["revision"]) == ("ada/base", commit)
    file.write_text(json.dumps({**config, "base_model_name_or_path": "ada/base", "revision": None}))
    publish(run, "ada/base", layout="gpt2")
    with pytest.raises(ValueError, match="made on ada/base in the layout scratch_gpt, which is in the layout gpt2 at"):
        publish("lora", "ada/lora", layout="adapter")


def test_an_adapter_is_not_pinned_to_weights_that_its_base_had_before(home, run, hub):
    publish(run, "ada/base", layout="scratch_gpt")
    shutil.copytree(home / "lora", run.parent / "lora")
    publish("lora", "ada/lora", layout="adapter")
    note = json.loads((run / "hub.json").read_text())
    assert (
        note["fingerprint"] == json.loads((run.parent / "lora" / "adapter" / "base.json").read_text())["fingerprint"]
    )
    (run / "hub.json").write_text(json.dumps({**note, "fingerprint": "of other weights"}))
    with pytest.raises(ValueError, match="weights have changed since they were published as ada/base"):
        publish("lora", "ada/lora", layout="adapter")


def test_a_base_in_a_folder_is_never_taken_for_a_repository_of_that_name(
    home, run, hub, tmp_path, monkeypatch, capsys
):
    lora = shutil.copytree(home / "lora", tmp_path / "lora")
    noted, kept = read_record(lora).facts["base"], json.loads((lora / "adapter" / "base.json").read_text())
    assert noted == {"folder": "base/model", "fingerprint": kept["fingerprint"]} and kept["folder"] == "base/model"
    hub.repos["base/model"] = hub_server.Repo(False)  # a stranger's
    assert base_model(read_record(lora)) is None  # the folder is there, and not published
    publish(run, "ada/base", layout="scratch_gpt")
    note = json.loads((run / "hub.json").read_text())
    assert base_model(read_record(lora)) == ("ada/base", note["commit"])
    (run / "hub.json").write_text(json.dumps({**note, "fingerprint": "of other weights"}))
    assert base_model(read_record(lora)) is None
    (run / "hub.json").write_text(json.dumps(note))
    out = stage(lora, repo="ada/x", layout="adapter")
    assert not any("base/model" in path.read_text() for path in out.glob("*.json"))

    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    as_adapter = (lora, "--repo", "ada/lora", "--layout", "adapter")
    refused("base is the folder base/model, which is not there now", *as_adapter, capsys=capsys)
    publish(lora, "ada/merged")
    card = hub.files("ada/merged")["README.md"].decode()
    assert "base_model" not in card and "made from" not in card and "random weights" not in card

    del kept["folder"]  # as of older runs, which do not tell
    (lora / "adapter" / "base.json").write_text(json.dumps(kept))
    refused("base is the folder base/model, which is not there now", *as_adapter, capsys=capsys)
    settings = (lora / "run.yaml").read_text()
    (lora / "run.yaml").write_text(settings.replace("\n# base:\n#   folder: base/model\n#   fingerprint:", "\n# old:"))
    assert "base" not in read_record(lora).facts and base_model(read_record(lora)) is None


def test_missing_checkpoints_are_refused_before_the_model_is_published(home, run, hub, capsys):
    shutil.copytree(home / "lora", run.parent / "lora")
    shutil.rmtree(run / "checkpoints")
    for folder, message in ((run, "has no checkpoints"), ("lora", "only the end of such a run")):
        refused(message, folder, "--repo", "ada/x", "--checkpoints", "true", capsys=capsys)
    assert "ada/x" not in hub.repos


# --- The command, and every recipe's end ---------------------------------------------------------------------------


def test_a_dry_run_shows_the_tree_and_the_card_without_requests(run, hub, capsys):
    publish_recipe.main([str(run), "--repo", "ada/base", "--dry-run", "true"])
    said = capsys.readouterr().out
    assert all(name in said for name in STOCK) and "stays here: checkpoints/, manifest.json, run.yaml" in said
    assert shown((run / "published" / "README.md").read_text()) in said
    steps = [path.name for path in (run / "checkpoints").iterdir()]
    assert "as well" not in said and steps
    publish_recipe.main([str(run), "--repo", "ada/base", "--dry-run", "true", "--checkpoints", "true"])
    said = capsys.readouterr().out
    assert all(f"as well: branch {step}," in said for step in steps)
    assert not hub.requests


def test_a_recipe_checks_access_before_it_starts_and_publishes_at_its_end(home, hub, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(home)
    words = ["--dataset", "story.txt", *SMALL, *NEW, "--output-dir", tmp_path / "run", "--push-to-hub"]
    fails([*words, "eve/base"], "which may write under ada, lab", capsys, main=pretrain.main)
    assert not (tmp_path / "run").exists()
    hub.refuse = "POST .*/commit/"
    with pytest.raises(SystemExit):
        recipe(pretrain, *words, "lab/base")
    said = capsys.readouterr().err
    assert "The run is complete. Publish it with: python training/publish.py" in said and "--repo lab/base" in said
    hub.refuse = ""
    recipe(pretrain, *words, "lab/base", "--resume", "latest")  # nothing is left to do but this
    said = capsys.readouterr().out
    assert "Published: " in said and "Layout gpt2: stock GPT-2 expresses the model" in said
    assert STOCK <= set(hub.files("lab/base")) and layout_at(hub, "lab/base") == "gpt2"


# --- A stranger ---------------------------------------------------------------------------------------------------

STRANGER = """
import hashlib, json, sys

import without_package

import contextlib, io
import transformers
from huggingface_hub import ModelCard


def digests(tensors):
    return {name: hashlib.sha256(x.detach().contiguous().numpy().tobytes()).hexdigest() for name, x in tensors}


seen = {"weights": {}, "code": {}}
trust = {"trust_remote_code": True}
for name, repo, how in json.loads(sys.argv[1]):
    model = getattr(transformers, name).from_pretrained(repo, **how)
    seen["weights"][f"{name} {repo}"] = digests(model.state_dict().items())
seen["tokens"] = transformers.AutoTokenizer.from_pretrained("ada/base", **trust)("The shiny sea")["input_ids"]
for repo in json.loads(sys.argv[2]):
    code = ModelCard.load(repo).text.split("```python\\n")[1].split("```")[0]
    here = {}
    with contextlib.redirect_stdout(io.StringIO()) as said:
        exec(code, here)
    seen["code"][repo] = said.getvalue()
    if "peft" in code:
        learned = ((n.replace(".default", ""), p) for n, p in here["model"].named_parameters() if "lora_" in n)
        seen["weights"][repo] = digests(learned)
print(json.dumps(seen))
"""


def digests(file: Path) -> dict[str, str]:
    tensors = load_file(file)
    return {name: hashlib.sha256(tensor.numpy().tobytes()).hexdigest() for name, tensor in tensors.items()}


def test_the_code_on_the_cards_loads_every_layout_bit_for_bit(home, hub, tmp_path, monkeypatch):
    monkeypatch.chdir(home)
    publish("base", "ada/stock")
    stock = digests(home / "base" / "published" / "model.safetensors")
    publish("mails", "ada/mails", layout="scratch_gpt")
    publish("chat", "ada/chat")
    publish("base", "ada/base", layout="scratch_gpt", private=True)  # the last place is where adapters find their base
    publish("lora", "ada/lora", layout="adapter")
    publish("mails", "ada/mails-lora", layout="adapter")
    adapter = json.loads(hub.files("ada/lora")["adapter_config.json"])
    commit = hub.repos["ada/base"].branches["main"]
    assert (adapter["base_model_name_or_path"], adapter["revision"]) == ("ada/base", commit)

    trust = {"trust_remote_code": True}
    loads = [("AutoModelForCausalLM", "ada/base", trust), ("AutoModel", "ada/base", trust)]
    loads += [("AutoModelForSequenceClassification", "ada/mails", trust), ("AutoModelForCausalLM", "ada/stock", {})]
    loads += [("AutoModelForCausalLM", "ada/base", {**trust, "revision": commit})]
    repos = ["ada/base", "ada/mails", "ada/stock", "ada/chat", "ada/lora", "ada/mails-lora"]
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "HF_HUB_OFFLINE")}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "home")}
    environment |= {"PYTHONPATH": str(TESTS / "compatibility")}
    command = [sys.executable, "-c", STRANGER, json.dumps(loads), json.dumps(repos)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])

    base, mails = (digests(home / name / "model" / "model.safetensors") for name in ("base", "mails"))
    trunk = {name.removeprefix("transformer."): digest for name, digest in base.items() if "lm_head" not in name}
    weights = seen["weights"]
    head = {"lm_head.weight": base["transformer.embed_tokens.weight"]}
    assert weights["AutoModelForCausalLM ada/base"] == {**base, **head}
    assert weights["AutoModel ada/base"] == trunk
    assert weights["AutoModelForSequenceClassification ada/mails"] == mails
    assert weights["AutoModelForCausalLM ada/stock"] == {**stock, **head}
    for repo, run in (("ada/lora", "lora"), ("ada/mails-lora", "mails")):
        saved = digests(home / run / "adapter" / "adapter_model.safetensors")
        assert weights[repo] == {name: digest for name, digest in saved.items() if "lora_" in name}
    assert (
        seen["tokens"] and seen["code"]["ada/base"].startswith("The") and seen["code"]["ada/stock"].startswith("The")
    )
    assert "label" in seen["code"]["ada/mails"] and seen["code"]["ada/mails-lora"].strip() in ("ham", "spam")
    assert "ada/chat" in seen["code"]
