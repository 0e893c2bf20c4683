"""Faults of publishing, for chaos.py: keys, links, odd values, moved bases and a failing Hub, counted by kind.

A kind is a function of a finished run and a folder to work in; it yields recovered, refused or lost for each try.
"""

import itertools
import json
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

import card_run
import conftest  # noqa: F401  # as in the tests: no network, the recipes on the path
import hub_server
import test_card
import test_leak_check
import test_publish
import yaml
from huggingface_hub import constants
from huggingface_hub.utils import _http
from tiny import png

from scratch_gpt.hub import leak_check as leaks
from scratch_gpt.hub import publish as hub
from scratch_gpt.hub import staging as published
from scratch_gpt.hub.card import FRONT, REGION, merge_cards
from scratch_gpt.hub.leak_check import find_leaks
from scratch_gpt.runs.record import base_model, read_record


Kind = Callable[[Path, Path], Iterator[str]]
BEFORE = ["", " ", "\n", "\t", '"', "\\", "\u00e9", "\u0120", "\u8bf7", "\U0001f600", "=", ":", "/", "\u00df", "\x0b"]


def _refusal(action: Callable, *, of: str = "") -> str:
    """Return "refused" if an action raises ValueError with one line that contains `of`, else "lost"."""
    try:
        action()
    except ValueError as error:
        return "refused" if "\n" not in str(error) and of in str(error) else "lost"
    except Exception:
        return "lost"
    return "lost"


def _stage(run: Path, **how) -> Path:
    return published.stage(run, repo="ada/x", say=lambda _: None, **how)


@contextmanager
def _quick() -> Iterator[None]:
    # replace the plots by a small picture
    def put(_, *rest) -> None:
        next(path for path in rest if isinstance(path, Path)).write_bytes(png())

    with ExitStack() as stack:
        for name in ("plot_attention", "plot_parameters", "plot_token_lengths"):
            stack.enter_context(mock.patch.object(published, name, put))
        yield


@contextmanager
def _copy(run: Path, home: Path) -> Iterator[Path]:
    with _quick():
        try:
            yield shutil.copytree(run, home / "copy")
        finally:
            shutil.rmtree(home / "copy")


def _edit(file: Path, **fields) -> None:
    file.write_bytes(json.dumps({**json.loads(file.read_bytes()), **fields}).encode())


def keys_in_files(run: Path, home: Path) -> Iterator[str]:
    """A secret key in each type of file, in several encodings and contexts"""
    draw, folder = random.Random(0), home / "keys"
    for name in sorted(test_leak_check.FILES):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    for kind, (name, write) in itertools.product(
        sorted(test_leak_check.SECRETS), sorted(test_leak_check.FILES.items())
    ):
        encode = test_leak_check.ENCODINGS[draw.choice(sorted(test_leak_check.ENCODINGS))]
        before = draw.choice(["", "the ", "x\n"]) + draw.choice(BEFORE[1:])
        (folder / name).write_bytes(write(before + encode(before + test_leak_check.SECRETS[kind])))
        yield "refused" if find_leaks(folder, [name]) else "lost"


