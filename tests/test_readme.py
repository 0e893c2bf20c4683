"""The README keeps its word: every code block runs, and every figure is the one in the file it names."""

import json
import re
import shlex
import shutil
from pathlib import Path

import classify
import generate
import instruct
import prepare
import pretrain
import pytest
import train_tokenizer
from accelerate.state import AcceleratorState, PartialState
from tiny import tiny_gpt2
from transformers import AutoModelForCausalLM

from scratch_gpt.tokenizer_training import train_tokenizer as make_tokenizer


REPO = Path(__file__).resolve().parent.parent
README = (REPO / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
PYTHON = [text for language, text in BLOCKS if language == "python" and "from datatrove" not in text]  # its own test
SHELL = [
    line
    for language, text in BLOCKS
    if language == "bash"
    for line in text.replace("\\\n", " ").splitlines()
    if line.strip() and not line.startswith("#")
]
# What makes a documented run small: its own arguments stand first, these win.
SMALLER = ["--max-steps", "1", "--epochs", "1", "--batch-size", "2", "--eval-batches", "1", "--max-length", "32"]
SMALLER += ["--device", "cpu", "--log-every", "1"]
NEW_MODEL = ["--preset", "tiny", "--tokenizer", "train", "--vocab-size", "300"]
TEXT = "The sun shines on the sea, and every effort moves you on. " * 60


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder in which the README's commands find what they name: texts, GPT-2, and a run of `make train`."""
    folder = tmp_path_factory.mktemp("home")
    for name in ("my.txt", "the-verdict.txt", "notes/a.md", "notes/b.md"):
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
    (folder / "new.txt").write_text("Is it good?\nIs it bad?\n")
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


def test_the_first_screen_has_the_two_commands():
    first = README[: README.index("## ")]
    assert "make train" in first and "make test" in first
    targets = re.findall(r"^(\w+):", (REPO / "Makefile").read_text(), flags=re.MULTILINE)
    assert set(re.findall(r"`make (\w+)`", README)) <= set(targets)


@pytest.mark.parametrize("line", SHELL)
def test_shell_lines_run(line, home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    words = shlex.split(line.replace("openai-community/gpt2", str(home / "gpt2")))
    if words[0] in ("python", "accelerate") and any(word.startswith("training/") for word in words):
        script = next(n for n, word in enumerate(words) if word.startswith("training/") and word.endswith(".py"))
        if "--config_file" in words[:script]:
            assert Path(words[words.index("--config_file") + 1]).exists()
        scripts = {"pretrain": pretrain, "generate": generate, "prepare": prepare, "train_tokenizer": train_tokenizer}
        scripts |= {"classify": classify, "instruct": instruct}
        module, arguments = scripts[Path(words[script]).stem], words[script + 1 :]
        if module is generate:
            run_recipe(module, [*arguments, "--max-new-tokens", "3"])
            assert capsys.readouterr().out.startswith("The")
            return
        if module is prepare:
            run_recipe(module, [*arguments, "--vocab-size", "300", "--max-length", "16"])
            assert "Written:" in capsys.readouterr().out
            return
        if module is classify:
            if "--predict" in arguments:
                run_recipe(module, arguments[: arguments.index(">")])
                assert capsys.readouterr().out.count("probabilities") == 2
                return
            if "--dataset" not in arguments:  # the one on the Hub
                arguments = [
                    *arguments,
                    "--dataset",
                    "reviews.csv",
                    "--text-column",
                    "review",
                    "--label-column",
                    "stars",
                ]
            if "--model" not in arguments:
                arguments = [*arguments, "--model", "gpt2"]
            run_recipe(module, [*arguments, *SMALLER, "--seeds", "1", "--overwrite", "true"])
            assert "Written:" in capsys.readouterr().out
            return
        if module is instruct:
            given = [] if "my.json" in arguments else ["--dataset", "my.json", "--model", "gpt2"]
            small = ["--prompt-format", "plain", "--answers", "2", "--max-new-tokens", "3", "--overwrite", "true"]
            run_recipe(module, [*arguments, *given, *SMALLER, *small])
            assert "Written:" in capsys.readouterr().out or "--preview" in arguments
            return
        if module is train_tokenizer:
            run_recipe(module, [*arguments, "--dataset", "my.txt", "--vocab-size", "300", "--compare", "none"])
            assert "Next:" in capsys.readouterr().out
            return
        if "--expect-processes" in arguments:  # tests/test_recipes.py starts the two
            arguments = arguments[: arguments.index("--expect-processes")]
        new = [] if "--model" in arguments else NEW_MODEL
        if "--tokenizer" in arguments or "data/notes" in arguments:  # which bring what a new model needs
            new = ["--preset", "tiny"]
        smaller = SMALLER if "--resume" not in arguments else [*SMALLER, "--max-steps", "2"]
        fresh = [] if "--resume" in arguments else ["--overwrite", "true"]
        if arguments[-2:] == ["--max-steps", "0"] or "0" in arguments[-4:]:
            smaller = [*smaller, "--max-steps", "0"]
        if "data/notes" in arguments:  # prepared with another max_length
            smaller = [word for word in smaller if word not in ("--max-length", "32")]
        run_recipe(module, [*arguments, *smaller, *new, *fresh])
        assert "Written:" in capsys.readouterr().out
    else:  # set-up, which CI does by the same lines: what it names has to be there
        assert words[0] in ("python", "source", "pip", "make"), line
        for word in words:
            if word.startswith(".ci/"):
                assert (REPO / word).exists(), word


@pytest.mark.parametrize("number", range(len(PYTHON)))
def test_python_blocks_run(number, home, monkeypatch):
    monkeypatch.chdir(home)
    names = {}
    exec(PYTHON[number].replace("openai-community/gpt2", str(home / "gpt2")), names)
    assert any(
        type(value).__name__.endswith(("LMHeadModel", "Pipeline")) or hasattr(value, "generate")
        for value in names.values()
    )


def figures(name: str):
    return json.loads((REPO / "tests" / "benchmarks" / name).read_text())


def test_figures_are_those_of_the_files_they_name():
    main_job, loading = figures("main_job.json"), figures("loading.json")
    assert f"{main_job['validation']['bits_per_byte']:.2f} bits per byte" in README
    assert f"{main_job['seconds']:.0f} seconds" in README
    for name, value in main_job["validation"].items():
        assert f"eval_{name} {value:.4f}" in README
    for name, value in main_job["before"].items():
        assert f"eval_{name} {value:.4f}" in README
    assert f"{main_job['parameters']:,} parameters" in README
    for name in ("load_seconds", "load_mib"):
        assert f"{loading['figures'][name]['ratio']:.2f} times" in README


def test_figures_of_preparing_data_are_those_of_the_files_they_name():
    made, tokenizers, cleaning = figures("prepare.json"), figures("tokenizers.json"), figures("cleaning.json")
    speed, packing = made["throughput"], made["packing"]
    assert f"{speed['medians']['ours']:.2f} MB/s, {speed['ratio']:.2f} times run_clm's" in README
    small, large = made["memory"]["runs"]
    for name, unit, scale, digits in (("peak_anonymous_bytes", "GB", 1e9, 2), ("first_batch_seconds", "s", 1, 2)):
        before, after = (f"{run[name] / scale:.{digits}f} {unit}" for run in (small, large))
        assert f"{before} for 50 MB, {after} for 500 MB" in README
    assert made["memory"]["ratio"] <= 1.1 and large["first_batch_seconds"] < 2
    assert f"{packing['ratio']:.2f} times the asked tokens a second" in README
    assert f"{tokenizers['memory']['ratio']:.2f} times the memory of 50 MB" in README
    for name, corpus in tokenizers["compression"].items():
        values = " | ".join(f"{value:.2f}" for value in corpus["bytes_per_token"].values())
        assert f"| {name} | {values} |" in README
    assert tokenizers["round_trips"]["failures"] == 0
    assert (cleaning["books"]["pairs_found"], cleaning["books"]["pairs_wrong"]) == (10, 0)
    for kind in ("instructions", "text"):
        for recall in cleaning["poisoning"][kind]["recall"].values():
            assert recall["neighbours"] == 1 and recall["cosine_low"] <= 0.15 and recall["loss_high"] == 0


def test_figures_of_lora_are_those_of_the_file():
    lora = figures("lora.json")
    ratios = lora["lora_over_full"]
    assert f"LoRA trains {100 * lora['trained_share']:.2f} % of the" in README
    assert f"{ratios['step_seconds']:.2f} times the time of full fine-tuning" in README
    assert f"{ratios['peak_bytes']:.2f} times its peak memory" in README


def test_what_was_tried_and_lost_is_what_the_files_say():
    chaos, cost = figures("chaos.json"), figures("checkpoints.json")
    section = README[README.index("## What happens when it crashes") : README.index("## The path of a token")]
    for row in chaos.values():
        assert row["lost"] == 0
        assert f"| {row['tried']} | {row['recovered']} | {row['refused']} | 0 |" in section
    share = cost["share_at_one_a_minute"]
    assert f"{cost['bytes'] / 1e9:.2f} GB" in section
    assert f"{100 * share['at once']:.1f} % of the run" in section
    assert f"{100 * share['in the background']:.1f} % with `--async-save true`" in section


def test_the_exported_folder_of_the_readme_is_stock(home):
    assert "gpt2" in type(AutoModelForCausalLM.from_pretrained(home / "runs" / "stock-gpt2")).__module__
