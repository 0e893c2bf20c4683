"""Give every recipe every kind of bad file, for tests/training/test_hostile.py and `make chaos`."""

import gzip
import importlib
import io
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
from accelerate.state import AcceleratorState, PartialState
from tiny import tiny_model

from scratch_gpt import ScratchGPTForSequenceClassification
from scratch_gpt.finetuning.lora import add_lora, save_adapter
from scratch_gpt.tokenization.training import train_tokenizer


RECOVERED, REFUSED, LOST = "recovered", "refused", "lost"
SECONDS = 20  # a recipe that takes longer counts as hanging
SENTENCES = [f"The old sailor walked to the shiny sea, and the sun shone on {n} quiet boats." for n in range(60)]
NESTED = 100_000

CONTENTS: dict[str, bytes] = {  # bytes of each kind of bad file
    "empty": b"",
    "blank": b" \n\n",
    "binary": bytes(range(256)) * 9,
    "null bytes": bytes(999),
    "a list": b"[]",
    "a number": b"7",
    "null": b"null",
    "nested": b"[" * NESTED + b"]" * NESTED,
    "nested objects": b'{"text": ' * NESTED + b"0" + b"}" * NESTED,
    "half surrogate": b'{"text": "\\ud800", "label": "\\ud800", "instruction": "\\ud800", "output": "\\ud800"}\n' * 60,
    "huge number": b'{"text": ' + b"9" * 9999 + b"}",
    "cut": b'{"text": "The old',
}


