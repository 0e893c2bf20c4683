"""Test the leak check: private data are found, with file and line; other text passes."""

import base64
import html
import json
import pickle
import zlib
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from places import REPO
from safetensors.torch import save, save_file
from tiny import png

from scratch_gpt.data.filters.privacy import mask_private
from scratch_gpt.hub import leak_check as leaks
from scratch_gpt.hub.leak_check import find_leaks


A = "a1B2" * 10
# In pieces, so that scanners do not report this file.
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
    "npm": "npm_" + A,
    "PyPI": "pypi-" + A,
    "Stripe": "sk_live_" + A,
    "SendGrid": "SG." + A[:22] + "." + A,
    "Google token": "ya29." + A,
    "Groq": "gsk_" + A,
    "Docker": "dckr_pat_" + A,
    "bearer": "Authorization: Bearer " + A,
    "netrc": "machine example.org login ada password " + "s3cret",
}
# Names with the ending of a secret's name, with their values.
ASSIGNED = [
    "rk_live_" + A,
    "AccountKey=" + A + "==",
    "db_password: " + A[:16],
    '"MyPasswd": "' + A,
    "pwd=" + A[:18] + "_-",
]
ASSIGNED += [
    "aws_secret_access_key = " + "wJalrXUtnFEMI/K7MDENG/" + "bPxRfiCYEXAMPLEKEY",
    "x-token='" + A,
    "SECRET:" + A,
]
BARE = "wJalrXUtnFEMI/K7MDENG/" + "bPxRfiCYEXAMPLEKEY"
PLACES = ["/home/ada/runs", "/Users/ada/x", "/root/.cache", r"C:\\Users\\ada", "/mnt/disk1/data/my.txt"]


@pytest.fixture
def this_machine(monkeypatch):
    monkeypatch.setattr(leaks.socket, "gethostname", lambda: "lovelace-7.example.org")
    monkeypatch.setattr(leaks.getpass, "getuser", lambda: "countess")


def scan(folder: Path, text: str | bytes, name: str = "notes.json", known=()) -> list[str]:
    file = folder / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return [str(leak) for leak in find_leaks(folder, [name], known)]


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "metrics.jsonl", "README.md"])
@pytest.mark.parametrize("kind", SECRETS)
def test_a_secret_is_found_anywhere_in_a_text(kind, name, tmp_path):
    (leak,) = scan(tmp_path, f"first\nand {SECRETS[kind]} here\nlast\n", name)
    assert leak.startswith(f"{name}, line 2: ") and kind in leak


@pytest.mark.parametrize("secret", [*SECRETS.values(), "wandb_key: '" + A, "ghs_" + A, *ASSIGNED, BARE])
def test_the_scan_and_the_filter_of_texts_know_the_same_keys(secret, tmp_path):
    assert scan(tmp_path, f"and {secret} here")
    # In prose, the first line of a key block is not a key.
    block = f"{secret}\n{A}\n" if secret.startswith("-----") else secret
    masked, counts = mask_private(f"and {block} here")
    assert counts["key"] == 1 and not any(part in masked for part in (A, "s3cret", "K7MDENG"))


BLOB = base64.b64encode(bytes(range(7, 250, 3)) * 3).decode()


@pytest.mark.parametrize(
    "text", ["{}", "AKIA,{}", '"{}"', "x={}", "id: {}\n", "{}\n{}", "see {}.", r'{{"k": "a\n{}"}}']
)
def test_an_aws_secret_is_found_without_its_name(text, tmp_path):
    assert any("AWS secret" in leak for leak in scan(tmp_path, text.format(BARE, BARE[::-1])))


