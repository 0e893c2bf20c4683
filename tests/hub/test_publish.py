"""Test publishing with the official client against a Hub on loopback: uploaded files load without our package."""

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
from bad_input import fails
from huggingface_hub import HfApi, constants
from huggingface_hub.utils import _http
from places import TESTS
from published_runs import NEW, SMALL, layout_at, recipe, refused
from safetensors.torch import load_file
from tiny import tiny_model
from transformers import AutoModelForCausalLM

from scratch_gpt.hub import publish as hub_module
from scratch_gpt.hub import staging as published
from scratch_gpt.hub.publish import publish, publish_checkpoints
from scratch_gpt.hub.staging import files_of, stage
from scratch_gpt.runs.record import base_model, read_record
from scratch_gpt.utils.foreign import shown
from scratch_gpt_training import pretrain
from scratch_gpt_training import publish as publish_recipe


def uploads(hub, since: int = 0) -> list[str]:
    return [asked for asked in hub.requests[since:] if asked.startswith("PUT ") or "/commit/" in asked]


# --- Uploads ------------------------------------------------------------------------------------------------------

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
    assert events.count(".") == 4 and events.endswith(".0")  # contains neither the host name nor the process id
    assert there == {name: (run / "published" / name).read_bytes() for name in files_of(run / "published")}
    assert push.has_changed and push.commit == hub.repos["ada/base"].branches["main"]
    kinds = {name: file.is_lfs for name, file in hub.repos["ada/base"].commits[push.commit].items()}
    assert kinds["model.safetensors"] and not kinds["README.md"]
    assert any("/lfs/" in asked and asked.endswith("/1") for asked in hub.requests)  # weights were uploaded in parts
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
    # Files of the old layout are deleted.
    assert (
        there["THANKS.md"] == b"thanks"
        and there["models/old/weights.safetensors"] == b"mine"
        and "modeling_scratch_gpt.py" not in there
    )


def test_an_interrupted_upload_resumes(run, hub):
    weights = hashlib.sha256((run / "model" / "model.safetensors").read_bytes()).hexdigest()
    hub.refuse = rf"PUT /lfs/{weights}"
    with pytest.raises(ValueError, match=r"model\.safetensors.*run the same command again"):
        publish(run, "ada/base", layout="scratch_gpt")
    assert len(hub.repos["ada/base"].log) == 1  # nothing was committed
    hub.refuse, arrived = "", set(hub.objects)
    asked = len(hub.requests)
    assert publish(run, "ada/base", layout="scratch_gpt").has_changed and arrived
    assert not any(oid in line for line in uploads(hub, asked) for oid in arrived)


def test_checkpoints_are_published_on_branches(run, hub):
    publish(run, "ada/base", layout="scratch_gpt")
    main = hub.files("ada/base")
    publish(run, "ada/base", revision="draft", license="mit")
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
    with pytest.raises(ValueError, match="already exists and is public"):
        publish(run, "ada/open", private=True)
    monkeypatch.setenv("HF_TOKEN", hub_server.OTHER_USER)
    with pytest.raises(OSError, match="ada/secret"):
        AutoModelForCausalLM.from_pretrained("ada/secret", cache_dir=run / "cache")


def test_push_to_hub_of_a_model_works(hub, tmp_path):
    model = tiny_model()
    model.push_to_hub("ada/plain")
    assert "tokenizer.json" not in hub.files("ada/plain")  # only training/publish.py uploads it, with the card
    again = AutoModelForCausalLM.from_pretrained("ada/plain", cache_dir=tmp_path / "cache")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


# --- Layouts ------------------------------------------------------------------------------------------------------


def test_a_run_with_lora_is_published_merged_and_its_adapter_by_name(home, run, hub, capsys):
    publish(run, "ada/base", layout="scratch_gpt")
    lora = shutil.copytree(home / "lora", run.parent / "lora")
    publish(lora, "ada/lora", layout="adapter")
    publish(lora, "ada/merged")
    publish(lora, "ada/lora")  # this repository has only the adapter
    assert (layout_at(hub, "ada/merged"), layout_at(hub, "ada/lora")) == ("gpt2", "adapter")
    refused("ada/lora holds an adapter and keeps that layout, but this run has none.*layout[ =]'?gpt2", run, "--repo",
            "ada/lora", capsys=capsys)  # fmt: skip
    assert layout_at(hub, "ada/lora") == "adapter"


# --- Refusals -----------------------------------------------------------------------------------------------------


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


