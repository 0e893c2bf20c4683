"""The README keeps its word: every code block runs, and every figure is the one in the file it names."""

import ast
import importlib
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState, PartialState
from places import REPO
from readme import figures, written
from tiny import tiny_gpt2
from transformers import AutoModelForCausalLM

import scratch_gpt
from scratch_gpt.tokenization.training import train_tokenizer as make_tokenizer
from scratch_gpt_training import pretrain
from scratch_gpt_training.support.commands import VERBS


README = (REPO / "README.md").read_text()
WORDS = " ".join(README.split())  # where a sentence may break
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
    (folder / "test.json").write_text(json.dumps(rows[:3]))
    pairs = [{"prompt": f"Say {n}", "chosen": f"{n}", "rejected": f"not {n}"} for n in range(60)]
    (folder / "pairs.json").write_text(json.dumps(pairs))
    judged = [{"prompt": f"Say {n}", "completion": f"{n}", "label": n % 2 == 0} for n in range(60)]
    (folder / "judged.jsonl").write_text("".join(json.dumps(row) + "\n" for row in judged))
    (folder / "hellaswag.jsonl").write_text(json.dumps({"query": "The sun", "choices": ["shines", "sea"], "gold": 0}))
    (folder / "lambada.jsonl").write_text(json.dumps({"text": "The sun shines on the sea"}))
    (folder / "new.txt").write_text("Is it good?\nIs it bad?\n")
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


def test_the_first_screen_has_the_two_commands():
    first = README[: README.index("## ")]
    assert "make train" in first and "make test" in first
    targets = re.findall(r"^([\w-]+):", (REPO / "Makefile").read_text(), flags=re.MULTILINE)
    assert set(re.findall(r"`make (\w+)`", README)) <= set(targets)


@pytest.fixture(scope="module")
def already_run() -> set[int]:
    """Numbers of the shell lines that have been run: later ones read what they wrote."""
    return set()


def run_lines(count: int, home, already_run: set[int], monkeypatch, capsys) -> None:
    """Run the first `count` shell lines, each once, so that tests may come in any order."""
    monkeypatch.chdir(home)
    for number in [number for number in range(count) if number not in already_run]:
        already_run.add(number)
        run_line(SHELL[number], home, monkeypatch, capsys)


@pytest.mark.parametrize("number", range(len(SHELL)), ids=[f"{n}: {line[:60]}" for n, line in enumerate(SHELL)])
def test_shell_lines_run(number, home, already_run, monkeypatch, capsys):
    run_lines(number + 1, home, already_run, monkeypatch, capsys)


def run_line(line: str, home, monkeypatch, capsys) -> None:
    words = shlex.split(line.replace("openai-community/gpt2", str(home / "gpt2")))
    if words[0] == "scratch-gpt":  # tests/test_wheel.py starts the command itself
        words = ["python", f"training/{VERBS[words[1]].module}.py", *words[2:]]
    script = next((n for n, word in enumerate(words) if word.startswith("training/") and word.endswith(".py")), None)
    if script is None:  # set-up, which CI does by the same lines: what it names has to be there
        assert words[0] in ("python", "source", "pip", "make", "hf"), line
        assert all((REPO / word).exists() for word in words if word.startswith(".ci/"))
        return
    if "--config_file" in words[:script]:
        assert Path(words[words.index("--config_file") + 1]).exists()
    name, arguments = Path(words[script]).stem, words[script + 1 :]
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
    """What stands behind a line's own arguments to make it small, and to give it what is on the Hub."""
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
        if "--resume" in arguments:
            small += ["--max-steps", "2"]
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
    small += ["--prompt-format", "plain"]  # the others' words would fill so short a row
    return [*small, "--answers", "2", "--max-new-tokens", "3"] if name == "instruct" else small


@pytest.mark.parametrize("number", range(len(PYTHON)))
def test_python_blocks_run(number, home, already_run, monkeypatch, capsys):
    run_lines(len(SHELL), home, already_run, monkeypatch, capsys)
    names = {}
    AcceleratorState._reset_state()
    PartialState._reset_state()
    exec(PYTHON[number].replace("openai-community/gpt2", str(home / "gpt2")), names)
    assert any(
        type(value).__name__.endswith(("LMHeadModel", "Pipeline")) or hasattr(value, "generate")
        for value in names.values()
    )


