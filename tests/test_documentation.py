"""Test the project's documents: names exist, and each fact is stated in one place."""

import ast
import doctest
import importlib
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml
from places import REPO

import scratch_gpt
from scratch_gpt_training import generate, pretrain
from scratch_gpt_training.support import command_line


GITHUB = REPO / ".github"
PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text())
CONSTRAINTS = (REPO / ".ci" / "constraints.txt").read_text()
WORKFLOW = yaml.safe_load((GITHUB / "workflows" / "ci.yml").read_text())
STEPS = [step for job in WORKFLOW["jobs"].values() for step in job["steps"]]
DOCUMENTS = sorted(file for file in GITHUB.rglob("*") if file.suffix in (".md", ".yml"))
WITH_EXAMPLES = [file for file in (REPO / "scratch_gpt").rglob("*.py") if ">>> " in file.read_text()]
RECIPES = sorted((REPO / "training").glob("[!_]*.py"))
BLOCK = re.compile(r"^# /// script$\n(?P<content>(?:^#(?: .*)?$\n)+)^# ///$\n", re.MULTILINE)  # PEP 723


class FencedParser(doctest.DocTestParser):
    """Reads examples between Markdown's fences, as in transformers' documentation."""

    def parse(self, string: str, name: str = "<string>"):
        return super().parse(re.sub(r"^ *```\w*$", "", string, flags=re.MULTILINE), name)


def names(files) -> list[str]:
    return [file.relative_to(REPO).as_posix() for file in files]


def test_only_the_package_states_the_version():
    assert "version" not in PROJECT["project"] and PROJECT["project"]["dynamic"] == ["version"]
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "scratch_gpt.__version__"}
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+)?", scratch_gpt.__version__)


def test_the_changelog_begins_with_the_current_version():
    first = re.search(r"^## (\S+)", (GITHUB / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert first[1] == scratch_gpt.__version__


@pytest.mark.parametrize("document", DOCUMENTS, ids=names(DOCUMENTS))
def test_documents_name_existing_targets_and_files(document):
    text = document.read_text()
    targets = re.findall(r"^([\w-]+):", (REPO / "Makefile").read_text(), flags=re.MULTILINE)
    assert {*re.findall(r"(?:`|^    |run: )make ([\w-]+)", text, flags=re.MULTILINE)} <= {*targets}
    paths = re.findall(r"(?<![\w./-])(?:\.ci|hub_card|scratch_gpt|tests|training)/[\w./-]*\w", text)
    assert not [path for path in paths if path != ".ci/artefacts" and not (REPO / path).exists()]


def test_the_workflow_tests_each_python_that_the_package_names():
    classifiers = [
        text.removeprefix("Programming Language :: Python :: ") for text in PROJECT["project"]["classifiers"]
    ]
    supported = [text for text in classifiers if re.fullmatch(r"3\.\d+", text)]
    assert WORKFLOW["jobs"]["checks"]["strategy"]["matrix"]["python"] == supported
    assert PROJECT["project"]["requires-python"] == f">={supported[0]}"
    assert "bash .ci/run" in [step.get("run") for step in WORKFLOW["jobs"]["checks"]["steps"]]


def test_the_workflow_reads_only_and_pins_each_action():
    assert WORKFLOW["permissions"] == {"contents": "read"} and WORKFLOW["concurrency"]["cancel-in-progress"] is True
    assert "secrets." not in (GITHUB / "workflows" / "ci.yml").read_text()
    assert all(re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"]) for step in STEPS if "uses" in step)


def test_the_smoke_commands_are_options_of_their_recipes():
    commands = [
        shlex.split(step["run"]) for step in WORKFLOW["jobs"]["smoke"]["steps"] if "training/" in step.get("run", "")
    ]
    runs = {}
    for words in commands:
        script = next(word for word in words if word.endswith(".py"))
        kind = {"pretrain": pretrain.PretrainRun, "generate": generate.GenerateRun}[Path(script).stem]
        runs[kind] = command_line.parse(kind, words[words.index(script) + 1 :])
    assert Path(runs[generate.GenerateRun].model) == Path(runs[pretrain.PretrainRun].output_dir, "model")


@pytest.mark.parametrize("form", ["bug_report", "feature_request"])
def test_an_issue_form_has_the_parts_that_github_requires(form):
    content = yaml.safe_load((GITHUB / "ISSUE_TEMPLATE" / f"{form}.yml").read_text())
    assert {"name", "description", "body"} <= {*content}
    fields = [part for part in content["body"] if part["type"] != "markdown"]
    assert fields and all(part["type"] == "textarea" and part["attributes"]["label"] for part in fields)
    assert len({part["id"] for part in fields}) == len(fields)
    assert all({*part} <= {"type", "id", "attributes", "validations"} for part in content["body"])


def test_the_commit_hooks_have_the_versions_that_ci_installs():
    hooks = yaml.safe_load((REPO / ".pre-commit-config.yaml").read_text())["repos"]
    pins = {
        repo["repo"].rsplit("/", 1)[1].removesuffix("-pre-commit"): repo["rev"].removeprefix("v") for repo in hooks
    }
    assert {*pins} == {"ruff", "codespell"}
    assert all(f"\n{name}=={version}\n" in CONSTRAINTS for name, version in pins.items())


def test_each_recipe_has_the_same_block_of_dependencies():
    blocks = {BLOCK.match(file.read_text())["content"] for file in RECIPES}
    assert len(RECIPES) >= 9 and len(blocks) == 1
    script = tomllib.loads("".join(line[2:] or "\n" for line in blocks.pop().splitlines(keepends=True)))
    assert script["requires-python"] == PROJECT["project"]["requires-python"]
    assert script["dependencies"] == [PROJECT["project"]["name"]]
    source = script["tool"]["uv"]["sources"][PROJECT["project"]["name"]]
    assert source["editable"] and (REPO / "training" / source["path"]).resolve() == REPO


@pytest.mark.parametrize("file", WITH_EXAMPLES, ids=names(WITH_EXAMPLES))
def test_examples_in_docstrings_give_the_shown_results(file):
    module = importlib.import_module(".".join(file.relative_to(REPO).with_suffix("").parts))
    runner = doctest.DocTestRunner()
    for test in doctest.DocTestFinder(parser=FencedParser()).find(module):
        runner.run(test)
    assert runner.summarize(verbose=False).failed == 0 and runner.tries > 0


def test_at_least_twelve_functions_have_doctests():
    functions = [
        node.name
        for file in WITH_EXAMPLES
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.FunctionDef) and ">>> " in (ast.get_docstring(node) or "")
    ]
    assert len(functions) >= 12
