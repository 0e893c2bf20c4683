"""Test the public names of the package: each resolves, and editors and type checkers know it."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from notebooks import code_of
from places import REPO

import scratch_gpt


TREE = ast.parse((REPO / "scratch_gpt" / "__init__.py").read_text())
CALLS = """\
import scratch_gpt
from scratch_gpt import ScratchGPTForCausalLM, TrainingSettings, Windows, causal_lm, load_tokenizer, plot_loss

reveal_type(ScratchGPTForCausalLM)
reveal_type(Windows)
reveal_type(load_tokenizer("runs/mine/model"))
reveal_type(scratch_gpt.decode)
reveal_type(plot_loss)
reveal_type(scratch_gpt.train_model)
reveal_type(TrainingSettings)
reveal_type(causal_lm)
"""
TYPES = [
    "type[ScratchGPTForCausalLM]",
    "type[Windows]",
    "PreTrainedTokenizerBase",
    "(tokenizer: PreTrainedTokenizerBase, ids: list[int], skip_special_tokens: bool = False) -> str",
    "-> Path",
    "-> tuple[Module, Progress]",
    "type[TrainingSettings]",
    "Objective",
]


def test_each_name_resolves_and_is_listed():
    listed = dir(scratch_gpt)
    for name in scratch_gpt.__all__:
        value = getattr(scratch_gpt, name)
        is_function_or_class = callable(value) and value.__name__ == name
        assert (is_function_or_class or isinstance(value, scratch_gpt.Objective)) and name in listed
    assert "__version__" in listed


def test_names_for_editors_equal_those_imported_at_first_use():
    (block,) = (node for node in TREE.body if isinstance(node, ast.If))
    assert ast.unparse(block.test) == "TYPE_CHECKING"
    imports = {alias.name: node.module for node in block.body for alias in node.names}
    assert imports == scratch_gpt._LAZY
    assert {*imports} <= {*scratch_gpt.__all__} and len(scratch_gpt.__all__) == len({*scratch_gpt.__all__})


def test_no_public_name_equals_a_package_name():
    folders = {path.parent.name for path in (REPO / "scratch_gpt").glob("*/__init__.py")}
    assert not folders & {*scratch_gpt.__all__}


def test_documentation_imports_from_the_top_of_the_package():
    readme = (REPO / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", readme, flags=re.MULTILINE | re.DOTALL)
    cells = [code for file in (REPO / "training" / "notebooks").glob("*.ipynb") for code in code_of(file)]
    assert blocks and cells
    for code in [*blocks, *(re.sub(r"^( *)%.*", r"\1pass", cell, flags=re.MULTILINE) for cell in cells)]:
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom):
                assert not (node.module or "").startswith("scratch_gpt."), node.module
                if node.module == "scratch_gpt":
                    assert {alias.name for alias in node.names} <= {*scratch_gpt.__all__}


def test_a_type_checker_knows_the_names(tmp_path):
    folders = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    checker = os.environ.get("SCRATCH_GPT_PYRIGHT") or shutil.which("basedpyright", path=folders)
    if checker is None:
        pytest.skip("no type checker: pip install basedpyright, or set SCRATCH_GPT_PYRIGHT to the path of pyright")
    (tmp_path / "calls.py").write_text(CALLS)
    settings = {"include": ["calls.py"], "extraPaths": [str(REPO)], "typeCheckingMode": "basic"}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    words = [checker, "--outputjson", "--pythonpath", sys.executable, "--project", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    found = [item["message"] for item in json.loads(done.stdout)["generalDiagnostics"]]
    revealed = [text.split(" is ", 1)[1].strip('"') for text in found if text.startswith("Type of ")]
    assert len(revealed) == len(TYPES), found
    assert all(kind in text and "Unknown" not in text for kind, text in zip(TYPES, revealed, strict=True)), revealed