def test_access_is_refused_in_one_line(run, hub, capsys, monkeypatch):
    go = (run, "--repo", "ada/base")
    monkeypatch.setenv("HF_TOKEN", hub_server.READER)
    refused("may read, not write", *go, capsys=capsys)
    monkeypatch.setenv("HF_TOKEN", hub_server.OTHER_USER)
    refused("the token is eve's, which may write under eve", *go, capsys=capsys)
    monkeypatch.setenv("HF_TOKEN", "hf_nonsense")
    refused("does not know this token", *go, capsys=capsys)
    monkeypatch.setenv("HF_TOKEN", hub_server.FINE)
    refused("no write scope for ada", *go, capsys=capsys)
    monkeypatch.delenv("HF_TOKEN")
    refused("No token for the Hub.*hf auth login", *go, capsys=capsys)
    assert not hub.repos


def test_invalid_and_taken_repository_names_are_refused(run, hub, capsys):
    for name in ("base", "a/b/c", "ada/--x", "ada/b c"):
        refused("user/name", run, "--repo", name, capsys=capsys)
    refused("Give a run and a repository", run, capsys=capsys)
    api = HfApi()
    api.create_repo("ada/taken")
    api.upload_file(path_or_fileobj=b"# Another's", path_in_repo="README.md", repo_id="ada/taken")
    api.upload_file(path_or_fileobj=b"x", path_in_repo="model.safetensors", repo_id="ada/taken")
    refused("ada/taken already exists: it holds a model", run, "--repo", "ada/taken", capsys=capsys)
    assert hub.files("ada/taken") == {"README.md": b"# Another's", "model.safetensors": b"x"}


def test_a_missing_network_or_a_full_disk_is_reported(run, hub, capsys, monkeypatch):
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
    refused("No space left on device.*Free some disk space", *go, capsys=capsys)
    assert not hub.repos and not (run / "published").exists() and not list(run.glob(".writing-*"))


TROUBLE = {
    "never answers": r"cannot be reached \(ReadTimeout after 0\.3 s\)",
    "resets": r"cannot be reached \((ReadError|RemoteProtocolError)\)",
    "portal": "does not answer like a Hub. Perhaps this network requires you to log in",
    "page": "does not answer like a Hub",
    "empty": "does not answer like a Hub",
    "list": "does not answer like a Hub",
    "other": "does not answer like a Hub",
    429: r"limits the number of requests \(.*\)\. Wait some minutes",
    503: "has an internal error",
    500: "has an internal error",
}
ASKED = ["GET /api/whoami", "GET /api/models/ada/base$", "POST /api/repos/create", "POST .*/commit/"]


@pytest.mark.parametrize("status", TROUBLE)
def test_every_failing_request_to_the_hub_is_a_one_line_error(status, run, hub, capsys, monkeypatch):
    monkeypatch.setattr(hub_module, "READ_TIMEOUT", 0.3)
    monkeypatch.setattr(_http.time, "sleep", lambda _: None)
    monkeypatch.setattr(hub_module, "stage", lambda *_, **__: staged)
    staged = run / "model"
    hub.status, usual = status, _http._GLOBAL_CLIENT_FACTORY
    for hub.refuse in ASKED:
        start = time.monotonic()
        refused(rf"{TROUBLE[status]}.*Nothing is lost: run the same command again", run, "--repo", "ada/base",
                capsys=capsys)  # fmt: skip
        assert time.monotonic() - start < 5, hub.refuse
    assert _http._GLOBAL_CLIENT_FACTORY is usual
    words = ["--dataset", "x", *SMALL, *NEW, "--output-dir", run / "new", "--push-to-hub", "ada/base"]
    hub.refuse = "GET /api/whoami"
    fails(words, TROUBLE[status], capsys, main=pretrain.main)
    assert not (run / "new").exists()


def test_a_long_retry_delay_of_the_hub_is_an_error(hub, monkeypatch, tmp_path):
    hub.refuse, hub.status = "/resolve/|/batch|/tree/", 429
    for headers in ({"Retry_After": "3600"}, {"RateLimit": '"api";r=0;t=3600'}):
        hub.headers = headers
        with pytest.raises(ValueError, match=r"limits the number of requests \(429 .*wait 3,600 s\)"):
            with hub_module.clear_errors("ada/x"):
                _http.http_backoff("GET", f"{hub.url}/ada/x/resolve/main/x")


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


def test_an_adapter_is_not_pinned_to_earlier_weights_of_its_base(home, run, hub):
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