def keys_in_runs(run: Path, home: Path) -> Iterator[str]:
    """A secret key in each part of a run that is published, in a file or on the card"""

    def in_settings(top: Path, text: str) -> None:
        fields = yaml.safe_load((top / "run.yaml").read_text())
        notes = "".join(line for line in (top / "run.yaml").read_text().splitlines(True) if line.startswith("#"))
        (top / "run.yaml").write_text(yaml.safe_dump({**fields, "notes": text}) + "\n" + notes)

    def in_sample(top: Path, text: str) -> None:
        with (top / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": 99, "sample": text}) + "\n")

    def in_source(top: Path, text: str) -> None:
        manifest = json.loads((top / "manifest.json").read_text())
        _edit(top / "manifest.json", sources=[{**manifest["sources"][0], "files": [{"name": text}]}])

    def in_tokenizer(top: Path, text: str) -> None:
        _edit(top / "model" / "tokenizer_config.json", note=text)

    places: list[Callable[[Path, str], object]] = [in_settings, in_sample, in_source, in_tokenizer]
    places += [lambda top, text: _edit(top / "evaluation.json", tables={"test": {text: 1}})]
    places += [lambda top, text: (top / "model" / "chat_template.jinja").write_text(f"{{{{ {text!r} }}}}")]
    places += [lambda top, text: (top / "loss.png").write_bytes(png((b"iTXt", b"a\0\0\0\0\0" + text.encode())))]
    draw = random.Random(1)
    for place in places:
        for before in BEFORE[:6]:
            with _copy(run, home) as top:
                place(top, f"{before}{test_leak_check.SECRETS[draw.choice(sorted(test_leak_check.SECRETS))]}")
                yield _refusal(lambda: _stage(top), of="Nothing was published.")


def honest_runs(run: Path, home: Path) -> Iterator[str]:
    """User names that are ordinary words, and samples that mention other people's paths: published"""
    with _quick():
        out = _stage(run, layout="scratch_gpt")
    files = published.files_of(out)
    for user in ("torch", "model", "train", "query", "value", "tokens", "data", "loss", "step", "base"):
        with mock.patch.object(leaks.getpass, "getuser", lambda: user):  # noqa: B023
            yield "lost" if find_leaks(out, files) else "recovered"
    for text in ("#!/usr/bin/env python", "/home/ada/x", "see C:\\Users\\ada\\x", "/etc/hosts and /var/log/syslog"):
        with _copy(run, home) as top:
            settings = yaml.safe_load((top / "run.yaml").read_text())
            notes = "".join(line for line in (top / "run.yaml").read_text().splitlines(True) if line.startswith("#"))
            (top / "run.yaml").write_text(yaml.safe_dump({**settings, "sample_prompt": text}) + "\n" + notes)
            with (top / "metrics.jsonl").open("a") as file:
                file.write(json.dumps({"step": 99, "sample": text}) + "\n")
            try:
                _stage(top)
            except ValueError:
                yield "lost"
            else:
                yield "recovered"


def links_in_runs(run: Path, home: Path) -> Iterator[str]:
    """Each file and folder that is read, replaced by a link to its moved self or to another file"""
    (home / "diary").write_text("Dear diary")
    names = ["model", "checkpoints", "run.yaml", "manifest.json", "evaluation.json", "metrics.jsonl", "loss.png"]
    names += [f"model/{path.name}" for path in sorted((run / "model").iterdir())] + [
        "model/vocab.txt",
        "confusion.png",
    ]
    for name, keep in itertools.product(names, (True, False)):
        with _copy(run, home) as top:
            path, target = top / name, home / "diary"
            if path.exists() and (keep or path.is_dir()):
                target = home / "target"
                path.rename(target)
            else:
                path.unlink(missing_ok=True)
            path.symlink_to(target)
            yield _refusal(lambda: _stage(top), of="is a link")
        for left in (home / "target",):
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)


def changed_code_and_pictures(run: Path, home: Path) -> Iterator[str]:
    """Changed code (recovered: the package's own is published) and invalid pictures"""
    for name, path in leaks.MODEL_CODE.items():
        with _copy(run, home) as top:
            (top / "model" / name).write_text("import os\n")
            out = _stage(top, layout="scratch_gpt")
            yield "recovered" if (out / name).read_bytes() == path.read_bytes() else "lost"
    for content in (
        b"",
        b"root:x:0:0",
        b"\xff\xd8\xff\xe0",
        png()[:-1],
        png() + b"x",
        png().replace(b"IDAT", b"IDAX"),
    ):
        with _copy(run, home) as top:
            (top / "loss.png").write_bytes(content)
            yield _refusal(lambda: _stage(top), of="not a PNG picture")


def values_on_cards(run: Path, home: Path) -> Iterator[str]:
    """Hostile names of files, labels, datasets and settings: the card keeps its usual structure"""
    for n, text in enumerate(test_card.HOSTILE):
        cards = []
        for name, value in ((f"card-{n}", text), (f"plain-{n}", "a text")):
            folder = test_card.hostile_run(home / name, value)
            cards.append(card_run.card_of(folder, "gpt2", base=(value, value), revision=value))
        seen, plain = (Counter(test_card.tags(FRONT.sub("", card))) for card in cards)
        same = [name for name, _ in REGION.findall(cards[0])] == [name for name, _ in REGION.findall(cards[1])]
        yield "recovered" if seen == plain and same and merge_cards(cards[0], cards[0]) == cards[0] else "lost"


