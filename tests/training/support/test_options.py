"""Test options: those that a recipe does not read are refused by name on the command line and accepted in a file."""

import ast
import importlib
import json
from dataclasses import asdict, fields
from typing import Literal, get_args

import pytest
import yaml
from bad_input import fails
from places import REPO
from recipe_options import KINDS

from scratch_gpt.data.manifest import make_manifest
from scratch_gpt_training.support import command_line


FOLDER = REPO / "training"
# Fields that no function of the recipe reads, with any other options.
UNREAD = {
    "classify": {"sample_prompt", "stream_lanes"},
    "instruct": {"sample_prompt", "stream_lanes", "text_column"},
    # preference tuning uses the model's tokenizer; another is refused on the command line and in files
    "prefer": {
        "sample_prompt",
        "stream_lanes",
        "text_column",
        "vocab_size",
        "tokenizer_kind",
        "tokenizer",
        "pre_tokenizer",
    },
}


def parsed(name: str):
    """Return a module's functions by name, and its imports from the other modules: {name: (module, name there)}."""
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and (node.module or "") in MODULES]
    return functions, {alias.name: (node.module, alias.name) for node in imports for alias in node.names}


MODULES = {
    ".".join(["scratch_gpt_training", *file.relative_to(FOLDER).with_suffix("").parts]): file
    for file in FOLDER.rglob("*.py")
}
PARSED = {name: parsed(name) for name in MODULES}


def is_skipped(module: str, function: str, name: str) -> bool:
    """Return whether a function only checks, plans or records, so that its reading of a field does not count."""
    is_check = module.rsplit(".", 1)[1] in (name, "options", "output_dir") and function.startswith(("check", "unused"))
    return is_check or module.endswith(".planning") or function == "make_record"


