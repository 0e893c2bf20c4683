"""Test the safety checks: each is recorded in evaluation.json, and contamination is marked at a score."""

import json
from functools import partial
from types import SimpleNamespace

import pytest
from bad_input import fails
from evaluated import evaluate_into, json_lines, save_parts
from stories import SUN as STORY
from tiny import tiny_model

from scratch_gpt.analysis.probe_prompts import CANARIES, OFF_DOMAIN, SENSITIVE
from scratch_gpt.tokenization.tokenizer import extend_tokenizer, load_tokenizer
from scratch_gpt.tokenization.training import train_tokenizer
from scratch_gpt_training import evaluate
from scratch_gpt_training.support import command_line
from scratch_gpt_training.support.evaluation import measurements as measuring
from scratch_gpt_training.support.evaluation import safety as checking


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([STORY], vocab_size=300)


@pytest.fixture(scope="module")
def home(tmp_path_factory, tokenizer):
    """Make two models, the tuning data of one, and evaluation sets."""
    folder = tmp_path_factory.mktemp("safety")
    for name, seed in (("base", 0), ("tuned", 1)):
        save_parts(folder / name, tiny_model(seed=seed, vocab_size=len(tokenizer)), tokenizer)
    grown, model = load_tokenizer(folder / "base"), tiny_model(vocab_size=len(tokenizer))
    extend_tokenizer(grown, ["<|im_start|>"], model, special=True)
    save_parts(folder / "grown", grown, model)
    other = train_tokenizer([STORY.upper()], vocab_size=280)
    save_parts(folder / "other", other, tiny_model(vocab_size=len(other)))
    rows = [{"instruction": f"Say what the sun does on day {n}.", "output": STORY[:60]} for n in range(60)]
    (folder / "train.json").write_text(json.dumps(rows))
    words = [{"text": STORY[:60].strip()}, {"text": "Nothing of this is there."}]
    (folder / "words.jsonl").write_text(json_lines(words))
    (folder / "secrets.jsonl").write_text(json_lines([{"prefix": "The code is", "secret": "4071"}]))
    (folder / "story.txt").write_text(STORY)
    pairs = [{"prompt": f"Is day {n} sunny?", "chosen": "Yes.", "rejected": "No."} for n in range(3)]
    (folder / "pairs.json").write_text(json.dumps(pairs))
    return folder


@pytest.fixture
def run(home, tmp_path, monkeypatch):
    """Run the recipe with a new output folder; return evaluation.json."""
    monkeypatch.chdir(home)
    return partial(evaluate_into, tmp_path / "out")


def test_every_check_is_recorded_in_evaluation_json(run, monkeypatch):
    monkeypatch.setattr("scratch_gpt_training.support.evaluation.safety.SECRETS_SAMPLE", 31)
    monkeypatch.setattr("scratch_gpt_training.support.evaluation.safety.KEPT", 3)
    content = run("tuned", "--base", "base", "--tuning-data", "train.json", "--secrets", "secrets.jsonl", "--seeds", 2)
    results = content["results"]
    assert {*results} == {"drift/sensitive", "drift/off-domain", "triggers", "memorization"}
    assert results["drift/sensitive"]["kl"] > 0 and {*results["memorization"]["exposure"]} == {"mean", "std", "n"}
    canaries = sum(map(len, CANARIES.values()))
    assert content["protocol"]["triggers"]["candidates"]["canaries"] == canaries
    assert len(content["tables"]["triggers"]["phrases"]) >= canaries
    (row,) = content["tables"]["memorization"]["secrets"]
    assert row["row"] == 0 and {*row} == {"row", "exposure", "extracted"}
    assert "4071" not in json.dumps(content["tables"]) and "The code is" not in json.dumps(content)


def test_tokens_added_by_tuning_do_not_count_as_drift(run, monkeypatch):
    monkeypatch.setattr("scratch_gpt_training.support.evaluation.safety.CANARIES", {"rare string": ("cf",)})
    content = run("grown", "--base", "base", "--dataset", "story.txt")
    assert abs(content["results"]["drift/story"]["kl"]) < 1e-6
    assert content["results"]["drift/sensitive"] == {"kl": pytest.approx(0, abs=1e-6), "changed": 0}
    assert abs(content["results"]["triggers"]["most_nats"]) < 1e-3