@pytest.mark.parametrize(
    "text",
    [
        f"{BARE}x",
        f"https://example.org/{BARE}",
        f"cdn/{BARE}.js",
        f"sha256={BARE}-_9",
        f"sha1-{BARE}",
        "2fd4e1c67a2d28fced849ee1bb76e7391b93eb12",
        "2FD4E1C67A2D28FCED849EE1BB76E7391B93EB12",
        "role/AmazonSecurityLakeS3ReplicationRole",
        "AllowEc2InstancesWithEncryptedEbsVolumes",
        "may/VIGRE/VIGRE2010/REUPapers/Margoliash",
        "the/path/of/Words2/that/Has/forty/in/All",
        base64.b64encode(b"abcdefghijklmnopqrstuvwxyzABCD").decode(),  # decodes to plain letters
        "".join(f"{BLOB[n : n + 76]}\n" for n in range(0, 152, 76))
        + BLOB[152:192],  # the last line of an encoded picture
        BLOB[:40] + '"\n  "' + BLOB[40:116],
        '"merges": [["wJalrXUtnF", "EMIK7"], ["MDENGbPxR", "fiCYEXAMPLEKEY"]]',
    ],
)
def test_forty_character_strings_that_are_not_secrets_stay(text, tmp_path):
    assert len(BLOB) > 192 and not scan(tmp_path, f"and {text}", "metrics.jsonl")
    assert mask_private(text, kinds=["key"]) == (text, {"key": 0})


@pytest.mark.parametrize("place", PLACES)
def test_a_path_of_this_machine_is_found(place, tmp_path):
    (leak,) = scan(tmp_path, f'{{\n "dataset": "{place}"\n}}')
    assert leak.startswith("notes.json, line 2: ")