def read_fields(name: str) -> set[str]:
    """Return the attributes of `run` used by the functions that a recipe's `main` calls."""
    found, seen, rest = set(), set(), [(f"scratch_gpt_training.{name}", "main")]
    while rest:
        script, function = one = rest.pop()
        functions, imports = PARSED[script]
        if function in imports and function not in functions:
            rest.append(imports[function])
        if function not in functions or one in seen or is_skipped(script, function, name):
            continue
        seen.add(one)
        nodes = [*ast.walk(functions[function])]
        names = {node.id for node in nodes if isinstance(node, ast.Name)}
        rest += [(script, each) for each in names if each in functions or each in imports]
        is_run = lambda node: isinstance(node, ast.Name) and node.id in ("run", "each")  # noqa: E731
        found |= {node.attr for node in nodes if isinstance(node, ast.Attribute) and is_run(node.value)}
        calls = [node for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
        if any(node.func.id == "getattr" and is_run(node.args[0]) for node in calls):
            found |= {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return found


@pytest.mark.parametrize("name", KINDS)
def test_every_field_is_read_or_refused(name):
    kind = KINDS[name]
    unread = {item.name for item in fields(kind)} - read_fields(name) - {"plan_devices", "plan_tflops"}
    assert unread == UNREAD.get(name, set())
    assert unread - {"tokenizer"} <= set(importlib.import_module(f"scratch_gpt_training.{name}").unused_fields(kind()))


def some_value(item) -> str:
    """Return a valid value of a field, as written on a command line."""
    if getattr(item.type, "__origin__", None) is Literal:
        return get_args(item.type)[0]
    return {bool: "true", int: "1", float: "0.5"}.get((get_args(item.type) or (item.type,))[0], "x")


@pytest.mark.parametrize("name", KINDS)
def test_an_unused_option_is_refused_by_name_and_accepted_in_a_file(name, tmp_path):
    kind, unused = KINDS[name], importlib.import_module(f"scratch_gpt_training.{name}").unused_fields
    items = {item.name: item for item in fields(kind)}
    file = tmp_path / "run.yaml"
    for field in unused(kind()):
        values = {**asdict(kind()), field: some_value(items[field])}
        flag = "--" + field.replace("_", "-")
        with pytest.raises(ValueError, match=f"{flag} has no effect: .+. Remove it"):
            command_line.parse(kind, [flag, values[field]], unused=unused)
        with pytest.raises(ValueError, match=f"{flag} has no effect"):
            command_line.parse(kind, [f"--{field}={values[field]}"], unused=unused)
        file.write_text(yaml.safe_dump(values))
        assert getattr(command_line.parse(kind, ["--config", str(file)], unused=unused), field) is not None


REFUSED = {
    "pretrain --tokenizer openai-community/gpt2 --vocab-size 300": "vocab-size",
    "pretrain --model m --vocab_size 300": "vocab-size",
    "pretrain --model m --tokenizer-kind char": "tokenizer-kind",
    "pretrain --tokenizer-kind char --pre-tokenizer qwen35": "pre-tokenizer",
    "pretrain --tokenizer openai-community/gpt2 --pre-tokenizer qwen35": "pre-tokenizer",
    "prepare --tokenizer openai-community/gpt2 --pre-tokenizer qwen35": "pre-tokenizer",
    "train_tokenizer --kind word --pre-tokenizer qwen35": "pre-tokenizer",
    "pretrain --stream-lanes 2": "stream-lanes",
    "pretrain --overlap context": "overlap",
    "pretrain --dataset PREPARED --vocab-size 300": "vocab-size",
    "pretrain --dataset PREPARED --text-column body": "text-column",
    "pretrain --dataset PREPARED --test-fraction 0.1": "test-fraction",
    "instruct --vocab-size 300": "vocab-size",
    "instruct --tokenizer-kind char": "tokenizer-kind",
    "instruct --preset tiny --sample_prompt The": "sample-prompt",
    "instruct --preset tiny --text-column text": "text-column",
    "instruct --test-fraction 0 --max-new-tokens 9": "max-new-tokens",
    "classify --vocab-size 4096": "vocab-size",
    "classify --model m --predict a.txt --dataset b.csv": "dataset",
    "classify --model m --predict a.txt --max-steps 3": "max-steps",
    "prefer --vocab-size 300": "vocab-size",
    "prefer --simpo-gamma 1": "simpo-gamma",
    "evaluate m --last-word a.jsonl --max-new-tokens 9": "max-new-tokens",
    "evaluate m --questions a.json --seeds 3": "seeds",
    "evaluate m --questions a.json --stride 8": "stride",
    "evaluate m --questions a.json --judge-repeats 2": "judge-repeats",
    "prepare --tokenizer openai-community/gpt2 --vocab-size 300": "vocab-size",
    "prepare --tokenizer openai-community/gpt2 --dataset-revision main": "dataset-revision",
    "prepare --task text --vocab-size 300": "vocab-size",
    "prepare --task text --max-length 8": "max-length",
    "prepare --task text --drop-tail true": "drop-tail",
    "prepare --alpha 0.5": "alpha",
    "prepare --mixture a=1,b=2 --alpha 0.5": "alpha",
    "prepare --mixture a,b --mixture-epochs a=1,b=2 --alpha 0.5": "alpha",
    "prepare --mixture a,b --mixture-epochs a=1,b=2 --stopping-strategy first_exhausted": "stopping-strategy",
    "prepare --stopping-strategy first_exhausted": "stopping-strategy",
    "prepare --mixture-epochs a=1": "mixture-epochs",
    "prepare --deduplicate exact --duplicate-ngram 1": "duplicate-ngram",
    "prepare --duplicate-threshold 0.5": "duplicate-threshold",
    "prepare --contamination-split test": "contamination-split",
    "prepare --contamination a.jsonl --contamination-split test": "contamination-split",
    "prepare --contamination-ngram 8": "contamination-ngram",
    "prepare --contamination-share 0.5": "contamination-share",
    "prepare --overlap context": "overlap",
    "prepare --stride 256 --overlap context": "overlap",
    "prepare --tokenizer-revision main": "tokenizer-revision",
    "prepare --mixture a.txt,b.txt --dataset-split test": "dataset-split",
    "pretrain --dataset a.txt --dataset-split test": "dataset-split",
    "train_tokenizer --dataset a.txt --dataset-config x": "dataset-config",
    "train_tokenizer --dataset-split test": "dataset-split",
    "generate m The --chat": "prompt",
    "generate m --prompt The --chat": "prompt",
    "generate m --chat --samples 2": "samples",
    "generate m The --num-assistant-tokens 3": "num-assistant-tokens",
    "generate m The --temperature 0 --top-k 5": "top-k",
    "generate m The --temperature 0 --top-p 0.5": "top-p",
    "generate m The --temperature 0 --seed 1": "seed",
    "publish r --export gguf --layout gpt2": "layout",
    "publish r --export onnx --checkpoints": "checkpoints",
    "publish r --export gguf --dry-run": "dry-run",
}


@pytest.fixture
def prepared(tmp_path):
    how = {"max_length": 8, "stride": 8, "pack": False, "pad": False, "tokenizer": {"fingerprint": ""}}
    manifest = make_manifest("pretrain", [], {"train": {"sha256": "", "tokens": 0, "bytes": 0}}, **how)
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    return str(tmp_path)


@pytest.mark.parametrize("line", REFUSED)
def test_an_option_that_has_no_effect_is_a_one_line_error(line, prepared, tmp_path, capsys):
    name, *words = line.replace("PREPARED", prepared).split()
    main = importlib.import_module(f"scratch_gpt_training.{name}").main
    words += [] if name in ("generate", "publish") else ["--output-dir", tmp_path / "run"]
    fails(words, f"--{REFUSED[line]} has no effect: ", capsys, main)


def test_options_that_are_read_are_accepted(prepared):
    for line in (
        "pretrain --preset tiny --vocab-size 300 --tokenizer-kind char",
        "pretrain --tokenizer train --vocab-size 300",
        "pretrain --streaming true --stream-lanes 2",
        "instruct --preset tiny --vocab-size 300 --max-new-tokens 9",
        "classify --preset tiny --vocab-size 300",
        "prefer --loss-type simpo --simpo-gamma 1",
        "evaluate --questions a.json --temperature 1 --seeds 3 --max-new-tokens 9",
        "evaluate --base b --secrets s.jsonl --seeds 3 --tuning-data t.json",
        "prepare --vocab-size 300",
        "prepare --mixture a,b --alpha 0.5 --stopping-strategy first_exhausted --dataset-revision main",
        "prepare --mixture a,b --mixture-epochs a=1,b=2",
        "prepare --deduplicate near --duplicate-ngram 1 --duplicate-threshold 0.5",
        "prepare --contamination a/b --contamination-split test --contamination-ngram 8 --contamination-share 0.5",
        f"prepare --contamination {prepared} --contamination-split test",
        "prepare --stride 8 --overlap context --tokenizer a/b --tokenizer-revision main",
        "prepare --task text --mixture a/b,c.txt --dataset-split test",
        "train_tokenizer --kind char --min-frequency 1 --dataset a/b --dataset-config x --dataset-revision main",
        f"train_tokenizer --dataset {prepared} --dataset-split test",
        "generate --chat --seed 1 --top-k 5 --assistant-model int8 --num-assistant-tokens 3",
        "generate --prompt The --samples 2 --temperature 0",
        "publish --repo a/b --private --revision x",
        "publish --repo a/b --dry-run --private --layout gpt2 --checkpoints",
    ):
        name, *words = line.split()
        command_line.parse(
            KINDS[name], words, unused=importlib.import_module(f"scratch_gpt_training.{name}").unused_fields
        )
