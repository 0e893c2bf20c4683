"""List the commands, and write them as the user runs them: `scratch-gpt publish` or `python training/publish.py`.

Imports nothing heavy, because `scratch-gpt --help` must answer at once.
"""

import os
import re
import shlex
import sys
from pathlib import Path
from typing import NamedTuple


VARIABLE = "SCRATCH_GPT_COMMAND"  # the command that started this process, or its launcher
CONFIGS = Path(__file__).resolve().parents[1] / "configs"


class Verb(NamedTuple):
    """A recipe behind the command."""

    module: str  # of scratch_gpt_training
    summary: str
    options: str | None = None  # the class of its options, if it trains: then it takes launcher options


VERBS = {
    "pretrain": Verb("pretrain", "Train a GPT on text, from scratch or from a model.", "PretrainRun"),
    "tokenizer": Verb("train_tokenizer", "Train a tokenizer and report how well it compresses."),
    "prepare": Verb("prepare", "Clean, mix and tokenize data once, into a folder for training."),
    "classify": Verb("classify", "Train a classifier, or label texts with one.", "ClassifyRun"),
    "instruct": Verb("instruct", "Tune a model to follow instructions.", "InstructRun"),
    "prefer": Verb("prefer", "Tune a model on preferences: DPO, IPO, KTO, ORPO, SimPO.", "PreferRun"),
    "evaluate": Verb("evaluate", "Measure a model on held-out data, questions and benchmarks."),
    "generate": Verb("generate", "Continue a prompt."),
    "chat": Verb("generate", "Talk with a model: generate --chat."),
    "publish": Verb("publish", "Push a run to the Hub with a model card, or export it as ONNX or GGUF."),
}


def command(line: str) -> str:
    """Return `VERB options` as the user runs it: with the command that started this process, or as a script.

    >>> command("tokenizer --kind char")
    'python training/train_tokenizer.py --kind char'
    """
    verb, space, options = line.partition(" ")
    own = os.environ.get(VARIABLE)
    if own:
        return f"{own} {line}"
    started, folder = Path(sys.argv[0]), Path("training")
    if started.suffix == ".py" and started.stem in {verb.module for verb in VERBS.values()}:
        folder = started.parent
        if folder.is_absolute() and folder.is_relative_to(Path.cwd()):
            folder = folder.relative_to(Path.cwd())
    script = folder / f"{VERBS[verb].module}.py"
    return f"python {shlex.quote(str(script))}{space}{options}"


def spell_commands(text: str) -> str:
    """Return a recipe's documentation with its commands as the user runs them."""
    if VARIABLE not in os.environ:
        return text
    verbs = {verb.module: name for name, verb in reversed(VERBS.items())}
    return re.sub(
        r"(?:accelerate launch|python) training/(\w+)\.py",
        lambda match: command(verbs[match[1]]) if match[1] in verbs else match[0],
        text,
    )


def find_config(name: str, folder: Path = CONFIGS) -> Path:
    """Return the file `name` if it exists, else the file of `folder` with that name, without its .yaml."""
    path, own = Path(name), folder / f"{name}.yaml"
    is_ours = path.name == name and not os.path.lexists(path) and own.is_file()
    return own if is_ours else path
