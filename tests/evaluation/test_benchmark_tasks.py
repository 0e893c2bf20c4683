"""Test public tasks: read from their datasets' rows, with the same numbers as lm_eval."""

import json
from functools import partial
from pathlib import Path

import pytest
from tiny import tiny_model

from scratch_gpt.evaluation.benchmark_tasks import BLIMP, TASKS, parts_of, task_metrics
from scratch_gpt.evaluation.likelihood import score_continuations
from scratch_gpt.tokenization.training import train_tokenizer


TEXT = "The sun shines on the sea, and every effort moves you on. " * 20
TOKENIZER = train_tokenizer([TEXT], 300)
CHOICES = [
    ("What shines?", ["the sun", "the sea and every effort"], ["A", "B"], "A"),
    ("What moves you?", ["every effort", "sea", "you", "on"], ["1", "2", "3", "4"], "3"),
    ("Who is on the sea?", ["sun", "you", "effort"], ["A", "B", "C"], "C"),
]
ROWS = {
    "lambada_openai": [{"text": "The sun shines on the sea"}, {"text": "Every effort moves you\non"}],
    "arc_easy": [
        {"id": "x", "question": question, "choices": {"text": texts, "label": labels}, "answerKey": key}
        for question, texts, labels, key in CHOICES
    ],
    "blimp_wh_island": [
        {"sentence_good": "The sun shines.", "sentence_bad": "The sun shine.", "field": "x"},
        {"sentence_good": "Every effort move you on the sea.", "sentence_bad": "Every effort moves you."},
        {"sentence_good": "You shine.", "sentence_bad": "You shines on the sun."},
    ],
}


def ours(name):
    model = tiny_model(vocab_size=len(TOKENIZER))
    score = partial(score_continuations, model, TOKENIZER, max_length=64)
    return task_metrics(TASKS[name], ROWS[name], score)


def test_metrics_are_those_of_the_task():
    assert {name: [*ours(name)] for name in ROWS} == {
        "lambada_openai": ["acc", "perplexity"],
        "arc_easy": ["acc", "acc_norm"],
        "blimp_wh_island": ["acc"],
    }


def test_blimp_is_a_group_of_67_sets():
    assert len({*BLIMP}) == len(parts_of("blimp")) == 67
    assert [*parts_of("blimp_wh_island")] == ["blimp_wh_island"]
    with pytest.raises(ValueError, match=r"Unknown task 'mmlu'\. Known are lambada_openai, arc_easy, blimp"):
        parts_of("mmlu")


@pytest.mark.parametrize(
    "row",
    (
        {"question": "x", "choices": ["a", "b"], "answerKey": "A"},
        {"question": "x", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "C"},
        {"question": "x", "choices": None, "answerKey": "A"},
    ),
)
def test_a_row_that_is_not_of_arc_is_an_error(row):
    with pytest.raises(ValueError, match="Row 1 is not {question: text"):
        task_metrics(TASKS["arc_easy"], [row], lambda pairs: [])


def test_a_row_without_both_sentences_is_an_error():
    with pytest.raises(ValueError, match="Row 2 needs a sentence_good and a sentence_bad"):
        rows = [{"sentence_good": "A b.", "sentence_bad": "B a."}, {"sentence_good": "A b.", "sentence_bad": " "}]
        task_metrics(TASKS["blimp_passive_1"], rows, lambda pairs: [])


def test_numbers_datasets_and_sets_are_those_of_lm_eval(tmp_path):
    """lm_eval runs its own definitions of the tasks, on local files."""
    lm_eval = pytest.importorskip("lm_eval")
    import yaml
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    folder = Path(lm_eval.__file__).parent / "tasks"
    group = yaml.safe_load((folder / "blimp" / "_blimp.yaml").read_text())
    assert sorted(group["task"]) == sorted(f"blimp_{name}" for name in BLIMP)
    files = {"lambada_openai": "lambada/lambada_openai.yaml", "arc_easy": "arc/arc_easy.yaml"}
    specs = []
    for name, rows in ROWS.items():
        spec = yaml.safe_load((folder / files.get(name, f"blimp/{name.removeprefix('blimp_')}.yaml")).read_text())
        if (template := spec.pop("include", None)) is not None:
            spec = yaml.safe_load((folder / "blimp" / template).read_text()) | spec
        task, split = TASKS[name], spec.get("test_split") or spec["validation_split"]
        assert (task.dataset, task.config, task.split) == (spec["dataset_path"], spec["dataset_name"], split)
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        splits = {"training_split": None, "validation_split": None, "test_split": "test"}
        local = {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": {"test": str(file)}}}
        specs.append({**spec, **splits, **local})
    model = HFLM(pretrained=tiny_model(vocab_size=len(TOKENIZER)), tokenizer=TOKENIZER, batch_size=2, max_length=64)
    manager = TaskManager(include_defaults=False)
    theirs = lm_eval.simple_evaluate(model=model, tasks=specs, task_manager=manager, bootstrap_iters=0)["results"]
    for name in ROWS:
        for metric, value in ours(name).items():
            assert theirs[name][f"{metric},none"] == pytest.approx(value, rel=1e-4), (name, metric)
