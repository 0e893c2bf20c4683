"""Test the evaluation recipe as a user runs it: its files, its comparisons, and one clear line for invalid input."""

import json
from functools import partial

import pytest
from bad_input import fails, snapshot
from evaluated import evaluate_into, json_lines, save_parts
from stories import SUN as STORY
from tiny import tiny_gpt2, tiny_model
from transformers import GPT2Config, GPT2ForSequenceClassification

from scratch_gpt import ScratchGPTForSequenceClassification
from scratch_gpt.runs.evaluation_file import RESERVED, Measured, read_evaluation, record_measured
from scratch_gpt.tokenization.training import train_tokenizer
from scratch_gpt.utils.html import page_text
from scratch_gpt_training import evaluate
from scratch_gpt_training.support import command_line
from scratch_gpt_training.support.evaluation import measurements as measuring


ROWS = [
    {"instruction": "Say sun.", "input": "", "output": "sun"},
    {"instruction": "Say it", "input": "<script>", "output": "<b>&"},
    {"instruction": "Say nothing.", "input": "", "output": " "},
]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Make two models and a file of each kind."""
    folder = tmp_path_factory.mktemp("home")
    tokenizer = train_tokenizer([STORY], vocab_size=300)
    for name, make in (("ours", tiny_model), ("stock", tiny_gpt2)):
        save_parts(folder / name, make(vocab_size=len(tokenizer)), tokenizer)
    classifier = tiny_model(ScratchGPTForSequenceClassification, vocab_size=len(tokenizer), num_labels=3)
    several = tiny_model(
        ScratchGPTForSequenceClassification,
        vocab_size=len(tokenizer),
        num_labels=3,
        problem_type="multi_label_classification",
    )
    sizes = {"vocab_size": len(tokenizer), "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
    stock = GPT2ForSequenceClassification(GPT2Config(**sizes, num_labels=3, pad_token_id=0))
    for name, model in (("classifier", classifier), ("several", several), ("stock-classifier", stock)):
        save_parts(folder / name, model, tokenizer)
    labels = [("The sun", "LABEL_0"), ("on the sea, and", "LABEL_2"), ("sea", "LABEL_0"), ("moves", "LABEL_1")]
    labels.append(("you on every day", "LABEL_2"))
    lines = "".join(f'"{text}",{label},x\n' for text, label in labels)
    (folder / "labels.csv").write_text(f"text,label,odd\n{lines}")
    (folder / "bare.tsv").write_text("".join(f"{label}\t{text}\n" for text, label in labels))
    (folder / "classifier-adapter").mkdir()
    (folder / "classifier-adapter" / "adapter_config.json").write_text(json.dumps({"task_type": "SEQ_CLS"}))
    (folder / "story.txt").write_text(STORY)
    (folder / "asked.json").write_text(json.dumps(ROWS))
    (folder / "choices.jsonl").write_text(
        json_lines([{"query": "The sun", "choices": ["shines", "sea"], "gold": 0}] * 3)
    )
    (folder / "words.jsonl").write_text(json_lines([{"text": "The sun shines"}]))
    return folder


@pytest.fixture
def run(home, tmp_path, monkeypatch):
    """Run the recipe with a new output folder; return evaluation.json."""
    monkeypatch.chdir(home)
    return partial(evaluate_into, tmp_path / "out")


def test_one_run_takes_all_requested_measurements_and_the_next_adds_to_them(run, tmp_path):
    content = run("ours", "--dataset", "story.txt", "--stride", 32, "--multiple-choice", "choices.jsonl")
    assert set(content) == {"format_version", "protocol", "results", "tables"}
    assert set(content["results"]) == {"story", "choices"} and set(content["results"]["choices"]) == {
        "acc",
        "acc_norm",
    }
    protocol = content["protocol"]["story"]
    assert content["protocol"]["model"] == "ours" and protocol["asked"] == protocol["tokens"] - 1
    assert (protocol["stride"], protocol["max_length"], protocol["bytes"]) == (32, 64, len(STORY))
    later = run("--model", "ours", "--last-word", "words.jsonl")
    assert later["results"]["story"] == content["results"]["story"] and "words" in later["results"]


def test_a_stock_folder_and_every_batch_size_give_the_same_loss(run):
    first = run("stock", "--dataset", "story.txt", "--batch-size", 1)["results"]["story"]
    again = run("stock", "--dataset", "story.txt", "--batch-size", 3)["results"]["story"]
    assert again == pytest.approx(first, rel=1e-6)
    joined = run("stock", "--dataset", "story.txt", "--joiner", "\\n\\n")["protocol"]["story"]
    assert joined["joiner"] == "\\n\\n" and joined["tokens"] == joined["asked"] + 1


def test_answers_are_scored_over_seeds_and_written_to_a_page(run, tmp_path):
    content = run("ours", "--questions", "asked.json", "--temperature", 1, "--seeds", 2, "--max-new-tokens", 6)
    assert set(content["results"]["asked"]["f1"]) == {"mean", "std", "n"}
    assert content["protocol"]["asked"]["rows"] == 2 and content["protocol"]["asked"]["empty_rows"] == 1
    lines = [json.loads(line) for line in (tmp_path / "out" / "asked-answers.jsonl").read_text().splitlines()]
    assert [line["reference"] for line in lines] == ["sun", "<b>&"] and set(lines[0]["answers"]) == {
        "seed 0",
        "seed 1",
    }
    page = (tmp_path / "out" / "asked.html").read_text()
    assert "&lt;b&gt;&amp;" in page and "&lt;script&gt;" in page and page.count("<article") == 2
    greedy = run("ours", "--questions", "asked.json", "--max-new-tokens", 6)["results"]["asked"]
    assert set(greedy) == {"exact_match", "f1"} and isinstance(greedy["f1"], float)


def test_a_judge_scores_and_compares_and_its_replies_are_saved(run, server, tmp_path):
    server.reply = lambda prompt: "1" if "compare" in prompt.splitlines()[0] else "40"
    words = ["ours", "--questions", "asked.json", "--max-new-tokens", 4, "--judge-url", server.judge().url]
    content = run(*words, "--judge-model", "wise", "--judge-repeats", 2, "--compare", "stock")
    judged, compared = content["results"]["asked/judge"], content["results"]["asked/compare"]
    assert judged == {"score": {"mean": 40.0, "std": 0.0, "n": 2}} and compared["bradley_terry"] == pytest.approx(0)
    (pair,) = content["tables"]["asked/compare"]["pairs"]
    assert {pair["a"], pair["b"]} == {"ours", "stock"} and pair["n"] == 2 and pair["first_place"] == 1
    assert len((tmp_path / "out" / "asked-judge.jsonl").read_text().splitlines()) == 4
    assert len((tmp_path / "out" / "asked-compared-judge.jsonl").read_text().splitlines()) == 4
    assert "stock" in (tmp_path / "out" / "asked-compared.html").read_text()


def test_a_judge_and_the_pages_get_the_conversation_that_the_model_got(run, home, server, tmp_path):
    code = "\n\ndef f():\n    return  1\n"
    talk = [("system", "Be  brief."), ("user", "Say\n\tsun."), ("assistant", "sun"), ("user", code)]
    talk = [{"role": role, "content": text} for role, text in [*talk, ("assistant", "1")]]
    rows = [{"prompt": code, "completion": "1"}, {"messages": talk}]
    (home / "talks.json").write_text(json.dumps(rows))
    server.reply = lambda prompt: "1"
    words = ["ours", "--questions", "talks.json", "--max-new-tokens", 2, "--judge-url", server.judge().url]
    run(*words, "--judge-model", "wise", "--judge-repeats", 1, "--compare", "stock")
    shown = [code, f"[system]\nBe  brief.\n\n[user]\nSay\n\tsun.\n\n[assistant]\nsun\n\n[user]\n{code}"]
    asked = [body["messages"][0]["content"] for _, _, body in server.seen]
    assert len(asked) == 6  # each question is scored once and compared in two orders
    for n, row in enumerate((0, 1, 0, 0, 1, 1)):
        assert f"<instruction>\n{shown[row]}\n</instruction>" in asked[n]
    lines = (tmp_path / "out" / "talks-answers.jsonl").read_text().splitlines()
    assert [json.loads(line)["prompt"] for line in lines] == shown
    for name in ("talks", "talks-compared"):
        page = (tmp_path / "out" / f"{name}.html").read_text()
        assert all(f"<pre>\n{page_text(text)}</pre>" in page for text in shown)  # HTML drops the first line break


def test_a_judge_reads_the_answers_of_the_first_seed_only(run, server, monkeypatch):
    server.reply = lambda prompt: "1" if "compare" in prompt.splitlines()[0] else "40"
    drawn, generate_answers = [], measuring.generate_answers

    def generate(*args, seed, **options):
        drawn.append(seed)
        return generate_answers(*args, seed=seed, **options)

    monkeypatch.setattr(measuring, "generate_answers", generate)
    words = ["ours", "--questions", "asked.json", "--temperature", 1, "--seeds", 2, "--max-new-tokens", 2]
    words += ["--judge-url", server.judge().url, "--judge-model", "wise", "--judge-repeats", 1, "--compare", "stock"]
    protocol = run(*words)["protocol"]
    assert drawn == [0, 1, 0] and protocol["asked"]["seeds"] == [0, 1]
    assert protocol["asked/judge"]["seeds"] == protocol["asked/compare"]["seeds"] == [0]


def test_without_its_judge_the_other_measurements_are_recorded(run, home, server, capsys, tmp_path):
    words = [
        "ours",
        "--questions",
        "asked.json",
        "--dataset",
        "story.txt",
        "--max-new-tokens",
        4,
        "--judge-model",
        "x",
    ]
    words += ["--output-dir", tmp_path / "out", "--device", "cpu", "--judge-url"]
    fails([*words, "http://127.0.0.1:9/v1"], "cannot be reached.*Earlier results are in", capsys, evaluate.main)
    results = json.loads((tmp_path / "out" / "evaluation.json").read_text())["results"]
    assert set(results) == {"story", "asked"}
    server.codes = [200, 403]
    fails([*words, server.judge().url], "answers 403", capsys, evaluate.main)
    assert len((tmp_path / "out" / "asked-judge.jsonl").read_text().splitlines()) == 1


def test_results_of_another_model_and_of_training_are_not_touched(run, home, tmp_path, capsys):
    run("ours", "--dataset", "story.txt")
    before = snapshot(tmp_path / "out")
    words = ["--dataset", "story.txt", "--output-dir", tmp_path / "out"]
    fails(["stock", *words], "belongs to ours, not stock", capsys, evaluate.main)
    assert snapshot(tmp_path / "out") == before
    file = tmp_path / "run" / "evaluation.json"
    file.parent.mkdir()
    file.write_text(json.dumps({"protocol": {"model": "model/"}, "results": {"test": {"loss": 1.0}}, "tables": {}}))
    model = str(tmp_path / "run" / "model")
    with pytest.raises(ValueError, match="already has results of a split test"):
        record_measured(file, model, "test", Measured({"kind": "text"}, {"loss": 2.0}))
    record_measured(file, model, "other", Measured({"kind": "text"}, {"loss": float("nan")}))
    assert json.loads(file.read_text())["results"] == {"test": {"loss": 1.0}, "other": {"loss": None}}
    file.write_text("no JSON")
    with pytest.raises(ValueError, match="is not a valid evaluation file"):
        record_measured(file, model, "other", Measured({"kind": "text"}, {}))
    file.write_text(json.dumps({"protocol": {"model": {"kind": "text"}}, "results": {}, "tables": {}}))
    with pytest.raises(ValueError, match="is not a valid evaluation file"):
        read_evaluation(file, model)


def test_figures_of_two_revisions_of_a_model_are_not_mixed(run, home, tmp_path, capsys):
    words = ["ours", "--last-word", "words.jsonl"]
    assert run(*words, "--model-revision", "v1")["protocol"]["model_revision"] == "v1"
    out = ["--output-dir", tmp_path / "out"]
    fails([*words, *out], "belongs to ours at revision v1, not ours. Give another", capsys, evaluate.main)
    fails([*words, *out, "--model-revision", "v2"], "not ours at revision v2", capsys, evaluate.main)
    run(*words, "--model-revision", "v1")
    assert "model_revision" not in read_evaluation(tmp_path / "none.json", "ours")["protocol"]


def test_config_split_and_revision_apply_to_every_set(run, monkeypatch):
    asked, open_rows = [], measuring.open_rows
    monkeypatch.setattr(measuring, "open_rows", lambda where, *rest: asked.append(where) or open_rows(where, *rest))
    words = ["--multiple-choice", "choices.jsonl", "--last-word", "words.jsonl", "--questions", "asked.json"]
    words += ["--dataset-config", "c", "--dataset-split", "test", "--dataset-revision", "r"]
    protocol = run("ours", *words, "--max-new-tokens", 2)["protocol"]
    assert len(asked) == 3 and {where[1:4] for where in asked} == {("c", "test", "r")}
    assert [protocol[name]["source"]["split"] for name in ("choices", "words", "asked")] == ["test"] * 3


@pytest.mark.parametrize("name", RESERVED)
def test_a_set_name_must_not_clash_with_names_in_evaluation_json(name, monkeypatch, home, tmp_path, capsys):
    monkeypatch.chdir(home)
    part, _, of_drift = name.partition("/")
    words = ["--dataset", f"{of_drift}.txt", "--base", "stock"] if of_drift else ["--questions", f"{part}.json"]
    fails(["ours", *words, "--output-dir", tmp_path], f"has the name '{name}'", capsys, evaluate.main)


BAD = {
    "--dataset story.txt": "No model given",
    "ours": "Nothing to measure",
    "ours --dataset absent.txt": "no such file",
    "absent/x/y --dataset story.txt": "no such folder",
    "ours --dataset story.txt --stride 65": "leaves gaps",
    "ours --dataset story.txt --max-length 65": "more than the context",
    "ours --dataset story.txt --multiple-choice story.jsonl": "Two sets have the name 'story'",
    "ours --questions choices.jsonl": "no columns of one of the forms messages; .*, only query, choices, gold",
    "ours --questions asked.json --prompt-format tokenizer": "no chat template",
    "ours --questions asked.json --judge-model x": "needs both --judge-url",
    "ours --questions asked.json --compare stock": "--compare needs a judge",
    "ours --questions asked.json --judge-model x --judge-url http://a:b@c/v1": "no password",
    "ours --questions asked.json --judge-model x --judge-url http://c/v1 --compare ours ./ours/": "names only MODEL",
    "classifier --dataset story.txt": "story.txt has no column 'label', only text",
    "classifier --dataset labels.csv --label-column odd": "Label 'x' was not seen in training; known are LABEL_0",
    "classifier --secrets words.jsonl": "classifier is a classifier, and --secrets only works with a language model",
    "classifier --dataset labels.csv --stride 8": "classifier is a classifier, and --stride only works with a",
    "classifier --tuning-data words.jsonl": "--tuning-data has no effect: it needs a data set to measure",
    "ours --dataset story.txt --label-column kind": "ours is a language model, and --label-column only works with a",
    "ours --base classifier": "classifier is a classifier",
    "ours --dataset story.txt --judge-model x --judge-url http://c/v1": "Give --questions",
    "ours --multiple-choice words.jsonl": "no columns 'query' and 'choices' and 'gold', only text",
    "ours --last-word choices.jsonl": "no column 'text', only query",
    "ours stock --dataset story.txt": "Unexpected word",
}


@pytest.mark.parametrize("line", BAD)
def test_impossible_options_are_one_line_errors(line, home, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(home)
    fails([*line.split(), "--output-dir", tmp_path / "out", "--device", "cpu"], BAD[line], capsys, evaluate.main)
    assert not (tmp_path / "out" / "evaluation.json").exists()


def test_a_classifiers_adapter_is_a_classifier(home):
    assert measuring.is_classifier(str(home / "classifier-adapter"), None)


@pytest.mark.parametrize("model", ["classifier", "stock-classifier", "several"])
def test_a_classifier_is_scored_on_labeled_rows(model, run, tmp_path):
    content = run(model, "--dataset", "labels.csv", "--batch-size", 2)
    protocol, results = content["protocol"]["labels"], content["results"]["labels"]
    assert (protocol["kind"], protocol["rows"], protocol["source"]["files"][0]["name"]) == ("labels", 5, "labels.csv")
    assert {"loss", "accuracy", "macro_f1", "calibration_error"} == {*results}
    lines = (tmp_path / "out" / "labels-predictions.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    wanted = ["LABEL_0", "LABEL_2", "LABEL_0", "LABEL_1", "LABEL_2"]
    assert [row["label"] for row in rows] == ([[name] for name in wanted] if model == "several" else wanted)
    assert results["accuracy"] == pytest.approx(sum(row["label"] == row["predicted"] for row in rows) / 5)
    assert content["tables"]["labels"]["labels"] == ["LABEL_0", "LABEL_1", "LABEL_2"]
    assert run(model, "--dataset", "labels.csv", "--batch-size", 5)["results"]["labels"] == pytest.approx(results)


def test_labeled_rows_without_a_header_and_with_other_names_of_columns(run):
    words = ["--column-names", "kind,body", "--text-column", "body", "--label-column", "kind"]
    found = run("classifier", "--dataset", "bare.tsv", *words)
    assert found["results"]["bare"] == pytest.approx(run("classifier", "--dataset", "labels.csv")["results"]["labels"])


def test_lists_are_lists_in_yaml(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("model: ours\nmultiple_choice: [a.jsonl, b.jsonl]\nstride: 3\n")
    run = command_line.parse(evaluate.EvaluateRun, ["--config", str(file)], positional=("model",))
    assert (run.model, run.multiple_choice, run.stride) == ("ours", ["a.jsonl", "b.jsonl"], 3)
    assert run == command_line.parse(
        evaluate.EvaluateRun,
        ["ours", "--stride", "3", "--multiple-choice", "a.jsonl", "b.jsonl"],
        positional=("model",),
    )
    file.write_text("multiple_choice: a.jsonl\n")
    with pytest.raises(ValueError, match="must be a list"):
        command_line.parse(evaluate.EvaluateRun, ["--config", str(file)])
