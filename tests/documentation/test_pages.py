"""Test the pages: every block of code runs, every link has a target, and generated parts are up to date."""

import ast
import dataclasses
import doctest
import importlib
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState, PartialState
from pages import PAGES, read_page, written
from places import REPO
from tiny import tiny_gpt2
from transformers import AutoModelForCausalLM

import scratch_gpt
from scratch_gpt.evaluation.benchmark_tasks import BLIMP
from scratch_gpt.tokenization.training import train_tokenizer as make_tokenizer
from scratch_gpt_training import pretrain
from scratch_gpt_training.support.commands import VERBS


TEXTS = {name: read_page(name) for name in PAGES}
README = TEXTS["README.md"]
FENCE = re.compile(r"(?:<!-- not run: (?P<reason>[^>]+) -->\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```", re.M | re.S)
BLOCKS = [(name, block) for name, text in TEXTS.items() for block in FENCE.finditer(text)]
ALL_PYTHON = [(name, block["code"]) for name, block in BLOCKS if block["language"] == "python" and not block["reason"]]
PYTHON = [(name, code) for name, code in ALL_PYTHON if not code.startswith(">>> ")]
SESSIONS = [(name, code) for name, code in ALL_PYTHON if code.startswith(">>> ")]  # with the output below each line
SHELL = [
    (name, line)
    for name, block in BLOCKS
    if block["language"] == "bash" and not block["reason"]
    for line in block["code"].replace("\\\n", " ").splitlines()
    if line.strip() and not line.startswith("#")
]
LINK = re.compile(r"\]\((?!https?://|mailto:)([^)\s]+)\)")
README_LINES = 200
# Arguments that make a documented run small; they follow the documented ones and override them.
SMALLER = ["--max-steps", "1", "--epochs", "1", "--batch-size", "2", "--eval-batches", "1", "--max-length", "32"]
SMALLER += ["--device", "cpu", "--log-every", "1"]
NEW_MODEL = ["--preset", "tiny", "--tokenizer", "train", "--vocab-size", "300"]
# Files of test data for names in a session.
REAL_DATA = {"openai-community/gpt2": "gpt2-tokenizer", "the-verdict.txt": "the-verdict.txt"}
TEXT = "The sun shines on the sea, and every effort moves you on. " * 60


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Make a folder with the files that the README's commands name: texts, GPT-2, and a run of `make train`."""
    folder = tmp_path_factory.mktemp("home")
    for name in ("my.txt", "the-verdict.txt", "notes/a.md", "notes/b.md", "books/a.txt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(TEXT + name)
    kinds = ("good", "bad", "so so")
    texts = [f"This is number {n} and it is {kinds[n % 3]}." for n in range(60)]
    table = "".join(f"{text},{kinds[n % 3]}\n" for n, text in enumerate(texts))
    (folder / "reviews.csv").write_text("review,stars\n" + table)
    (folder / "mails.tsv").write_text("".join(f"{('ham', 'spam')[n % 2]}\t{text}\n" for n, text in enumerate(texts)))
    topics = [{"text": text, "topics": ("a", "b", "a;b")[n % 3]} for n, text in enumerate(texts)]
    (folder / "news.jsonl").write_text("".join(json.dumps(row) + "\n" for row in topics))
    rows = [{"instruction": f"Say {n}", "input": "", "output": f"{n}"} for n in range(60)]
    (folder / "my.json").write_text(json.dumps(rows))
    (folder / "test.json").write_text(json.dumps(rows[:3]))
    pairs = [{"prompt": f"Say {n}", "chosen": f"{n}", "rejected": f"not {n}"} for n in range(60)]
    (folder / "pairs.json").write_text(json.dumps(pairs))
    judged = [{"prompt": f"Say {n}", "completion": f"{n}", "label": n % 2 == 0} for n in range(60)]
    (folder / "judged.jsonl").write_text("".join(json.dumps(row) + "\n" for row in judged))
    (folder / "heldout.txt").write_text(TEXT)
    secrets = [{"prefix": f"The code of box {n} is", "secret": f"{37 * n:04d}"} for n in (1, 2)]
    (folder / "secrets.jsonl").write_text("".join(json.dumps(row) + "\n" for row in secrets))
    (folder / "hellaswag.jsonl").write_text(json.dumps({"query": "The sun", "choices": ["shines", "sea"], "gold": 0}))
    (folder / "lambada.jsonl").write_text(json.dumps({"text": "The sun shines on the sea"}))
    choices = {"text": ["the sun", "the sea"], "label": ["A", "B"]}
    (folder / "tasks" / "blimp").mkdir(parents=True)
    (folder / "tasks" / "arc_easy.jsonl").write_text(
        json.dumps({"question": "What shines?", "choices": choices, "answerKey": "A"})
    )
    (folder / "tasks" / "lambada_openai.jsonl").write_text(json.dumps({"text": "The sun shines on the sea"}))
    pair = {"sentence_good": "The sun shines.", "sentence_bad": "The sun shine."}
    for name in BLIMP:
        (folder / "tasks" / "blimp" / f"{name}.jsonl").write_text(json.dumps(pair))
    (folder / "new.txt").write_text("Is it good?\nIs it bad?\n")
    for name in ("tinyshakespeare.txt", "hindi.txt"):
        (folder / name).write_text(TEXT)
    labeled = "".join(f"{text},{('ham', 'spam')[n % 2]}\n" for n, text in enumerate(texts))
    for name in ("train", "more"):
        (folder / f"{name}.csv").write_text("text,label\n" + labeled)
    (folder / "test.csv").write_text("text,label\nIs it good?,ham\nIs it bad?,spam\n")
    shutil.copytree(REPO / "training" / "configs", folder / "training" / "configs")
    tokenizer = make_tokenizer([TEXT], vocab_size=300)
    tiny_gpt2(vocab_size=len(tokenizer)).save_pretrained(folder / "gpt2")
    tokenizer.save_pretrained(folder / "gpt2")
    for name in ("pretrain", "mine"):
        run_recipe(
            pretrain, ["--dataset", folder / "my.txt", "--output-dir", folder / "runs" / name, *SMALLER, *NEW_MODEL]
        )
    return folder


def run_recipe(module, arguments) -> None:
    AcceleratorState._reset_state()
    PartialState._reset_state()
    module.main([str(argument) for argument in arguments])


def test_readme_begins_with_the_two_commands():
    first = "\n".join(README.splitlines()[:30])
    assert "make train" in first and "make test" in first


def test_readme_is_short():
    assert README.count("\n") <= README_LINES


def test_every_page_is_in_the_list():
    folders = ("scratch_gpt", "training", "hub_card", "tests")
    found = {file.relative_to(REPO).as_posix() for folder in folders for file in (REPO / folder).rglob("*.md")}
    # The card, and the page of the Space.
    others = {"hub_card/template.md", "hub_card/fields.md", "hub_card/space/README.md"}
    assert found - others == {*PAGES} - {"README.md"}


@pytest.mark.parametrize("name", PAGES)
def test_generated_parts_are_up_to_date(name):
    """`make docs` writes them."""
    assert written(TEXTS[name]) == TEXTS[name]


def test_every_option_is_on_a_page():
    everything = "\n".join(TEXTS.values())
    for verb in VERBS.values():
        module = importlib.import_module(f"scratch_gpt_training.{verb.module}")
        kinds = [item for item in vars(module).values() if dataclasses.is_dataclass(item)]
        for item in (item for kind in kinds for item in dataclasses.fields(kind)):
            assert f"| `--{item.name.replace('_', '-')}` |" in everything, item.name


def test_every_option_that_the_chapters_name_exists():
    known = {"--config"}
    for verb in VERBS.values():
        module = importlib.import_module(f"scratch_gpt_training.{verb.module}")
        kinds = [item for item in vars(module).values() if dataclasses.is_dataclass(item)]
        known |= {f"--{item.name.replace('_', '-')}" for kind in kinds for item in dataclasses.fields(kind)}
    assert {*re.findall(r"--[a-z][\w-]+", TEXTS["training/CHAPTERS.md"])} <= known


def test_every_make_target_that_a_page_names_exists():
    targets = re.findall(r"^([\w-]+):", (REPO / "Makefile").read_text(), flags=re.MULTILINE)
    for text in TEXTS.values():
        assert {*re.findall(r"`make ([\w-]+)`", text)} <= {*targets}


@pytest.mark.parametrize("name", PAGES)
def test_links_have_targets(name):
    text = re.sub(r"^```.*?^```", "", TEXTS[name], flags=re.MULTILINE | re.DOTALL)
    for link in LINK.findall(text):
        path, _, anchor = link.partition("#")
        target = (REPO / name).parent / path if path else REPO / name
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), link


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", PAGES)
def test_each_block_of_code_names_its_language(name):
    assert all(
        block["language"] in ("bash", "python", "text", "yaml", "json") for page, block in BLOCKS if page == name
    )
    prose = FENCE.sub("", TEXTS[name])
    assert not re.search(r"^ {4}(?:python|pip|make|accelerate|torchrun|scratch-gpt|hf|trl|lm_eval) ", prose, re.M)