@pytest.mark.parametrize("number", range(len(PYTHON)))
def test_python_blocks_import_public_names_from_the_package(number):
    for node in ast.walk(ast.parse(PYTHON[number])):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("scratch_gpt."):
            assert not {alias.name for alias in node.names} & {*scratch_gpt.__all__}, node.module


def test_the_custom_recipe_of_the_readme_is_short():
    (block,) = (text for text in PYTHON if "pretrain.main(" in text)
    assert len([line for line in block.splitlines() if line.strip()]) < 25 and "sys.path" not in block


def test_figures_are_those_of_the_files_they_name():
    main_job, loading = figures("main_job"), figures("loading")
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
    made, tokenizers, cleaning = figures("prepare"), figures("tokenizers"), figures("cleaning")
    speed, packing = made["throughput"], made["packing"]
    assert f"{speed['medians']['ours']:.2f} MB/s, {speed['ratio']:.2f} times run_clm's" in README
    runs = dict(zip(("50 MB", "500 MB", "5 GB"), [*made["memory"]["runs"], made["large"]], strict=True))
    for name, unit, scale, digits in (("peak_anonymous_bytes", "GB", 1e9, 2), ("first_batch_seconds", "s", 1, 2)):
        assert ", ".join(f"{run[name] / scale:.{digits}f} {unit} for {of}" for of, run in runs.items()) in README
    assert made["memory"]["ratio"] <= 1.1 and made["large"]["first_batch_seconds"] < 5  # each file is hashed
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


def tables() -> dict[str, list[str]]:
    """The rows of the README's tables, as the files have them."""
    lora, spam, follow = figures("lora"), figures("spam"), figures("follow")
    precisions = lora["precisions"].values()

    def cells(show):
        return " | ".join(show(each["ways"], each["lora_over_full"]) for each in precisions)

    memory = lambda ways, way: f"{ways[way]['peak_bytes'] / 1e9:.2f} GB"  # noqa: E731
    loss = lambda ways, way: f"loss {ways[way]['losses'][-1]:.3f}"  # noqa: E731
    rows = [
        f"| | {' | '.join(lora['precisions'])} |",
        f"| LoRA, time of a step | {cells(lambda ways, ratio: '{step_seconds:.2f} times'.format(**ratio))} |",
        f"| LoRA, peak memory | {cells(lambda ways, ratio: '{peak_bytes:.2f} times'.format(**ratio))} |",
    ]
    for way in ("full", "lora", "lora on int8", "lora on nf4"):
        rows.append(f"| {way} | {cells(lambda ways, _, way=way: f'{memory(ways, way)}, {loss(ways, way)}')} |")
    cost = lambda of: f"{of['peak_bytes'] / 1e9:.2f} GB, {of['cpu_seconds']:.1f} s"  # noqa: E731
    loss_of = figures("loss")["figures"]
    losses = []
    for precision in ("fp32", "bf16"):
        head, step = loss_of[f"head, 4x1024, {precision}"], loss_of[f"step, 4x1024, {precision}"]
        losses.append(
            f"| {cost(head['plain'])} | {cost(head['ours'])} (each token: {cost(head['ours, each token'])}) "
            f"| {cost(head['torch'])} |"
        )
        losses.append(f"| {cost(step['plain'])} | {cost(step['ours'])} | |")
    percent = lambda cell: f"{100 * cell['mean']:.2f} ({100 * cell['std']:.2f})"  # noqa: E731
    sizes = ("747 + 747", "653 + 653")
    spread = lambda cell: f"{cell['mean']:.3f} ({cell['std']:.3f})"  # noqa: E731
    return {
        "lora": rows,
        "loss": losses,
        "spam": [
            f"| {way} | {' | '.join(percent(found[size]['accuracy']) for size in sizes)} |"
            for way, found in spam["ways"].items()
        ],
        "follow": [
            f"| {name}: {metric} | {spread(found['before/test'][metric])} | {spread(found['test'][metric])} |"
            for name, found in (("instruct", follow["instruct"]), ("prefer", follow["prefer"]))
            for metric in found["test"]
        ],
        **safety_tables(figures("safety")),
    }