def test_a_base_folder_is_never_taken_for_a_repository_of_the_same_name(home, run, hub, tmp_path, monkeypatch, capsys):
    lora = shutil.copytree(home / "lora", tmp_path / "lora")
    noted, kept = read_record(lora).facts["base"], json.loads((lora / "adapter" / "base.json").read_text())
    assert noted == {"folder": "base/model", "fingerprint": kept["fingerprint"]} and kept["folder"] == "base/model"
    hub.repos["base/model"] = hub_server.Repo(False)  # of another user
    assert base_model(read_record(lora)) is None  # the folder exists and is not published
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
    refused("base is the folder base/model, which does not exist now", *as_adapter, capsys=capsys)
    publish(lora, "ada/merged")
    card = hub.files("ada/merged")["README.md"].decode()
    assert "base_model" not in card and "fine-tuned from" not in card and "random weights" not in card

    del kept["folder"]  # as in older runs, which lack this field
    (lora / "adapter" / "base.json").write_text(json.dumps(kept))
    refused("base is the folder base/model, which does not exist now", *as_adapter, capsys=capsys)
    settings = (lora / "run.yaml").read_text()
    (lora / "run.yaml").write_text(settings.replace("\n# base:\n#   folder: base/model\n#   fingerprint:", "\n# old:"))
    assert "base" not in read_record(lora).facts and base_model(read_record(lora)) is None


def test_missing_checkpoints_are_refused_before_the_model_is_published(home, run, hub, capsys):
    shutil.copytree(home / "lora", run.parent / "lora")
    shutil.rmtree(run / "checkpoints")
    for folder, message in ((run, "has no checkpoints"), ("lora", "Only the end of such a run")):
        refused(message, folder, "--repo", "ada/x", "--checkpoints", "true", capsys=capsys)
    assert "ada/x" not in hub.repos


# --- The command, and the end of every recipe ---------------------------------------------------------------------


def test_a_dry_run_shows_the_tree_and_the_card_without_requests(run, hub, capsys):
    publish_recipe.main([str(run), "--repo", "ada/base", "--dry-run", "true"])
    said = capsys.readouterr().out
    assert all(name in said for name in STOCK) and "not uploaded: checkpoints/, manifest.json, run.yaml" in said
    assert shown((run / "published" / "README.md").read_text()) in said
    steps = [path.name for path in (run / "checkpoints").iterdir()]
    assert "as well" not in said and steps
    publish_recipe.main([str(run), "--repo", "ada/base", "--dry-run", "true", "--checkpoints", "true"])
    said = capsys.readouterr().out
    assert all(f"also: branch {step}," in said for step in steps)
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
    recipe(pretrain, *words, "lab/base", "--resume", "latest")  # only the push is left to do
    said = capsys.readouterr().out
    assert "Published: " in said and "Layout gpt2: stock GPT-2 can express the model" in said
    assert STOCK <= set(hub.files("lab/base")) and layout_at(hub, "lab/base") == "gpt2"


# --- Without our package ------------------------------------------------------------------------------------------

LOADING_SCRIPT = """
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
    runs = shutil.copytree(home, tmp_path / "runs")  # publishing writes into a run
    monkeypatch.chdir(runs)
    publish("base", "ada/stock")
    stock = digests(runs / "base" / "published" / "model.safetensors")
    publish("mails", "ada/mails", layout="scratch_gpt")
    publish("chat", "ada/chat")
    publish("base", "ada/base", layout="scratch_gpt", private=True)  # adapters find their base at its last repository
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
    command = [sys.executable, "-c", LOADING_SCRIPT, json.dumps(loads), json.dumps(repos)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])

    base, mails = (digests(runs / name / "model" / "model.safetensors") for name in ("base", "mails"))
    trunk = {name.removeprefix("transformer."): digest for name, digest in base.items() if "lm_head" not in name}
    weights = seen["weights"]
    head = {"lm_head.weight": base["transformer.embed_tokens.weight"]}
    assert weights["AutoModelForCausalLM ada/base"] == {**base, **head}
    assert weights["AutoModel ada/base"] == trunk
    assert weights["AutoModelForSequenceClassification ada/mails"] == mails
    assert weights["AutoModelForCausalLM ada/stock"] == {**stock, **head}
    for repo, run in (("ada/lora", "lora"), ("ada/mails-lora", "mails")):
        saved = digests(runs / run / "adapter" / "adapter_model.safetensors")
        assert weights[repo] == {name: digest for name, digest in saved.items() if "lora_" in name}
    assert (
        seen["tokens"] and seen["code"]["ada/base"].startswith("The") and seen["code"]["ada/stock"].startswith("The")
    )
    assert "label" in seen["code"]["ada/mails"] and seen["code"]["ada/mails-lora"].strip() in ("ham", "spam")
    assert "ada/chat" in seen["code"]