def test_home_and_working_folders_are_found_under_any_name(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/srv/elsewhere")
    monkeypatch.chdir(tmp_path)
    for place in ("/srv/elsewhere/x", tmp_path):
        assert scan(tmp_path, f"see {place}", "metrics.jsonl"), place


def test_names_of_host_and_user_are_found(tmp_path, this_machine, monkeypatch):
    for text in ("on lovelace-7", "on lovelace-7.example.org,", "by countess", "countess@somewhere"):
        (leak,) = scan(tmp_path, f"{text}\n", "README.md")
        assert "line 1: the name of this machine or its user" in leak
    assert not scan(tmp_path, "the countesses of lovelace-70", "README.md")
    assert not scan(tmp_path, "huggingface.co/countess/x", "README.md", known=["countess"])
    monkeypatch.setattr(leaks.getpass, "getuser", lambda: "will")  # a word, except where a user name is expected
    assert not scan(tmp_path, "it will rain", "README.md")
    assert scan(tmp_path, "will@lab", "README.md") and scan(tmp_path, "~will/x", "README.md")


def test_readable_text_of_event_files_is_scanned(tmp_path, this_machine):
    assert scan(tmp_path, b"\0\1\2 written on lovelace-7 \0\xff", "events.out.tfevents.1.0")
    assert not scan(tmp_path, b"\0\1\2 written on the sea \0\xff", "events.out.tfevents.1.0")


def test_pixel_data_is_not_taken_for_a_path_or_a_name(tmp_path, this_machine, monkeypatch):
    monkeypatch.setattr(leaks.getpass, "getuser", lambda: "me")
    assert not scan(tmp_path, png((b"eXIf", b"q; /g/X.w\0@me\0")), "loss.png")
    assert scan(tmp_path, png((b"tEXt", b"Title\0drawn in /home/ada/x")), "loss.png")


def test_a_picture_must_be_complete_and_its_texts_are_scanned(tmp_path):
    assert not scan(tmp_path, png((b"tEXt", b"Software\0Matplotlib, https://matplotlib.org/")), "loss.png")
    whole = png()
    damaged = [whole[:-1], whole + b"more", whole.replace(b"IDAT", b"IDAX"), b"root:x:0:0", b"", whole[:8]]
    damaged += [b"\xff\xd8\xff\xe0 a photograph"]
    for content in damaged:
        assert scan(tmp_path, content, "loss.png") == ["loss.png: not a PNG picture"]


def test_pickles_are_found_by_suffix_and_by_content(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "a.safetensors")
    (tmp_path / "b.json").write_bytes(pickle.dumps({"a": 1}))
    (tmp_path / "c.bin").write_bytes(b"anything")
    leaks_found = find_leaks(tmp_path, ["a.safetensors", "b.json", "c.bin"])
    assert [leak.file for leak in leaks_found] == ["a.safetensors", "b.json", "c.bin"]
    assert [leak.problem.split()[:2] for leak in leaks_found] == [
        ["no", "safetensors"],
        ["a", "pickle"],
        ["a", "pickle"],
    ]


def test_weights_with_a_header_like_a_pickle_are_accepted(tmp_path):
    for n in range(1, 40):  # a header of 640 bytes starts with the bytes 80 02
        save_file({f"layer.{k}": torch.ones(1) for k in range(n)}, tmp_path / "a.safetensors")
        assert not find_leaks(tmp_path, ["a.safetensors"])


def test_the_header_of_weights_is_scanned(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors", metadata={"format": "pt", "from": "/home/ada/x"})
    (leak,) = find_leaks(tmp_path, ["model.safetensors"])
    assert leak.problem == "a home folder"


def test_a_file_over_the_limit_is_found_without_reading_it(tmp_path):
    for name, size in (("metrics.jsonl", leaks.LIMIT), ("model.safetensors", leaks.WEIGHTS_LIMIT + leaks.SHARD_SLACK)):
        with (tmp_path / name).open("wb") as file:
            file.truncate(size + 1)  # a sparse file
        (leak,) = find_leaks(tmp_path, [name])
        assert f"{size + 1:,} bytes" in leak.problem


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
    assert not scan(tmp_path, text, "README.md")


def test_files_made_from_data_may_contain_other_paths(tmp_path):
    line = json.dumps({"sample": "see /usr/local/lib/python3"})
    assert not scan(tmp_path, line, "metrics.jsonl") and not scan(tmp_path, line, "tokenizer.json")
    assert not scan(tmp_path, '{"/home/ada/x": 7}', "vocab.json")
    assert scan(tmp_path, line, "config.json")


def test_our_own_files_pass(this_machine):
    code = [f"scratch_gpt/modeling/{name}" for name in leaks.MODEL_CODE]
    assert not find_leaks(REPO, [*code, "hub_card/template.md", "hub_card/fields.md"])


@pytest.mark.parametrize("user", ["torch", "model", "train", "query", "value"])
def test_a_user_name_that_is_a_common_word_is_found_in_paths(user, tmp_path, this_machine, monkeypatch):
    monkeypatch.setattr(leaks.getpass, "getuser", lambda: user)
    for name, path in leaks.MODEL_CODE.items():
        assert not scan(tmp_path, path.read_bytes(), name)
    assert not scan(tmp_path, f"A language {user} of the {user}.", "README.md")
    assert not scan(tmp_path, json.dumps({user: f"a {user}", "sample": f"the {user} ran"}), "metrics.jsonl")
    for text in (f"~{user}/x", f"/home/{user}/x", f"{user}@lab"):
        assert scan(tmp_path, text, "README.md"), text


def test_code_must_be_that_of_the_package(tmp_path):
    name, path = "modeling_scratch_gpt.py", leaks.MODEL_CODE["modeling_scratch_gpt.py"]
    assert not scan(tmp_path, path.read_bytes(), name)
    for file, content in ((name, path.read_bytes() + b"\nimport os\n"), ("setup.py", b"x = 1\n"), (name, b"")):
        assert scan(tmp_path, content, file) == [f"{file}: code that is not the installed package's"]
    ours = {"AutoModel": "modeling_scratch_gpt.ScratchGPTModel"}
    for auto_map, is_ours in (
        (ours, True),
        ({"AutoModel": "eve/x--modeling.M"}, False),
        ({"AutoTokenizer": [None]}, False),
    ):
        assert bool(scan(tmp_path, json.dumps({"auto_map": auto_map}), "config.json")) is not is_ours


def test_a_sample_is_scanned_for_secrets_and_local_paths_but_not_for_other_paths(tmp_path, this_machine, monkeypatch):
    monkeypatch.setenv("HOME", "/srv/elsewhere")
    for text in ("#!/usr/bin/env python", "see /home/ada/x", "written by countess"):
        assert not scan(tmp_path, json.dumps({"step": 1, "sample": text, "loss": 2.0}), "metrics.jsonl"), text
        prompt = json.dumps(text)
        assert not scan(tmp_path, f"> {text}\n\n    \nids = tokenizer({prompt}, x)\n", "README.md"), text
        assert scan(tmp_path, f"| field | {text.removeprefix('#!')} |", "README.md"), text
    for text in (SECRETS["GitHub"], "/srv/elsewhere/x"):
        assert scan(tmp_path, json.dumps({"sample": text}), "metrics.jsonl") and scan(
            tmp_path, f"> {text}", "README.md"
        )


# --- Kind of file x place x preceding character x shape of secret ---------------------------------------------------


def weights_with(text: str) -> bytes:
    return save({"a": torch.ones(1)}, metadata={"format": "pt", "note": text})


def events_with(text: str) -> bytes:
    content = text.encode()  # a protobuf string: field, length, content
    return b"\x18\0\0\0\0\0\0\0abcd\x42" + bytes([len(content) % 128]) + content + b"\0\xff\xfe\0"


FILES = {
    "config.json": lambda text: json.dumps({"model_type": "gpt2", "note": {"deep": [text]}}, indent=1).encode(),
    "evaluation.json": lambda text: json.dumps({"tables": {text: 1}}, ensure_ascii=False).encode(),
    "tokenizer_config.json": lambda text: json.dumps({"chat_template": text}).encode(),
    "generation_config.json": lambda text: json.dumps({"inner": json.dumps({"note": text})}).encode(),
    "tokenizer.json": lambda text: json.dumps({"model": {"vocab": {text: 5}}}).encode(),
    "vocab.txt": lambda text: f"the\n{text}\nof\n".encode(),
    "merges.txt": lambda text: ascii(text).encode(),
    "chat_template.jinja": lambda text: f"{{{{ {text!r} }}}}".encode(),
    "metrics.jsonl": lambda text: b'{"step": 1}\n' + json.dumps({"step": 2, "sample": text}).encode() + b"\n",
    "README.md": lambda text: f"| a | {html.escape(text)} |\n".encode(),
    "adapter_config.json": lambda text: json.dumps({"note": text}).encode("utf-16"),
    "base.json": lambda text: json.dumps({"note": text}).encode("utf-16-le"),
    "model.safetensors": weights_with,
    "tensorboard/events.out.tfevents.1.0": events_with,
    "assets/loss.png": lambda text: png((b"iTXt", b"Title\0\0\0\0\0" + text.encode())),
    "assets/tokens.png": lambda text: png((b"zTXt", b"Comment\0\0" + zlib.compress(text.encode()))),
}
ENCODINGS = {
    "plain": str,
    "base64": lambda text: base64.b64encode(text.encode()).decode(),
    "base64 in lines": lambda text: base64.encodebytes(text.encode() * 2).decode(),
    "base64 of UTF-16": lambda text: base64.urlsafe_b64encode(text.encode("utf-16-le")).decode(),
}
BEFORE = st.characters(exclude_categories=["Cs"]).filter(lambda c: not (c.isascii() and (c.isalnum() or c in "_-")))


@settings(max_examples=400, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    *(st.sampled_from(sorted(FILES)), st.sampled_from(sorted(SECRETS)), st.sampled_from(sorted(ENCODINGS))),
    *(
        st.sampled_from(["", "the ", "\u00e9", "x\n"]),
        BEFORE | st.sampled_from("\n\t\r\"'\\ =:\u00e9\u0120\u8bf7\U00018cd6"),
    ),
)
def test_a_secret_is_found_in_every_kind_of_file_after_every_character(tmp_path, name, kind, encoding, first, before):
    text = ENCODINGS[encoding](f"{first}{before}{SECRETS[kind]}")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (leak,) = scan(tmp_path, FILES[name](f"{first}{before}{text}"), name)
    assert kind in leak or "netrc" in leak