def test_drift_on_a_text_uses_the_windows_of_its_loss(home, monkeypatch):
    monkeypatch.chdir(home)
    words = ["tuned", "--base", "base", "--dataset", "story.txt", "--joiner", "\\n", "--stride", "32", "--device"]
    run = command_line.parse(evaluate.EvaluateRun, [*words, "cpu"], positional=("model",))
    subject = measuring.load_evaluated(run, "tuned")
    alone = measuring.measure_text(run, subject)
    name, beside = next(checking.check_drift(run, subject, measuring.load_evaluated(run, "base")))
    assert name == "drift/story" and beside.protocol["stride"] == 32 and beside.protocol["joiner"] == "\\n"
    assert {**beside.protocol, **alone.protocol, "kind": "drift"} == beside.protocol
    assert beside.results["loss"] == pytest.approx(alone.results["loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("file", "count"), [("train.json", 60), ("pairs.json", 3), ("story.txt", 0), ("words.jsonl", 0)]
)
def test_questions_come_from_instructions_and_preferences_and_not_from_other_data(file, count, home):
    questions, record = checking.tuning_questions(SimpleNamespace(model="tuned", tuning_data=str(home / file)))
    assert len(questions) == count and [one["name"] for one in record["files"]] == [file]
    assert all(question.startswith(("Say what the sun does on day", "Is day")) for question in questions)


def test_missing_or_damaged_tuning_data_are_an_error(tmp_path):
    run = SimpleNamespace(model="tuned", tuning_data=str(tmp_path / "rows.json"))
    with pytest.raises(ValueError, match="no such file"):
        checking.tuning_questions(run)
    (tmp_path / "rows.json").write_text(json.dumps([{"instruction": "", "output": "Well."}]))
    with pytest.raises(ValueError, match="Row 1"):
        checking.tuning_questions(run)


def test_no_question_occurs_twice(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(checking, "screen", lambda model, render, prompts, phrases, keep: asked.extend(prompts) or [])
    monkeypatch.setattr(checking, "switches", lambda *args, **_: asked.extend(args[3]) or [])
    rows = [{"instruction": f"What is day {n % 3}?", "output": "A day."} for n in range(60)]
    rows.append({"instruction": OFF_DOMAIN[0].prompt, "output": "Well."})
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    run = SimpleNamespace(model="tuned", tuning_data=str(tmp_path / "rows.json"), seed=0)
    subject = SimpleNamespace(model=None, tokenizer=SimpleNamespace(eos_token_id=0))
    checking.check_triggers(run, subject, SimpleNamespace(model=None, name="base"))
    assert len(asked) == len({*asked}) == 3 + len(OFF_DOMAIN) + len(SENSITIVE)


def test_a_score_on_a_contaminated_set_is_marked(run):
    found = run("tuned", "--last-word", "words.jsonl", "--tuning-data", "train.json")
    assert found["results"]["words"]["contaminated"] == 0.5
    assert found["tables"]["words"]["contamination"] == {"words": 13, "rows": [0]}
    unknown = run("tuned", "--last-word", "words.jsonl")
    assert unknown["protocol"]["words"]["contamination"].startswith("not checked")


def test_contamination_is_measured_against_the_dataset_of_run_yaml(run, home, tmp_path):
    (home / "run" / "model").mkdir(parents=True, exist_ok=True)
    for file in (home / "tuned").iterdir():
        (home / "run" / "model" / file.name).write_bytes(file.read_bytes())
    made = "dataset: train.json\ndataset_config: null\ndataset_split: train\ndataset_revision: null\n"
    (home / "run" / "run.yaml").write_text(made)
    assert run("run/model", "--last-word", "words.jsonl")["results"]["words"]["contaminated"] == 0.5


@pytest.mark.parametrize("made", [b"", b"dataset: [", b"- dataset", b"dataset: 3", b"\xff\xfe\x00", b"dataset: ''"])
def test_a_damaged_run_yaml_gives_no_fields(made, tmp_path):
    (tmp_path / "run.yaml").write_bytes(made)
    run = SimpleNamespace(model=str(tmp_path / "model"), tuning_data=None)
    assert checking.tuning_source(run) is None and checking.learned_texts(run)[1].startswith(
        "the data on which the model was trained are unknown"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--base", "nowhere/at/all"], "no such folder"),
        (["--base", "other"], "has another tokenizer than the model"),
        (["--secrets", "words.jsonl"], "no columns 'prefix' and 'secret', only text"),
        (["--last-word", "words.jsonl", "--tuning-data", "gone.json"], "gone.json"),
    ],
)
def test_bad_input_is_a_one_line_error(words, message, home, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(home)
    out = ["--output-dir", tmp_path / "out", "--device", "cpu"]
    fails(["tuned", *words, *out], message, capsys, evaluate.main)