@pytest.fixture(scope="module")
def already_run() -> set[int]:
    """Keep the numbers of shell lines that were run: later lines read the files of earlier ones."""
    return set()


def run_lines(count: int, home, already_run: set[int], monkeypatch, capsys) -> None:
    """Run the first `count` shell lines, each once, so that tests may come in any order."""
    monkeypatch.chdir(home)
    for number in [number for number in range(count) if number not in already_run]:
        already_run.add(number)
        run_line(SHELL[number][1], home, monkeypatch, capsys)


@pytest.mark.parametrize("number", range(len(SHELL)), ids=[f"{name}: {line[:60]}" for name, line in SHELL])
def test_shell_lines_run(number, home, already_run, monkeypatch, capsys):
    run_lines(number + 1, home, already_run, monkeypatch, capsys)


def run_line(line: str, home, monkeypatch, capsys) -> None:
    words = shlex.split(line.replace("openai-community/gpt2", str(home / "gpt2")))
    if words[0] == "scratch-gpt":  # tests/test_wheel.py starts the command itself
        words = ["python", f"training/{VERBS[words[1]].module}.py", *words[2:]]
    script = next((n for n, word in enumerate(words) if word.startswith("training/") and word.endswith(".py")), None)
    if script is None:  # CI runs the same lines of set-up; here only the files that they name are checked
        assert words[0] in ("python", "source", "pip", "make", "hf"), line
        assert all((REPO / word).exists() for word in words if word.startswith(".ci/"))
        return
    if "--config_file" in words[:script]:
        assert Path(words[words.index("--config_file") + 1]).exists()
    name, arguments = Path(words[script]).stem, words[script + 1 :]
    if "--help" in arguments:
        with pytest.raises(SystemExit):
            importlib.import_module(f"scratch_gpt_training.{name}").main(arguments)
        return
    if ">" in arguments:
        arguments = arguments[: arguments.index(">")]
    if "--expect-processes" in arguments:  # tests/training/test_pretrain.py starts the two
        arguments = arguments[: arguments.index("--expect-processes")]
    said = iter(["Well?", "/exit"])
    monkeypatch.setattr("builtins.input", lambda prompt="": next(said))
    run_recipe(importlib.import_module(f"scratch_gpt_training.{name}"), [*arguments, *smaller(name, arguments)])
    output = capsys.readouterr().out
    says = {"train_tokenizer": "Next:", "generate": "", "publish": "# name"}.get(name, "Written:")
    says = "Written:" if "--export" in arguments else says
    if "--predict" in arguments:
        assert output.count("probabilities") == 2
    elif "--plan" in arguments:
        assert "compute-optimal" in output
    elif "--preview" not in arguments:
        assert output and says in output