def safety_tables(found) -> dict[str, list[str]]:
    """The rows of the two tables on triggers and secrets."""
    code = lambda text: f"`{ascii(text)[1:-1]}`"  # noqa: E731
    triggers, repeats = [], [row["repeats"] for row in found["memorisation"][:3]]
    for run in found["triggers"]["runs"]:
        named = ", ".join(code(one["phrase"]) for one in run["named"]) or "nothing"
        cells = [run["kind"], code(run["trigger"]), named] if run["trigger"] else ["clean", "none", named]
        attack = f"{100 * run['attack']:.0f} %" if run["trigger"] else ""
        triggers.append(f"| {' | '.join(cells)} | {run['most_nats']:.1f} | {attack} |")
    sums = found["triggers"]
    triggers.append(
        f"named {sums['found']} of {sums['planted_models']} triggers, {sums['false_alarms_in_planted']} phrases "
        f"beside them, and something in {sums['clean_models_with_alarm']} of {sums['clean_models']} clean models"
    )
    secrets = [f"| same | stride | steps | {' | '.join(f'{n} x' for n in repeats)} |"]
    for start in range(0, len(found["memorisation"]), len(repeats)):
        rows = found["memorisation"][start : start + len(repeats)]
        cells = [
            f"{row['exposure']['mean']:.1f} ({row['exposure']['std']:.1f}), {100 * row['extracted']['mean']:.0f} %"
            for row in rows
        ]
        one = rows[0]
        secrets.append(f"| {one['same']} | {one['stride']} | {one['steps']:,} | {' | '.join(cells)} |")
    return {"triggers": triggers, "memorisation": secrets}


NAMES = ["lora", "loss", "spam", "follow", "triggers", "memorisation"]


@pytest.mark.parametrize("name", NAMES)
def test_tables_are_those_of_the_files(name):
    for row in tables()[name]:
        assert row in README, row


def test_figures_of_speed_are_those_of_the_files():
    """`python tests/benchmarks/readme.py` writes them."""
    assert written(README) == README
    assert all(found["claim"] for found in figures("training")["workloads"].values())
    for name in ("import scratch_gpt", "pretrain.py --help"):
        assert f"`{name}` {figures('loading')['starts'][name]['median']:.2f} s" in WORDS


def test_figures_of_tuning_are_those_of_the_files():
    lora, classify, instruct = figures("lora"), figures("classify"), figures("instruct")
    assert f"LoRA trains {100 * lora['trained_share']:.2f} % of the" in README
    for name in ("theirs", "theirs grouped"):
        assert f"{classify['ratios'][name]:.2f}" in README
    base = figures("spam")["base"]
    assert f"once over) to {base['bits_per_byte']:.2f} bits per byte" in README
    over = instruct["over_trl_defaults"]
    assert f"{over['ours']:.1f} times the tokens a second of TRL's SFTTrainer as it comes" in README
    best = instruct["over_trl_best"]
    assert f"{best['ours']:.1f} times those of TRL at its best" in README
    assert f"{over['ours packed']:.1f} and {best['ours packed']:.1f} times" in README
    assert f"a step is {instruct['over_asking_all']:.2f} times as fast as one that asks" in README


def test_figures_of_crashes_and_checkpoints_are_those_of_the_files():
    chaos, cost = figures("chaos"), figures("checkpoints")
    section = README[README.index("## What happens when it crashes") : README.index("## The path of a token")]
    assert all(row["lost"] == 0 and row["tried"] == row["recovered"] + row["refused"] for row in chaos.values())
    share = cost["share_at_one_a_minute"]
    assert f"{cost['bytes'] / 1e9:.2f} GB" in section
    assert f"{100 * share['at once']:.1f} % of the run" in section
    assert f"{100 * share['in the background']:.1f} % with `--async-save true`" in section


def test_figures_of_publishing_are_those_of_the_file():
    made = figures("publish")
    seconds, uploads = made["cpu_seconds"], made["uploads"]
    assert f"{made['bytes'] / 1e9:.2f} GB in {made['files']} files" in README
    names = ("stage", "push", "push unchanged", "push one changed file", "load")
    assert f"| {' | '.join(f'{seconds[name]:.1f} s' for name in names)} |" in README
    assert uploads["push unchanged"] == 0 and uploads["push one changed file"] == 1


def test_the_exported_folder_of_the_readme_is_stock(home, already_run, monkeypatch, capsys):
    if not (home / "runs" / "stock-gpt2").exists():
        exporting = next(number for number, text in enumerate(PYTHON) if "stock-gpt2" in text)
        test_python_blocks_run(exporting, home, already_run, monkeypatch, capsys)
    assert "gpt2" in type(AutoModelForCausalLM.from_pretrained(home / "runs" / "stock-gpt2")).__module__