def _replace(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def spoil(file: Path) -> None:
        file.unlink()
        make(file)

    return spoil


def _other_kinds(file: Path) -> None:
    # Change the type of every field of each JSON object, and of the fields one level below.
    def change(value: Any, depth: int = 0) -> Any:
        if isinstance(value, dict) and depth < 2:
            return {key: change(each, depth + 1) for key, each in value.items()}
        return 7 if isinstance(value, (str, list, dict)) else ["x"]

    try:
        lines = file.read_text(encoding="utf-8").splitlines() if file.suffix == ".jsonl" else [file.read_bytes()]
        text = "\n".join(json.dumps(change(json.loads(line))) for line in lines)
    except ValueError:
        text = "[7]"
    file.write_text(text, encoding="utf-8")


SPOILERS: dict[str, Callable[[Path], object]] = {  # for each kind: the function that turns a good file into a bad one
    **{kind: (lambda file, content=content: file.write_bytes(content)) for kind, content in CONTENTS.items()},
    "fields of another kind": _other_kinds,
    "half of it": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "a folder": _replace(Path.mkdir),
    "a pipe": _replace(os.mkfifo),
    "a broken link": _replace(lambda file: file.symlink_to("nowhere")),
}


class Slot(NamedTuple):
    """A file that a recipe reads and the arguments that name it; {bad} is the file or its folder."""

    recipe: str
    file: str  # relative to the folder that `furnish` fills
    words: str
    stdin: str = ""


def _tuning(recipe: str, file: str) -> Slot:
    words = "--model {home}/chat --dataset {bad} --output-dir {out} --max-steps 1 --max-length 32 --keep-best false"
    return Slot(recipe, file, words + " --validation-fraction 0 --test-fraction 0 --device cpu")


MODEL_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors", "generation_config.json")
PREPARED = "--vocab-size 300 --max-length 16"
RUN_FILES = (
    "run.yaml",
    "manifest.json",
    "evaluation.json",
    "metrics.jsonl",
    "model/config.json",
    "model/tokenizer.json",
)
RUN = "--preset tiny --config-overrides hidden_size=32,num_hidden_layers=1 --vocab-size 300 --max-length 16"
RUN += " --max-steps 1 --test-fraction 0 --validation-fraction 0 --device cpu"
SLOTS = [
    *(
        Slot("train_tokenizer", f"data.{ending}", "--dataset {bad} --output-dir {out} --vocab-size 300 --compare none")
        for ending in ("txt", "json", "jsonl", "csv", "tsv", "parquet", "txt.gz", "txt.zst")
    ),
    Slot(
        "train_tokenizer",
        "chat/chat_template.jinja",
        "--dataset {home}/data.txt --output-dir {out} --compare none "
        "--vocab-size 300 --chat-template {bad}/chat_template.jinja",
    ),
    Slot("prepare", "data.jsonl", "--dataset {bad} --output-dir {out} " + PREPARED),
    Slot(
        "prepare",
        "chat/tokenizer.json",
        "--dataset {home}/data.txt --output-dir {out} --max-length 16 --tokenizer {bad}",
    ),
    Slot("prepare", "words.txt", "--dataset {home}/data.txt --output-dir {out} --block-list {bad} " + PREPARED),
    Slot("prepare", "data.json", "--dataset {home}/data.txt --output-dir {out} --contamination {bad} " + PREPARED),
    Slot("prepare", "prepared/manifest.json", "--dataset {home}/data.txt --output-dir {bad} " + PREPARED),
    Slot("pretrain", "data.jsonl", "--dataset {bad} --output-dir {out} " + RUN),
    Slot("pretrain", "prepared/manifest.json", "--dataset {bad} --output-dir {out} " + RUN),
    Slot("pretrain", "config.yaml", "--config {bad} --dataset {home}/data.txt --output-dir {out} " + RUN),
    *(
        Slot("pretrain", f"run/{name}", "--dataset {home}/data.txt --output-dir {bad} --resume latest " + RUN)
        for name in (
            "run.yaml",
            "manifest.json",
            "evaluation.json",
            "metrics.jsonl",
            "checkpoints/step-1/manifest.json",
        )
    ),
    *(
        Slot(
            "pretrain",
            f"chat/{name}",
            "--model {bad} --dataset {home}/data.txt --max-length 16 --max-steps 1 "
            "--output-dir {out} --validation-fraction 0 --device cpu",
        )
        for name in MODEL_FILES
    ),
    _tuning("classify", "labels.jsonl"),
    _tuning("classify", "labels.csv"),
    Slot("classify", "data.txt", "--model {home}/classifier --predict {bad} --device cpu"),
    _tuning("instruct", "questions.jsonl"),
    _tuning("instruct", "questions.json"),
    Slot("instruct", "questions.json", "--model {home}/chat --dataset {bad} --preview 2"),
    _tuning("prefer", "preferences.jsonl"),
    *(
        Slot("evaluate", file, "{home}/chat --output-dir {out} --device cpu --max-new-tokens 4 --questions {bad}")
        for file in ("questions.json",)
    ),
    Slot("evaluate", "data.jsonl", "{home}/chat --output-dir {out} --device cpu --dataset {bad}"),
    Slot("evaluate", "choices.jsonl", "{home}/chat --output-dir {out} --device cpu --multiple-choice {bad}"),
    Slot("evaluate", "secrets.jsonl", "{home}/chat --output-dir {out} --device cpu --secrets {bad}"),
    Slot("evaluate", "run/evaluation.json", "{home}/chat --output-dir {bad} --device cpu --dataset {home}/data.txt"),
    Slot("evaluate", "run/run.yaml", "{bad}/model --output-dir {out} --device cpu --dataset {home}/data.txt"),
    Slot("evaluate", "classifier/config.json", "{bad} --output-dir {out} --device cpu --dataset {home}/labels.csv"),
    *(Slot("generate", f"chat/{name}", "{bad} the --max-new-tokens 2") for name in MODEL_FILES),
    Slot("generate", "chat/chat_template.jinja", "{bad} --chat --max-new-tokens 2", "Well?\n/exit\n"),
    *(
        Slot("generate", f"adapter/{name}", "{bad} the --max-new-tokens 2")
        for name in ("adapter_config.json", "adapter_model.safetensors", "base.json")
    ),
    Slot("generate", "data.txt", "{home}/chat FILE:{bad} --max-new-tokens 2"),
    *(Slot("publish", f"run/{name}", "{bad} --repo user/name --dry-run") for name in RUN_FILES),
]


def furnish(home: Path) -> None:
    """Write good files of every kind into an empty folder: data, models, an adapter, a run, prepared data."""
    rows = [{"text": text, "label": ("short", "long")[n % 2]} for n, text in enumerate(SENTENCES)]
    pairs = [{"instruction": text, "output": f"Yes, {n}."} for n, text in enumerate(SENTENCES)]
    liked = [{"prompt": text, "chosen": f"Yes, {n}.", "rejected": "No."} for n, text in enumerate(SENTENCES)]
    choices = [{"query": "The sun", "choices": ["shone", "swam"], "gold": 0}] * 3
    sets = {"data": rows, "labels": rows, "questions": pairs, "preferences": liked, "choices": choices}
    sets["secrets"] = [{"prefix": "My number is ", "secret": "123456"}] * 3
    for name, content in sets.items():
        (home / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
        (home / f"{name}.json").write_text(json.dumps(content))
    text = "\n".join(SENTENCES)
    for name in ("data.txt", "words.txt"):
        (home / name).write_text(text)
    (home / "data.txt.gz").write_bytes(gzip.compress(text.encode()))
    (home / "data.txt.zst").write_bytes(pa.compress(text.encode(), "zstd", asbytes=True))
    pq.write_table(pa.table({"text": SENTENCES}), home / "data.parquet")
    for name, mark in (("data.csv", ","), ("data.tsv", "\t"), ("labels.csv", ",")):
        (home / name).write_text(
            f"text{mark}label\n" + "".join(f'"{row["text"]}"{mark}{row["label"]}\n' for row in rows)
        )
    (home / "config.yaml").write_text("seed: 1\n")
    tokenizer = train_tokenizer(SENTENCES, vocab_size=300, chat_template="chatml")
    size = {
        "vocab_size": len(tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    chat = tiny_model(**size)
    classifier = tiny_model(ScratchGPTForSequenceClassification, **size, id2label={0: "long", 1: "short"})
    for name, model in (("chat", chat), ("classifier", classifier)):
        model.save_pretrained(home / name)
        tokenizer.save_pretrained(home / name)
    add_lora(chat, base=str(home / "chat"))
    save_adapter(chat, home / "adapter")
    tokenizer.save_pretrained(home / "adapter")
    for recipe, words in (
        ("pretrain", f"--output-dir {home}/run {RUN}"),
        ("prepare", f"--output-dir {home}/prepared {PREPARED}"),
    ):
        end = outcome(recipe, f"--dataset {home}/data.txt {words}".split())
        assert end[0] == RECOVERED, end


@contextmanager
def _limited(seconds: float, late: list[str]) -> Iterator[None]:
    def stop(*_):
        late.append(f"no end after {seconds} s")
        raise KeyboardInterrupt  # no recipe reports this as an error in its input

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def outcome(recipe: str, words: list[Any], stdin: str = "") -> tuple[str, str]:
    """Run a recipe in this process; return RECOVERED, REFUSED (one line, exit code 2) or LOST, and its output."""
    for state in (AcceleratorState, PartialState):
        state._reset_state()
    err, out, late = io.StringIO(), io.StringIO(), []
    main = importlib.import_module(f"scratch_gpt_training.{recipe}").main
    try:
        with (
            redirect_stderr(err),
            redirect_stdout(out),
            mock.patch.object(sys, "stdin", io.StringIO(stdin)),
            _limited(SECONDS, late),
        ):
            main([str(word) for word in words])
    except SystemExit as ending:
        lines = [line for line in err.getvalue().splitlines() if line.startswith("error: ")]
        is_clear = (
            ending.code == 2
            and len(lines) == 1
            and len(lines[0]) > 20
            and lines[0].isprintable()
            and "Traceback" not in err.getvalue()
        )
        return REFUSED if is_clear and not late else LOST, "".join(late) + err.getvalue() or f"code {ending.code}"
    except BaseException as error:  # a panic of a Rust library is not an Exception
        return LOST, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return RECOVERED, out.getvalue() + err.getvalue()


def attempts(recipe: str | None = None, every: bool = False) -> Iterator[tuple[Slot, str]]:
    """Yield pairs of a slot and a kind of bad file: all, or each slot and each kind of a recipe at least once."""
    for name in dict.fromkeys(slot.recipe for slot in SLOTS if recipe in (None, slot.recipe)):
        slots = [slot for slot in SLOTS if slot.recipe == name]
        if every:
            yield from ((slot, kind) for slot in slots for kind in SPOILERS)
        else:
            kinds = [*SPOILERS]
            yield from ((slots[n % len(slots)], kinds[n % len(kinds)]) for n in range(max(len(slots), len(kinds))))


def attempt(home: Path, work: Path, slot: Slot, kind: str) -> tuple[str, str]:
    """Give a recipe a bad file in one slot; return the same as `outcome`."""
    top, *below = Path(slot.file).parts
    bad, out = work / top, work / "out"
    _copy(home / top, bad)
    SPOILERS[kind](bad.joinpath(*below))
    words = slot.words.format(home=home, bad=bad, out=out).split()
    try:
        return outcome(slot.recipe, words, slot.stdin)
    finally:
        for path in (bad, out):
            _remove(path)


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