def smaller(name: str, arguments: list[str]) -> list[str]:
    """Return arguments to append to a line: they make it small and replace data on the Hub by local files."""
    if name == "generate":
        return ["--max-new-tokens", "3"]
    if name == "publish":
        return [] if "--export" in arguments else ["--dry-run", "true"]
    if name == "prepare":
        if "text" in arguments:
            return []
        return ["--max-length", "16", *([] if "--tokenizer" in arguments else ["--vocab-size", "300"])]
    if name == "train_tokenizer":
        return ["--dataset", "my.txt", "--vocab-size", "300", "--compare", "none"]
    if name == "evaluate":
        small = ["--stride", "16"] if "--stride" in arguments else []
        return ["--device", "cpu", *small, *(["--max-new-tokens", "3"] if "--questions" in arguments else [])]
    if "--predict" in arguments:
        return []
    small = [*SMALLER, *([] if "--resume" in arguments else ["--overwrite", "true"])]
    if name == "pretrain":
        if "--resume" in arguments:  # the page on resuming continues further
            small += ["--max-steps", "2" if "--dataset" in arguments else "3"]
        if "0" in arguments[-4:]:
            small += ["--max-steps", "0"]
        if "data/notes" in arguments:  # prepared with another max_length, and a tokenizer
            small = [word for word in small if word not in ("--max-length", "32")]
        given = {"--model", "--tokenizer", "data/notes"} & {*arguments}
        return [*small, *([] if "--model" in given else ["--preset", "tiny"] if given else NEW_MODEL)]
    default = {
        "classify": ["--dataset", "reviews.csv", "--text-column", "review", "--label-column", "stars"],
        "instruct": ["--dataset", "my.json"],
        "prefer": ["--dataset", "pairs.json"],
    }[name]
    small += [] if "--dataset" in arguments else default
    small += [] if "--model" in arguments else ["--model", "gpt2"]
    if name == "classify":
        return [*small, "--seeds", "1"]
    small += ["--prompt-format", "plain"]  # other prompts would fill such a short row
    return [*small, "--answers", "2", "--max-new-tokens", "3"] if name == "instruct" else small