def users_metadata(run: Path, home: Path) -> Iterator[str]:
    """A user's own lines of metadata on a card: a new push keeps them byte for byte"""
    new = card_run.card_of(card_run.write_run(home / "metadata"))
    body = new.split("---\n", 2)[2]
    lines = ["language: no", "version: 1.10", "license: mit", "a: 'it''s'", "b: 0x1F", "c: 1_000", "d: 12:30:00"]
    lines += [
        "# a comment",
        "e: on  # why",
        "f: |\n  text\n\n  more",
        "g: {a: yes}",
        "widget:\n- text: x\n- text: 'y'",
        "h:",
    ]
    lines += ["i: &x [1.0]\nj: *x", "k: 2001-01-01", '"l m": ~', "n: >-\n  folded\n  text", "tags: [own]", "o: \u8bf7"]
    for line, start in itertools.product(lines, ("", "\n", "\ufeff")):
        merged = merge_cards(f"{start}---\n{line}\n---\n{body}", new)
        kept = line in merged or (line == "tags: [own]" and "tags:\n- own\n- scratch-gpt\n" in merged)
        yield "recovered" if kept and merge_cards(merged, new) == merged else "lost"


def bases_in_folders(run: Path, home: Path) -> Iterator[str]:
    """A base in a folder that was moved, changed or not published: no Hub name is invented for it"""
    note = {"repo": "ada/base", "commit": "0" * 40, "layout": "gpt2", "fingerprint": "ab"}
    for name, there, mark, proven in itertools.product(
        ("nested/model", "one", "a/b"), (True, False), ("ab", "cd", None), (True, False)
    ):
        folder = home / "bases"
        with _copy(run, folder) as top:
            record = read_record(top)
            place = folder / name
            if there:
                place.mkdir(parents=True)
                (place.parent / "hub.json").write_text(json.dumps({**note, "fingerprint": mark}))
            base = {"folder": str(place), "fingerprint": "ab" if proven else "other"}
            record = record._replace(run={**record.run, "model": str(place)}, facts={**record.facts, "base": base})
            found, right = base_model(record), ("ada/base", "0" * 40) if there and proven and mark == "ab" else None
            yield "lost" if found != right else "recovered" if right else "refused"
        shutil.rmtree(folder)


def hubs_in_trouble(run: Path, home: Path) -> Iterator[str]:
    """A Hub that never answers, resets, limits, fails or shows a login page: a one-line error"""
    for status, asked in itertools.product(test_publish.TROUBLE, test_publish.ASKED):
        with hub_server.serve() as server, ExitStack() as stack:
            enter = stack.enter_context
            server.refuse, server.status = asked, status
            enter(mock.patch.dict("os.environ", HF_TOKEN=hub_server.WRITER))
            for name, value in (("HF_HUB_OFFLINE", False), ("HF_HUB_DISABLE_XET", True), ("ENDPOINT", server.url)):
                enter(mock.patch.object(constants, name, value))
            enter(mock.patch.object(hub, "READ_TIMEOUT", 0.3))
            enter(mock.patch.object(_http.time, "sleep", lambda _: None))
            enter(mock.patch.object(hub, "stage", lambda *_, **__: run / "model"))
            yield _refusal(lambda: hub.publish(run, "ada/base"), of="Nothing is lost: run the same command again")


KINDS: dict[str, Kind] = {
    "keys in files": keys_in_files,
    "keys in runs": keys_in_runs,
    "honest runs": honest_runs,
    "links in runs": links_in_runs,
    "changed code, pictures": changed_code_and_pictures,
    "values on cards": values_on_cards,
    "users' metadata": users_metadata,
    "bases in folders": bases_in_folders,
    "a Hub in trouble": hubs_in_trouble,
}
