"""Test the notebooks: they run from start to end without warnings, and are stored without outputs."""

import ast
import json
import re

import pytest
from huggingface_hub import ModelCard
from notebooks import code_of, run_notebook
from peft import AutoPeftModelForCausalLM
from places import REPO
from transformers import AutoModelForCausalLM

import scratch_gpt


FOLDER = REPO / "training" / "notebooks"
FILES = sorted(FOLDER.glob("*.ipynb"))
TEXT = "The sun shines on the sea, and every effort moves you on. Return the boat to the harbour.\n" * 40


def test_the_notebooks_are_three():
    assert [file.stem for file in FILES] == ["1_by_hand", "2_pretrain_and_publish", "3_classify_and_instruct"]


@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_a_notebook_is_valid_and_has_no_outputs(file):
    """Check nbformat 4.5: kinds of cells, unique ids, lists of lines; formatted as by Jupyter."""
    notebook = json.loads(file.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert set(notebook) == {"cells", "metadata", "nbformat", "nbformat_minor"}
    assert file.read_text(encoding="utf-8") == json.dumps(notebook, indent=1, sort_keys=True) + "\n"
    names = [cell["id"] for cell in notebook["cells"]]
    assert len(names) == len(set(names)) and all(re.fullmatch(r"[\w-]{1,64}", name) for name in names)
    for cell in notebook["cells"]:
        own = {"code": {"execution_count": None, "outputs": []}, "markdown": {}}[cell["cell_type"]]
        assert {**cell, **own} == cell and set(cell) == {"cell_type", "id", "metadata", "source", *own}
        assert cell["metadata"] == {} and all(type(line) is str for line in cell["source"])
        assert all(line.endswith("\n") for line in cell["source"][:-1]) and not cell["source"][-1].endswith("\n")


@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_a_notebook_imports_only_public_names(file):
    for code in code_of(file):
        for node in ast.walk(ast.parse(re.sub(r"^( *)%.*", r"\1pass", code, flags=re.MULTILINE))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("scratch_gpt"):
                assert node.module in ("scratch_gpt", "scratch_gpt_training"), node.module
                names = {alias.name for alias in node.names}
                assert names <= {*scratch_gpt.__all__, "classify", "instruct", "pretrain"}


def test_the_first_computes_the_numbers_of_the_book(data, tmp_path):
    files = {"openai-community/gpt2": "gpt2-tokenizer", "the-verdict.txt": "the-verdict.txt"}
    run = run_notebook(FILES[0], tmp_path, {name: (data / file).as_posix() for name, file in files.items()})
    assert not run.err and run.pictures == 3
    for numbers in ("5,145", "0.4419, 0.6515, 0.5683", "0.3190, 0.4858", "10.7940", "10.98758", "2,666,528"):
        assert numbers in run.out
    assert "0.0615   0.0000   0.0000   0.5775   0.0000   0.0000   0.0000   0.3610" in run.out


def test_the_second_goes_from_text_to_publication(tmp_path, monkeypatch):
    (tmp_path / "notes").mkdir()
    for n in range(4):
        (tmp_path / "notes" / f"{n}.txt").write_text(f"{n} {TEXT}")
    run = run_notebook(FILES[1], tmp_path, {'"python-docs"': '"notes"', "2048, 128, 600": "300, 32, 40"})
    assert not run.err and run.pictures == 2
    monkeypatch.chdir(tmp_path)  # the adapter names its base by a relative path
    folder, tuned = tmp_path / "runs" / "lesson", tmp_path / "runs" / "lesson-loud"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    losses = [line["eval_loss"] for line in lines if "eval_loss" in line]
    assert losses[-1] < 0.7 * losses[0]
    results = json.loads((tuned / "evaluation.json").read_text(encoding="utf-8"))["results"]
    assert results["validation"]["loss"] < results["before/validation"]["loss"]
    model = AutoModelForCausalLM.from_pretrained(tuned / "model")
    assert model.num_parameters() == AutoModelForCausalLM.from_pretrained(folder / "model").num_parameters()
    AutoPeftModelForCausalLM.from_pretrained(tuned / "adapter", trust_remote_code=True)
    card = ModelCard((folder / "published" / "README.md").read_text(encoding="utf-8"))
    assert card.data.eval_results[0].metric_value == pytest.approx(losses[-1], abs=0.1)
    assert "## Training data" in card.text and card.text in run.out


def test_the_third_tunes_in_four_ways_and_answers(tmp_path):
    run = run_notebook(FILES[2], tmp_path, {})
    assert not run.err
    table = {line.split()[0]: line.split()[1:] for line in run.out.splitlines() if line.endswith("%")}
    assert [*table] == ["head", "last-block", "lora", "full"]
    assert all(float(test.rstrip("%")) > 75 for *_, test in table.values())
    right = dict(re.findall(r"^(before|after): (\d+) of \d+ answers", run.out, flags=re.MULTILINE))
    assert int(right["after"]) > 1.5 * int(right["before"])
    assert "[[" in run.out and "step 0: loss 0.6931" in run.out
    assert "<|im_start|>assistant\n" in run.out