@pytest.mark.parametrize("number", range(len(PYTHON)), ids=[name for name, _ in PYTHON])
def test_python_blocks_run(number, home, already_run, monkeypatch, capsys):
    run_lines(len(SHELL), home, already_run, monkeypatch, capsys)
    names = {}
    AcceleratorState._reset_state()
    PartialState._reset_state()
    exec(PYTHON[number][1].replace("openai-community/gpt2", str(home / "gpt2")), names)
    assert any(
        type(value).__name__.endswith(("LMHeadModel", "Pipeline")) or hasattr(value, "generate")
        for value in names.values()
    )


@pytest.mark.parametrize("number", range(len(PYTHON)), ids=[name for name, _ in PYTHON])
def test_python_blocks_import_public_names_from_the_package(number):
    for node in ast.walk(ast.parse(PYTHON[number][1])):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("scratch_gpt."):
            assert not {alias.name for alias in node.names} & {*scratch_gpt.__all__}, node.module


@pytest.mark.parametrize("number", range(len(SESSIONS)), ids=[f"{name} {n}" for n, (name, _) in enumerate(SESSIONS)])
def test_sessions_print_what_the_page_shows(number, request):
    name, code = SESSIONS[number]
    for word, file in REAL_DATA.items():
        if word in code:
            code = code.replace(word, (request.getfixturevalue("data") / file).as_posix())
    session = doctest.DocTestParser().get_doctest(code, {}, name, name, 0)
    differences: list[str] = []
    result = doctest.DocTestRunner(verbose=False).run(session, out=differences.append)
    assert result.attempted and not result.failed, "".join(differences)
    assert any(example.want for example in session.examples)


@pytest.mark.parametrize("number", range(len(SESSIONS)), ids=[f"{name} {n}" for n, (name, _) in enumerate(SESSIONS)])
def test_sessions_import_only_public_names_of_the_package(number):
    for example in doctest.DocTestParser().get_examples(SESSIONS[number][1]):
        for node in ast.walk(ast.parse(example.source)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("scratch_gpt"):
                assert node.module == "scratch_gpt" and {alias.name for alias in node.names} <= {*scratch_gpt.__all__}


def test_the_example_of_a_custom_recipe_is_short():
    (block,) = (text for _, text in PYTHON if "pretrain.main(" in text)
    assert len([line for line in block.splitlines() if line.strip()]) < 25 and "sys.path" not in block


def test_the_exported_folder_of_the_readme_is_stock(home, already_run, monkeypatch, capsys):
    if not (home / "runs" / "stock-gpt2").exists():
        exporting = next(number for number, (_, text) in enumerate(PYTHON) if "stock-gpt2" in text)
        test_python_blocks_run(exporting, home, already_run, monkeypatch, capsys)
    assert "gpt2" in type(AutoModelForCausalLM.from_pretrained(home / "runs" / "stock-gpt2")).__module__
