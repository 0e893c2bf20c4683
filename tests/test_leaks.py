"""What must not be published is found, with file and line; what may is let through."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from scratch_gpt import leaks
from scratch_gpt.data.privacy import mask_private
from scratch_gpt.leaks import find_leaks


REPO = Path(__file__).resolve().parent.parent
A = "a1B2" * 10
# Pieces, so that no scanner takes this file for one that holds secrets.
SECRETS = {
    "Hugging Face": "hf_" + A,
    "OpenAI": "sk-" + "proj-" + A,
    "GitHub": "ghp_" + A,
    "GitLab": "glpat-" + A,
    "AWS": "AKIA" + "A1B2" * 4,
    "Google": "AIza" + A[:35],
    "Slack": "xoxb-" + A,
    "private key": "-----BEGIN OPENSSH " + "PRIVATE KEY-----",
    "JSON web token": ".".join(("eyJ" + A, "eyJ" + A, A)),
    "password in an address": "https://ada:" + "s3cret@example.org/x",
    "key or token": "WANDB_API_KEY=" + A,
}
PLACES = ["/home/ada/runs", "/Users/ada/x", "/root/.cache", r"C:\\Users\\ada", "/mnt/disk1/data/my.txt"]


@pytest.fixture
def here(monkeypatch):
    monkeypatch.setattr(leaks.socket, "gethostname", lambda: "lovelace-7.example.org")
    monkeypatch.setattr(leaks.getpass, "getuser", lambda: "countess")


def found(folder: Path, text: str | bytes, name: str = "notes.json", known=()) -> list[str]:
    file = folder / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return [str(leak) for leak in find_leaks(folder, [name], known)]


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "metrics.jsonl", "README.md"])
@pytest.mark.parametrize("kind", SECRETS)
def test_a_secret_is_found_wherever_it_stands(kind, name, tmp_path):
    (leak,) = found(tmp_path, f"first\nand {SECRETS[kind]} here\nlast\n", name)
    assert leak.startswith(f"{name}, line 2: ") and kind in leak


@pytest.mark.parametrize("secret", [*SECRETS.values(), "wandb_key: '" + A, "sk_live_" + A, "ghs_" + A])
def test_the_scan_and_the_filter_of_texts_know_the_same_keys(secret, tmp_path):
    assert found(tmp_path, f"and {secret} here")
    block = f"{secret}\n{A}\n" if secret.startswith("-----") else secret  # in prose the line alone is no key
    masked, counts = mask_private(f"and {block} here")
    assert counts["key"] == 1 and A not in masked and "s3cret" not in masked


@pytest.mark.parametrize("place", PLACES)
def test_a_path_of_this_machine_is_found(place, tmp_path):
    (leak,) = found(tmp_path, f'{{\n "dataset": "{place}"\n}}')
    assert leak.startswith("notes.json, line 2: ")


def test_the_home_and_working_folders_are_found_whatever_they_are_called(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/srv/elsewhere")
    monkeypatch.chdir(tmp_path)
    for place in ("/srv/elsewhere/x", tmp_path):
        assert found(tmp_path, f"see {place}", "metrics.jsonl"), place


def test_names_of_host_and_user_are_found(tmp_path, here, monkeypatch):
    for text in ("on lovelace-7", "on lovelace-7.example.org,", "by countess", "countess@somewhere"):
        (leak,) = found(tmp_path, f"{text}\n", "README.md")
        assert "line 1: the name of this machine or its user" in leak
    assert not found(tmp_path, "the countesses of lovelace-70", "README.md")
    assert not found(tmp_path, "huggingface.co/countess/x", "README.md", known=["countess"])
    monkeypatch.setattr(leaks.getpass, "getuser", lambda: "will")  # a word, unless it stands like a name
    assert not found(tmp_path, "it will rain", "README.md")
    assert found(tmp_path, "will@lab", "README.md") and found(tmp_path, "~will/x", "README.md")


def test_event_files_are_read_where_a_person_could(tmp_path, here):
    assert found(tmp_path, b"\0\1\2 written on lovelace-7 \0\xff", "events.out.tfevents.1.0")
    assert not found(tmp_path, b"\0\1\2 written on the sea \0\xff", "events.out.tfevents.1.0")


def test_a_pictures_numbers_are_no_path_and_no_name(tmp_path, here, monkeypatch):
    monkeypatch.setattr(leaks.getpass, "getuser", lambda: "me")
    start = b"\x89PNG\r\n\x1a\n\0\0 "
    assert not found(tmp_path, start + b"q; /g/X.w\0@me\0", "loss.png")
    assert found(tmp_path, start + b"drawn in /home/ada/x\0", "loss.png")


def test_pickles_are_found_by_ending_and_by_content(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "a.safetensors")
    (tmp_path / "b.json").write_bytes(pickle.dumps({"a": 1}))
    (tmp_path / "c.bin").write_bytes(b"anything")
    leaks_found = find_leaks(tmp_path, ["a.safetensors", "b.json", "c.bin"])
    assert [leak.file for leak in leaks_found] == ["a.safetensors", "b.json", "c.bin"]
    assert [leak.what.split()[:2] for leak in leaks_found] == [["no", "safetensors"], ["a", "pickle"], ["a", "pickle"]]


def test_weights_whose_header_begins_like_a_pickle_are_weights(tmp_path):
    for n in range(1, 40):  # a header of 640 bytes begins with 80 02
        save_file({f"layer.{k}": torch.ones(1) for k in range(n)}, tmp_path / "a.safetensors")
        assert not find_leaks(tmp_path, ["a.safetensors"])


def test_weights_are_looked_through_above_their_numbers(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors", metadata={"format": "pt", "from": "/home/ada/x"})
    (leak,) = find_leaks(tmp_path, ["model.safetensors"])
    assert leak.what == "a home folder"


def test_a_file_over_the_limit_is_found_without_reading_it(tmp_path):
    for name, size in (("metrics.jsonl", leaks.LIMIT), ("model.safetensors", leaks.WEIGHTS_LIMIT + leaks.SLACK)):
        with (tmp_path / name).open("wb") as file:
            file.truncate(size + 1)  # a hole: it takes no room
        (leak,) = find_leaks(tmp_path, [name])
        assert f"{size + 1:,} bytes" in leak.what


@pytest.mark.parametrize(
    "text",
    [
        "https://huggingface.co/ada/x/resolve/main/a.txt and a/b/c, 1/2/3, and/or, </div></p>",
        "hf_short, sk-learn, token: 5, the key is under the mat, max_new_tokens=40, eos_token_id: 50256",
        "assets/loss.png ./here/there ../up/there runs/mine/model",
        'api_key=config.get_key1(), "pad_token": "special_token_number_17", token = tokenizer.encode2(text)',
    ],
)
def test_ordinary_text_passes(text, tmp_path):
    assert not found(tmp_path, text, "README.md")


def test_what_is_made_of_data_may_name_paths_that_are_nobodys(tmp_path):
    line = json.dumps({"sample": "see /usr/local/lib/python3"})
    assert not found(tmp_path, line, "metrics.jsonl") and not found(tmp_path, line, "tokenizer.json")
    assert found(tmp_path, line, "config.json")


def test_our_own_files_pass(here):
    code = [f"scratch_gpt/modeling/{path.name}" for path in (REPO / "scratch_gpt" / "modeling").glob("*.py")]
    assert not find_leaks(REPO, [*code, "hub_card/template.md", "hub_card/fields.md"])
