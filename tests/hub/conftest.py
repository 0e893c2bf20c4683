"""Fixtures for the tests of publishing."""

import json
import os
import shutil
from pathlib import Path

import hub_server
import pytest
from card_run import write_run
from huggingface_hub import constants
from published_runs import LORA, NEW, SMALL, STORY, recipe
from tiny import png
from transformers.utils import hub as transformers_hub

from scratch_gpt.hub import staging as published
from scratch_gpt_training import classify, pretrain


@pytest.fixture
def runs(tmp_path) -> dict[str, Path]:
    models = {"pretrain": None, "classify": "openai-community/gpt2", "instruct": "openai-community/gpt2"}
    return {task: write_run(tmp_path / task, task, model=model) for task, model in models.items()}


@pytest.fixture(scope="session")
def home(tmp_path_factory) -> Path:
    """Make runs of every kind: base, chat (a base with a template, as from instruct), and two with an adapter."""
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
    """Copy the base run into the working folder, for a test that changes it."""
    shutil.copytree(home / "base", tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "base"


@pytest.fixture
def quick(monkeypatch):
    """Replace the plots by a small picture."""
    for name in ("plot_attention", "plot_parameters", "plot_token_lengths"):
        put = lambda _, *rest: next(path for path in rest if isinstance(path, Path)).write_bytes(png())  # noqa: E731
        monkeypatch.setattr(published, name, put)


@pytest.fixture
def hub(monkeypatch, tmp_path, quick):
    """Run a Hub, point the client of this process to it, and give it a token with write access."""
    with hub_server.serve() as server:
        monkeypatch.setenv("HF_TOKEN", hub_server.WRITER)
        for name, value in (("HF_HUB_OFFLINE", False), ("HF_HUB_DISABLE_XET", True), ("ENDPOINT", server.url)):
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setattr(transformers_hub, "_hf_api", None)  # it keeps the endpoint
        yield server
