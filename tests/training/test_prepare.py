"""Test preparation: it gives the rows that training would make, loses nothing, and resumes."""

import json
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import datasets
import numpy as np
import pytest
from bad_input import fails as fails_in
from bad_input import snapshot

from scratch_gpt.data.manifest import file_record, read_manifest
from scratch_gpt.data.prepared.pipeline import texts_of, with_texts
from scratch_gpt.data.prepared.storage import PreparedRows, write_part
from scratch_gpt.data.rows.block import RowBlock
from scratch_gpt.data.sources.documents import open_documents, open_prepared_text, open_rows
from scratch_gpt.data.sources.location import Location
from scratch_gpt.data.sources.streaming import open_stream
from scratch_gpt.tokenization.encoders import Worker
from scratch_gpt.tokenization.tokenizer import load_tokenizer
from scratch_gpt.tokenization.training import train_tokenizer
from scratch_gpt_training import prepare, pretrain
from scratch_gpt_training.support import command_line
from scratch_gpt_training.support.preparation import stages as preparing


fast = pytest.mark.skipif(find_spec("gigatoken") is None, reason='needs gigatoken: pip install "scratch_gpt[fast]"')
TRAINING = Path(prepare.__file__).resolve().parent
WORDS = "the old grey cat sat on a warm mat and saw nine small birds fly over every roof near our quiet town".split()


def sentence(generator: np.random.Generator, n: int) -> str:
    return " ".join(generator.choice(WORDS, n)) + "."


@pytest.fixture(scope="module")
def texts() -> list[str]:
    generator = np.random.default_rng(0)
    return [sentence(generator, int(n)) for n in generator.integers(8, 60, 120)]


@pytest.fixture(scope="module")
def corpus(texts, tmp_path_factory) -> Path:
    return write_rows(tmp_path_factory.mktemp("corpus") / "texts.jsonl", [{"text": text} for text in texts])


@pytest.fixture(scope="module")
def tokenizer(texts, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(texts, 300).save_pretrained(folder)
    return folder


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def prepared(*words) -> tuple[Path, dict]:
    """Run the recipe in this process; return the folder and its manifest."""
    words = [str(word) for word in words]
    prepare.main(words)
    folder = Path(words[words.index("--output-dir") + 1])
    return folder, read_manifest(folder)


def rows_of(rows) -> list[dict]:
    return [{name: values.tolist() for name, values in rows[k].items()} for k in range(len(rows))]


# --- The rows ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["", "--pack true", "--pad true", "--stride 5", "--stride 5 --overlap context"])
def test_prepared_rows_equal_those_that_training_makes_of_the_same_text(how, corpus, tokenizer, tmp_path):
    same = ["--dataset", str(corpus), "--tokenizer", str(tokenizer), "--max-length", "16", *how.split()]
    folder, manifest = prepared(*same, "--output-dir", tmp_path / "p")
    run = command_line.parse(pretrain.PretrainRun, [*same, "--preset", "tiny"])
    _, _, made, made_manifest, _ = pretrain.make_rows(run)
    for name in ("train", "validation"):
        rows = PreparedRows(folder / name, manifest["splits"][name]["asked"])
        assert rows_of(rows) == rows_of(made[name])
        assert rows.asked_per_row == pytest.approx(
            np.mean([(np.array(row["shift_labels"]) != -100).sum() for row in rows_of(rows)])
        )
        for fact in ("documents", "bytes", "tokens", "rows"):
            assert manifest["splits"][name][fact] == made_manifest["splits"][name][fact]
    trained = command_line.parse(pretrain.PretrainRun, ["--dataset", str(folder), "--preset", "tiny"])
    task = pretrain.build(trained)
    assert rows_of(task.rows["train"]) == rows_of(made["train"])
    assert task.model.config.max_position_embeddings == 16
    assert task.model.config.vocab_size == len(load_tokenizer(tokenizer))


def test_a_single_document_is_cut_by_position_as_training_cuts_it(tokenizer, texts, tmp_path):
    (tmp_path / "one.txt").write_text(" ".join(texts))
    same = ["--dataset", str(tmp_path / "one.txt"), "--tokenizer", str(tokenizer), "--max-length", "16"]
    folder, manifest = prepared(*same, "--output-dir", tmp_path / "p")
    made = pretrain.make_rows(command_line.parse(pretrain.PretrainRun, [*same, "--preset", "tiny"]))[2]
    for name in ("train", "validation"):
        assert rows_of(PreparedRows(folder / name)) == rows_of(made[name])
    assert manifest["splits"]["validation"]["documents"] == 1


# --- Filters -----------------------------------------------------------------------------------------------------


def test_the_license_of_project_gutenberg_is_stripped_and_counted(texts, tmp_path, capsys):
    start, end = (f"*** {word} OF THE PROJECT GUTENBERG EBOOK X ***" for word in ("START", "END"))
    books = [f"{start}\n{texts[0]}\n{end}\n", texts[1], f"{start}\n\n{end}\nLicense of Project Gutenberg", texts[2]]
    corpus = write_rows(tmp_path / "books.jsonl", [{"text": text} for text in books])
    words = ["--dataset", corpus, "--task", "text", "--validation-fraction", "0", "--output-dir", tmp_path / "p"]
    folder, manifest = prepared(*words, "--strip", "gutenberg", "--report", "true")
    assert manifest["filters"] == {
        "gutenberg": {"in": 4, "removed": 0, "changed": 2},
        "empty": {"in": 4, "removed": 1},
    }
    assert "gutenberg: 4 rows in, 0 removed, 2 changed" in capsys.readouterr().out
    assert "2 changed" in (folder / "report.html").read_text()
    left = {row["text"].strip() for part in open_prepared_text(str(folder)).values() for row in part}
    assert left == {*texts[:3]}


def test_each_filter_counts_what_it_removed_and_can_write_it_out(texts, tmp_path):
    blocked = tmp_path / "blocked.txt"
    blocked.write_text("forbidden\n")
    exam = write_rows(tmp_path / "exam.jsonl", [{"text": texts[7]}])
    rows = [*texts, texts[0], "  ", f"{texts[1]} forbidden", f"{texts[2]} Write to jane.doe@example.org today."]
    corpus = write_rows(tmp_path / "texts.jsonl", [{"text": text} for text in rows])
    words = ["--dataset", corpus, "--block-list", blocked, "--contamination", exam, "--contamination-ngram", "8"]
    words += ["--deduplicate", "exact", "--privacy", "mask", "--write-removed", "true", "--task", "text"]
    folder, manifest = prepared(*words, "--output-dir", tmp_path / "p")
    n = len(rows)
    assert manifest["filters"] == {
        "empty": {"in": n, "removed": 1},
        "block_list": {"in": n - 1, "removed": 1},
        "contamination": {"in": n - 2, "removed": 1},
        "privacy": {"in": n - 3, "removed": 0, "changed": 1},
        "exact_duplicates": {"in": n - 3, "removed": 1},
    }
    removed = [json.loads(line) for line in (folder / "removed.jsonl").read_text().splitlines()]
    assert sorted((line["filter"], line["row"]["text"]) for line in removed) == sorted(
        [("empty", "  "), ("block_list", rows[-2]), ("contamination", texts[7]), ("exact_duplicates", texts[0])]
    )
    left = {row["text"] for part in open_prepared_text(str(folder)).values() for row in part}
    assert left == {*texts} - {texts[7]} | {f"{texts[2]} Write to [EMAIL] today."}
    again = [open_documents(Location(str(folder), split=name)).rows for name in ("train", "validation")]
    assert (
        manifest["rows"] == n - 4 == sum(map(len, again)) and {text for part in again for text in part["text"]} == left
    )


def test_near_duplicates_and_repeated_passages_are_removed(texts, tmp_path):
    generator = np.random.default_rng(1)
    long = [sentence(generator, 300) for _ in range(12)]
    near = long[3].replace(" cat ", " dog ", 2)
    repeated = f"{sentence(generator, 200)} {long[5]} {sentence(generator, 200)}"
    corpus = write_rows(tmp_path / "texts.jsonl", [{"text": text} for text in [*long, near, repeated]])
    words = ["--dataset", corpus, "--deduplicate", "near", "--deduplicate-passages", "50", "--task", "text"]
    folder, manifest = prepared(*words, "--output-dir", tmp_path / "p", "--validation-fraction", "0")
    assert manifest["filters"]["near_duplicates"] == {"in": 14, "removed": 1}
    assert manifest["filters"]["passages"] == {"in": 13, "removed": 0, "changed": 1}
    left = [row["text"] for row in open_prepared_text(str(folder))["train"]]
    assert left[:12] == long and near not in left
    assert len(left[12].split()) < 500 and left[12].startswith(repeated[:60])


@pytest.fixture(scope="module")
def passage() -> str:
    """Return 200 words: four passages of 50."""
    return sentence(np.random.default_rng(4), 200)


def test_passages_are_cut_only_from_the_text_column_and_removed_rows_are_shown_completely(passage, tmp_path):
    rows = [{"text": passage, "title": passage}, {"text": f"{passage} New.", "title": None}]
    copy = {"text": passage, "title": "A copy."}
    corpus = write_rows(tmp_path / "texts.jsonl", [*rows, copy])
    words = ["--dataset", corpus, "--task", "text", "--deduplicate-passages", "50", "--validation-fraction", "0"]
    folder, manifest = prepared(*words, "--write-removed", "true", "--report", "true", "--output-dir", tmp_path / "p")
    assert manifest["filters"]["passages"] == {"in": 3, "removed": 1, "changed": 2}
    left = open_prepared_text(str(folder))["train"][:]
    assert left == {"text": [passage, "New."], "title": [passage, None]}
    assert manifest["bytes"] == 2 * len(passage) + len("\nNew.")
    removed = json.loads((folder / "removed.jsonl").read_text())
    assert removed == {"filter": "passages", "why": "its complete text occurs earlier", "row": copy}
    page = (folder / "report.html").read_text()
    assert f"its complete text occurs earlier</b>{passage[:30]}" in page


@pytest.mark.parametrize("form", ["prompt", "instruction", "messages"])
def test_filters_that_cut_rows_are_refused_at_once_for_rows_that_cannot_be_cut(form, passage, tmp_path, capsys):
    row = {form: passage, "chosen": "Yes.", "rejected": "No."}
    row = {"messages": [{"role": "user", "content": passage}]} if form == "messages" else row
    corpus = write_rows(tmp_path / "rows.jsonl", [row])
    words = ["--dataset", corpus, "--task", "text", "--deduplicate-passages", "50", "--output-dir", tmp_path / "p"]
    fails(words, f"only {form}.*: rows of messages, instructions or preferences cannot be cut", capsys)
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize("how", ["exact", "near"])
def test_duplicates_are_found_by_the_text_column_if_there_is_one(how, passage, texts, tmp_path):
    rows = [{"body": body, "url": text} for body, text in zip([passage, passage, None, " "], texts, strict=False)]
    corpus = write_rows(tmp_path / "texts.jsonl", rows)
    words = ["--dataset", corpus, "--task", "text", "--deduplicate", how, "--validation-fraction", "0"]
    folder, _ = prepared(*words, "--text-column", "body", "--output-dir", tmp_path / "p")
    assert open_prepared_text(str(folder))["train"]["url"][:] == [texts[0], *texts[2:4]]
    # Without a column "text", all texts of a row count.
    assert prepared(*words, "--output-dir", tmp_path / "q")[1]["rows"] == 4


ROWS = {
    "text": {"text": "Well."},
    "alpaca": {"instruction": "Say 12.", "input": "", "output": "12."},
    "messages": {"messages": [{"role": "user", "content": "Well?"}, {"role": "assistant", "content": "Well."}]},
    "prompt": {"prompt": "Well?", "completion": "Well."},
    "pair": {"prompt": "Well?", "chosen": "Well.", "rejected": "No."},
    "judged": {"prompt": "Well?", "completion": "Well.", "label": True},
    "other": {"question": "Well?", "answer": "Well."},
}


@pytest.mark.parametrize("how", ["exact", "near"])
@pytest.mark.parametrize("form", ROWS)
def test_duplicates_are_found_by_text_and_not_by_ids(form, how, tmp_path):
    ids = [{"id": f"row-{n}", "prompt_id": f"p{n}"} for n in range(3)]
    ids = [{**row, "url": f"https://example.org/{n}"} if form != "other" else row for n, row in enumerate(ids)]
    other = next(name for name, value in ROWS[form].items() if isinstance(value, (str, list)))
    changed = json.loads(json.dumps(ROWS[form][other]).replace("Well", "Never again").replace("12", "13"))
    rows = [{**ids[0], **ROWS[form]}, {**ids[1], **ROWS[form]}, {**ids[2], **ROWS[form], other: changed}]
    corpus = write_rows(tmp_path / "rows.jsonl", rows)
    words = ["--dataset", corpus, "--task", "text", "--deduplicate", how, "--validation-fraction", "0"]
    folder, _ = prepared(*words, "--output-dir", tmp_path / "p", "--write-removed", "true")
    assert open_prepared_text(str(folder))["train"]["id"][:] == ["row-0", "row-2"]
    assert json.loads((folder / "removed.jsonl").read_text())["why"] == "the same text as row 1 of rows.jsonl"


def test_rows_differ_if_the_column_of_a_text_or_the_label_differs(tmp_path):
    rows = [
        {"prompt": "a b", "completion": "c", "label": True},
        {"prompt": "a", "completion": "b c", "label": True},
        {"prompt": "a  b ", "completion": "c", "label": True},
        {"prompt": "a b", "completion": "c", "label": False},
    ]
    corpus = write_rows(tmp_path / "rows.jsonl", rows)
    words = ["--dataset", corpus, "--task", "text", "--deduplicate", "exact", "--validation-fraction", "0"]
    folder, _ = prepared(*words, "--output-dir", tmp_path / "p")
    assert [*open_prepared_text(str(folder))["train"]] == [rows[0], rows[1], rows[3]]


def test_a_removed_copy_names_the_row_that_is_kept(texts, tmp_path):
    generator = np.random.default_rng(5)
    long = sentence(generator, 300)
    near = long.replace(" cat ", " dog ", 1)
    write_rows(tmp_path / "a.jsonl", [{"text": texts[0]}, {"text": " "}, {"text": long}, {"text": texts[1]}])
    write_rows(tmp_path / "b.jsonl", [{"text": near}, {"text": texts[1]}, {"text": f"{near}\n"}, {"text": texts[2]}])
    words = ["--dataset", tmp_path, "--mixture", "a.jsonl,b.jsonl", "--task", "text", "--deduplicate", "near"]
    words += ["--validation-fraction", "0", "--write-removed", "true", "--report", "true"]
    folder, _ = prepared(*words, "--output-dir", tmp_path / "p")
    removed = [json.loads(line) for line in (folder / "removed.jsonl").read_text().splitlines()]
    assert [(line["filter"], line["why"]) for line in removed] == [
        ("empty", "no text"),
        ("near_duplicates", "nearly the same text as row 3 of a.jsonl"),
        ("exact_duplicates", "the same text as row 4 of a.jsonl"),
        ("exact_duplicates", "the same text as row 3 of a.jsonl"),  # of the rows kept at the end
    ]
    assert "the same text as row 4 of a.jsonl" in (folder / "report.html").read_text()


def test_kinds_of_private_data_are_named(texts, tmp_path):
    rows = [{"text": f"{text} Card 4111 1111 1111 1111, jo@example.com."} for text in texts[:20]]
    corpus = write_rows(tmp_path / "texts.jsonl", rows)
    words = ["--dataset", corpus, "--task", "text", "--privacy", "mask", "--validation-fraction", "0"]
    for kinds, end in (("card", "Card [CARD], jo@example.com."), ("card, email", "Card [CARD], [EMAIL].")):
        folder, _ = prepared(*words, "--privacy-kinds", kinds, "--output-dir", tmp_path / kinds[-1])
        assert all(text.endswith(end) for text in open_prepared_text(str(folder))["train"]["text"])


def test_names_of_classes_are_kept(texts, tmp_path, capsys):
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    rows = datasets.Dataset.from_dict({"text": texts[:20], "label": [0, 1] * 10}, features)
    other = features | {"label": datasets.ClassLabel(names=["yes", "no"])}
    for name, kind in (("a", features), ("b", features), ("c", datasets.Features(other))):
        rows.cast(kind).to_parquet(tmp_path / f"{name}.parquet")
    words = ["--dataset", tmp_path / "a.parquet", "--task", "text", "--deduplicate-passages", "5"]
    folder, _ = prepared(*words, "--output-dir", tmp_path / "p")
    assert open_rows(str(folder)).rows.features == features
    words = ["--dataset", tmp_path, "--task", "text", "--output-dir", tmp_path / "q", "--mixture"]
    folder, _ = prepared(*words, "a.parquet,b.parquet")
    assert open_rows(Location(str(folder), split="validation")).rows.features == features
    fails([*words, "a.parquet,c.parquet", "--overwrite", "true"], "The column 'label' has different classes", capsys)


def test_rows_of_messages_are_cleaned_in_every_text_and_keep_their_shape(tmp_path):
    generator = np.random.default_rng(2)
    rows = [
        {
            "messages": [
                {"role": "user", "content": sentence(generator, 12)},
                {"role": "assistant", "content": f"{sentence(generator, 12)} Mail a{n}@example.com."},
            ],
            "score": n,
        }
        for n in range(20)
    ]
    corpus = write_rows(tmp_path / "chat.jsonl", [*rows, rows[4]])
    words = ["--dataset", corpus, "--task", "text", "--privacy", "mask", "--deduplicate", "exact"]
    folder, manifest = prepared(*words, "--output-dir", tmp_path / "p")
    assert manifest["filters"]["exact_duplicates"]["removed"] == 1
    assert manifest["filters"]["privacy"]["changed"] == 21
    left = [row for part in open_prepared_text(str(folder)).values() for row in part]
    expected = [with_texts(row, lambda text: re.sub(r"a\d+@example.com", "[EMAIL]", text)) for row in rows]
    assert sorted(left, key=lambda row: row["score"]) == expected


def test_the_role_of_a_message_is_not_text(tmp_path):
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "role": "c"}
    assert [*texts_of(row)] == ["a", "b", "c"]
    upper = {"messages": [{"role": "user", "content": "A"}, {"role": "assistant", "content": "B"}], "role": "C"}
    assert with_texts(row, str.upper) == upper
    rows = [{"messages": [{"role": "user", "content": text}]} for text in ("a", "", " ")]
    corpus = write_rows(tmp_path / "chat.jsonl", [*rows, {"messages": []}])
    words = ["--dataset", corpus, "--task", "text", "--validation-fraction", "0", "--output-dir", tmp_path / "p"]
    assert prepared(*words)[1]["filters"]["empty"] == {"in": 4, "removed": 3}


def test_a_model_lists_unusual_rows_and_removes_none(corpus, tokenizer, tmp_path):
    words = [
        "--dataset",
        corpus,
        "--tokenizer",
        tokenizer,
        "--max-length",
        "32",
        "--preset",
        "tiny",
        "--max-steps",
        "2",
    ]
    words += ["--config-overrides", "hidden_size=32,num_hidden_layers=1", "--output-dir", tmp_path / "run"]
    pretrain.main([str(word) for word in words])
    with corpus.open() as lines:
        rows = [json.loads(line) for line in lines]
    planted = write_rows(tmp_path / "planted.jsonl", [*rows, {"text": "\u4e2d\u6587" * 40}])
    words = ["--dataset", planted, "--tokenizer", tokenizer, "--max-length", "16", "--validation-fraction", "0"]
    words += ["--reference-model", tmp_path / "run" / "model", "--poisoning", "true"]
    folder, manifest = prepared(*words, "--output-dir", tmp_path / "p")
    flagged = [json.loads(line) for line in (folder / "flagged.jsonl").read_text().splitlines()]
    counts = manifest["filters"]
    assert counts["poisoning"] == {"in": 121, "removed": 0, "flagged": 7}  # 5 %, rounded up
    assert counts["perplexity"]["removed"] == 0
    assert sum(line["filter"] == "poisoning" for line in flagged) == 7
    assert manifest["splits"]["train"]["documents"] == 121


def test_the_report_shows_removed_rows_and_one_packed_row(texts, tokenizer, tmp_path):
    corpus = write_rows(tmp_path / "texts.jsonl", [{"text": text} for text in [*texts, "<b>" + texts[0], texts[3]]])
    words = ["--dataset", corpus, "--tokenizer", tokenizer, "--max-length", "32", "--pack", "true", "--report", "true"]
    folder, manifest = prepared(*words, "--deduplicate", "exact", "--output-dir", tmp_path / "p")
    page = (folder / "report.html").read_text()
    assert "exact_duplicates" in page and texts[3][:30] in page and "<b>" + texts[0][:10] not in page
    assert str(tmp_path) not in page
    assert not any(file["name"] == "report.html" for file in manifest["files"])  # the page may be deleted


# --- Mixtures ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_corpora(tmp_path_factory) -> Path:
    """Make a folder of two corpora: `large` with 90 documents and `small` with 10."""
    folder, generator = tmp_path_factory.mktemp("two"), np.random.default_rng(3)
    for name, n in (("large", 90), ("small", 10)):
        (folder / name).mkdir()
        write_rows(folder / name / "a.jsonl", [{"text": f"{name} {sentence(generator, 20)}"} for _ in range(n)])
    return folder


def test_a_mixture_has_the_requested_shares_and_reports_them(two_corpora, tokenizer, tmp_path):
    same = ["--dataset", two_corpora, "--tokenizer", tokenizer, "--max-length", "16", "--validation-fraction", "0.1"]
    _, manifest = prepared(*same, "--mixture", "large=1,small=1", "--output-dir", tmp_path / "p")
    assert manifest["mixture"]["asked"] == {"large": 0.5, "small": 0.5}
    assert manifest["mixture"]["actual"]["large"] == pytest.approx(0.5, abs=0.01)
    assert manifest["mixture"]["epochs"]["large"] == 1 and manifest["mixture"]["epochs"]["small"] > 7
    assert [source["name"] for source in manifest["sources"]] == ["large", "small"]
    assert manifest["splits"]["validation"]["documents"] == 9 + 1

    _, natural = prepared(
        *same, "--mixture", f"{two_corpora / 'large'},{two_corpora / 'small'}", "--output-dir", tmp_path / "q"
    )
    shares = natural["mixture"]["asked"].values()
    assert 0.1 < min(shares) < 0.3 and natural["mixture"]["alpha"] == 0.7
    assert [source["name"] for source in natural["sources"]] == ["large", "small"] == [*natural["mixture"]["asked"]]
    assert str(two_corpora) not in (tmp_path / "q" / "manifest.json").read_text()


def test_corpora_are_recorded_with_unique_names_and_without_absolute_paths(
    two_corpora, tokenizer, tmp_path, monkeypatch
):
    monkeypatch.chdir(two_corpora / "large")
    names = [two_corpora / "large" / "a.jsonl", two_corpora / "small" / "a.jsonl", "../small/*.jsonl"]
    words = ["--tokenizer", tokenizer, "--max-length", "16", "--validation-fraction", "0"]
    words += ["--mixture", ",".join(map(str, names))]
    words += ["--mixture-epochs", ",".join(f"{name}={n}" for n, name in enumerate(names, start=1))]
    folder, manifest = prepared(*words, "--output-dir", tmp_path / "p")
    assert manifest["mixture"]["epochs"] == {"a.jsonl": 1, "a.jsonl (2)": 2, "*.jsonl": 3}
    assert [source["name"] for source in manifest["sources"]] == ["a.jsonl", "a.jsonl (2)", "*.jsonl"]
    assert str(two_corpora) not in (folder / "manifest.json").read_text()


def test_incompatible_columns_of_a_mixture_are_one_line_errors(two_corpora, tmp_path, capsys):
    for name, value in (("a", 1), ("b", "one")):
        write_rows(tmp_path / f"{name}.jsonl", [{"text": f"Text {n}.", "n": value} for n in range(9)])
    words = ["--dataset", tmp_path, "--task", "text", "--output-dir", tmp_path / "p", "--mixture", "a.jsonl,b.jsonl"]
    fails(words, "The column 'n' has the types int64 and string, which cannot be combined", capsys)
    write_rows(tmp_path / "b.jsonl", [{"body": "Text."}])
    fails(words, "no column in common. The first corpus has text, n", capsys)
    assert not (tmp_path / "p").exists()


def test_epochs_and_stopping_strategies_are_applied(two_corpora, tokenizer, tmp_path):
    same = ["--dataset", two_corpora, "--tokenizer", tokenizer, "--max-length", "16", "--validation-fraction", "0"]
    same += ["--mixture", "large,small"]
    _, manifest = prepared(*same, "--mixture-epochs", "large=1,small=3", "--output-dir", tmp_path / "p")
    assert manifest["mixture"]["epochs"] == {"large": 1, "small": 3}
    assert manifest["splits"]["train"]["documents"] == 90 + 30
    once = "all_exhausted_without_replacement"
    _, manifest = prepared(*same, "--stopping-strategy", once, "--output-dir", tmp_path / "q")
    assert manifest["splits"]["train"]["documents"] == 100


# --- Repeating a preparation -------------------------------------------------------------------------------------


def test_the_same_command_gives_the_same_rows_and_another_seed_other_rows(two_corpora, tokenizer, tmp_path):
    same = ["--dataset", two_corpora, "--mixture", "large,small", "--tokenizer", tokenizer, "--max-length", "16"]
    first, again, other = (
        prepared(*same, "--seed", seed, "--output-dir", tmp_path / name)[1]
        for seed, name in ((1, "a"), (1, "b"), (2, "c"))
    )
    assert first["sha256"] == again["sha256"] != other["sha256"]
    assert first == again


@pytest.mark.parametrize("stop_at", ["clean-0", "tokens-0", "out"])
def test_a_stopped_preparation_resumes_with_finished_parts(stop_at, corpus, tokenizer, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("scratch_gpt.data.prepared.pipeline.PART_ROWS", 25)
    words = ["--dataset", corpus, "--tokenizer", tokenizer, "--max-length", "16", "--pack", "true"]
    _, whole = prepared(*words, "--output-dir", tmp_path / "whole")
    written, write = [], preparing.in_parts.__globals__["write_table"]

    def counting(table, path):
        if path.parent.name == stop_at and len([p for p in written if p.parent.name == stop_at]) == 2:
            raise KeyboardInterrupt
        write(table, path)
        written.append(path)

    monkeypatch.setattr("scratch_gpt.data.prepared.pipeline.write_table", counting)
    if stop_at == "out":
        monkeypatch.setattr(preparing, "make_manifest", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(SystemExit):
        prepared(*words, "--output-dir", tmp_path / "p")
    assert not (tmp_path / "p" / "manifest.json").exists()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "p").rglob("part-*.arrow")}
    monkeypatch.undo()
    monkeypatch.setattr("scratch_gpt.data.prepared.pipeline.PART_ROWS", 25)
    remade = []
    monkeypatch.setattr(
        "scratch_gpt.data.prepared.pipeline.write_table", lambda table, path: (remade.append(path), write(table, path))
    )
    _, manifest = prepared(*words, "--output-dir", tmp_path / "p")
    assert manifest == whole
    assert "Resuming the preparation" in capsys.readouterr().out
    assert before and not set(remade) & set(before)  # what was there is used again


@pytest.mark.parametrize("encoder", ["tokenizers", pytest.param("gigatoken", marks=fast)])
def test_the_encoder_is_recorded_and_changes_no_row(encoder, corpus, tokenizer, tmp_path):
    words = ["--dataset", corpus, "--tokenizer", tokenizer, "--max-length", "16", "--output-dir"]
    _, manifest = prepared(*words, tmp_path / "p", "--encoder", encoder)
    _, other = prepared(*words, tmp_path / "other")
    assert manifest["encoder"] == {"name": encoder, "version": version(encoder)}
    assert {**manifest, "encoder": None} == {**other, "encoder": None}


@fast
@pytest.mark.skipif(sys.platform == "win32", reason="uses SIGKILL")
def test_a_preparation_goes_on_if_the_process_of_gigatoken_is_killed(corpus, tokenizer, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("scratch_gpt.data.prepared.pipeline.PART_ROWS", 25)
    words = ["--dataset", corpus, "--tokenizer", tokenizer, "--max-length", "16", "--output-dir"]
    _, whole = prepared(*words, tmp_path / "whole")
    ask, asked = Worker.ask, []

    def ask_and_kill(self, request, *contents):
        asked.append(request["do"])
        if asked.count("encode") == 3:
            self.process.kill()
        return ask(self, request, *contents)

    monkeypatch.setattr(Worker, "ask", ask_and_kill)
    capsys.readouterr()
    _, manifest = prepared(*words, tmp_path / "p")
    assert capsys.readouterr().out.count("gigatoken stopped") == 1
    assert manifest["encoder"]["name"] == "tokenizers" and "stopped" in manifest["encoder"]["reason"]
    assert {**manifest, "encoder": None} == {**whole, "encoder": None}


def test_a_missing_encoder_is_named_before_anything_is_written(corpus, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("scratch_gpt_training.support.options.find_spec", lambda name: None)
    words = ["--dataset", corpus, "--output-dir", tmp_path / "p", "--encoder", "gigatoken"]
    for main in (prepare.main, pretrain.main):
        fails(words, r"gigatoken is not installed; it is an extra: pip install \"scratch_gpt\[fast\]\"", capsys, main)
    assert not (tmp_path / "p").exists()


def test_a_finished_preparation_is_reported_and_another_is_refused(corpus, tokenizer, tmp_path, capsys):
    words = ["--dataset", corpus, "--tokenizer", tokenizer, "--max-length", "16", "--output-dir", tmp_path / "p"]
    prepared(*words)
    before = snapshot(tmp_path / "p")
    prepared(*words)
    assert "is already prepared" in capsys.readouterr().out
    fails([*words, "--pack", "true"], "contains another preparation", capsys)
    fails([*words, "--report", "true"], "already prepared, but without report.html, .* --overwrite true", capsys)
    fails([*words, "--write-removed", "true"], "already prepared, but without removed.jsonl", capsys)
    assert snapshot(tmp_path / "p") == before
    _, manifest = prepared(*words, "--pack", "true", "--overwrite", "true")
    assert manifest["pack"]


def test_replacing_prepared_data_removes_its_files_and_no_others(corpus, tokenizer, tmp_path, capsys):
    words = ["--dataset", corpus, "--tokenizer", tokenizer, "--max-length", "16", "--output-dir", tmp_path / "p"]
    folder, _ = prepared(*words, "--test-fraction", "0.1", "--report", "true", "--write-removed", "true")
    (folder / "notes.txt").write_text("mine")
    before = snapshot(folder)
    prepared(*words, "--test-fraction", "0.1", "--report", "true", "--write-removed", "true")  # both are there
    assert "is already prepared" in capsys.readouterr().out and snapshot(folder) == before
    prepared(*words, "--overwrite", "true")
    left = ["manifest.json", "notes.txt", "tokenizer", "train", "validation"]
    assert sorted(path.name for path in folder.iterdir()) == left
    for name in left[2:]:
        shutil.rmtree(folder / name)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"] = [{"name": name} for name in ("/", "../corpus/a", "notes.txt", ".")]  # a user's own file
    (folder / "manifest.json").write_text(json.dumps(manifest))
    prepared(*words, "--overwrite", "true")
    assert sorted(path.name for path in folder.iterdir()) == left and corpus.exists()


def test_contamination_uses_the_given_split_and_the_content_of_its_files(texts, tmp_path, capsys):
    exam = write_rows(tmp_path / "exam.jsonl", [{"text": text} for text in texts[:30]])
    prepared("--dataset", exam, "--task", "text", "--test-fraction", "0.2", "--output-dir", tmp_path / "exam")
    held_out = {row["text"] for row in open_prepared_text(str(tmp_path / "exam"))["test"]}
    corpus = write_rows(tmp_path / "texts.jsonl", [{"text": text} for text in texts[:60]])
    same = ["--dataset", corpus, "--task", "text", "--contamination-ngram", "8", "--validation-fraction", "0"]
    words = [*same, "--contamination", tmp_path / "exam", "--contamination-split", "test"]
    folder, _ = prepared(*words, "--output-dir", tmp_path / "p")
    assert {*open_prepared_text(str(folder))["train"]["text"]} == {*texts[:60]} - held_out

    words = [*same, "--contamination", tmp_path / "exa?.jsonl", "--output-dir", tmp_path / "q"]
    prepared(*words)
    write_rows(exam, [{"text": text} for text in texts[:40]])
    fails(words, "contains another preparation: the settings differ", capsys)


def test_a_file_that_was_changed_is_named(corpus, tokenizer, tmp_path, capsys):
    words = ["--dataset", corpus, "--tokenizer", tokenizer, "--max-length", "16", "--output-dir", tmp_path / "p"]
    prepared(*words)
    part = tmp_path / "p" / "train" / "part-00000.arrow"
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    fails(words, r"train/part-00000\.arrow is not the file that was prepared", capsys)
    part.write_bytes(content[:-100])
    run = ["--dataset", tmp_path / "p", "--preset", "tiny", "--output-dir", tmp_path / "run"]
    fails(run, r"train/part-00000\.arrow is not the file", capsys, pretrain.main)
    text = (tmp_path / "p" / "manifest.json").read_text()
    (tmp_path / "p" / "manifest.json").write_text(text.replace('"share": 0.', '"share": 1.', 1))
    for arguments, main in ((words, prepare.main), (run, pretrain.main)):
        fails(arguments, r"manifest\.json was changed after it was written: its hash differs", capsys, main)
    prepared(*words, "--overwrite", "true")


def test_a_run_keeps_the_manifest_of_its_data_and_refuses_others(corpus, texts, tokenizer, tmp_path, capsys):
    words = [
        "--dataset",
        corpus,
        "--tokenizer",
        tokenizer,
        "--max-length",
        "16",
        "--preset",
        "tiny",
        "--max-steps",
        "0",
    ]
    pretrain.main([str(word) for word in [*words, "--output-dir", tmp_path / "run"]])
    manifest = tmp_path / "run" / "manifest.json"
    recorded = read_manifest(manifest)
    assert recorded["sources"][0]["files"][0]["name"] == "texts.jsonl"
    assert str(tmp_path) not in manifest.read_text() and str(corpus.parent) not in manifest.read_text()
    pretrain.main([str(word) for word in [*words, "--manifest", manifest, "--output-dir", tmp_path / "same"]])
    other = write_rows(tmp_path / "texts.jsonl", [{"text": text} for text in texts[1:]])
    changed = [other if word == corpus else word for word in words]
    message = r"data differ from .*manifest\.json: texts\.jsonl has changed"
    fails([*changed, "--manifest", manifest, "--output-dir", tmp_path / "b"], message, capsys, pretrain.main)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("task", ["pretrain", "text"])
def test_a_flipped_byte_is_not_trained_on(task, corpus, tokenizer, tmp_path, capsys):
    words = ["--dataset", corpus, "--output-dir", tmp_path / "p"]
    words += ["--task", "text"] if task == "text" else ["--tokenizer", tokenizer, "--max-length", "16"]
    prepared(*words)
    part = tmp_path / "p" / "train" / "part-00000.arrow"
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    run = ["--dataset", tmp_path / "p", "--preset", "tiny", "--tokenizer", tokenizer, "--max-length", "16"]
    fails([*run, "--output-dir", tmp_path / "run"], "is not the file that was prepared", capsys, pretrain.main)


def test_a_run_on_prepared_rows_records_what_was_verified(corpus, tokenizer, tmp_path, capsys):
    words = ["--dataset", corpus, "--tokenizer", tokenizer, "--max-length", "16", "--output-dir", tmp_path / "p"]
    folder, manifest = prepared(*words)
    run = ["--dataset", tmp_path / "p", "--preset", "tiny", "--max-steps", "0", "--device", "cpu"]
    pretrain.main([str(word) for word in [*run, "--output-dir", tmp_path / "run"]])
    recorded = read_manifest(tmp_path / "run")
    assert "sha256" in recorded.pop("verified") and recorded == manifest
    (folder / "train" / "part-00009.arrow").write_bytes((folder / "train" / "part-00000.arrow").read_bytes())
    message = r"train/part-00009\.arrow is not in its manifest\.json"
    fails([*run, "--output-dir", tmp_path / "other"], message, capsys, pretrain.main)
    fails(
        [*run, "--dataset", tmp_path / "run", "--output-dir", tmp_path / "other"], "is missing", capsys, pretrain.main
    )


def test_an_id_beyond_the_vocabulary_is_a_one_line_error(corpus, tokenizer, tmp_path, capsys):
    """The hashes may be valid: the folder may have been made by another program."""
    words = ["--dataset", corpus, "--tokenizer", tokenizer, "--max-length", "16", "--output-dir", tmp_path / "p"]
    folder, manifest = prepared(*words)
    part = folder / "validation" / "part-00000.arrow"
    ids = np.arange(17) + manifest["tokenizer"]["vocab_size"] - 16
    write_part([RowBlock(ids[:-1], ids[1:], np.array([16]))], part, 1000)
    for record in manifest["files"]:
        record |= file_record(folder / record["name"], record["name"])
    (folder / "manifest.json").write_text(json.dumps(manifest))
    run = ["--dataset", folder, "--preset", "tiny", "--output-dir", tmp_path / "run"]
    message = rf"part-00000\.arrow cannot be read: it contains the token id {ids[-1]}"
    fails(run, message, capsys, pretrain.main)
    manifest["splits"]["train"].pop("asked")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    fails(run, "cannot be read as a data manifest", capsys, pretrain.main)


def test_filters_see_the_complete_document_before_it_is_cut(texts, tokenizer, tmp_path, capsys):
    (tmp_path / "one.txt").write_text(f"{' '.join(texts)} forbidden")
    (tmp_path / "blocked.txt").write_text("forbidden\n")
    words = ["--dataset", tmp_path / "one.txt", "--tokenizer", tokenizer, "--block-list", tmp_path / "blocked.txt"]
    message = r"The filters removed every row of .*one.txt: --block-list removed 1 \(mostly forbidden 1\)"
    fails([*words, "--max-length", "16", "--output-dir", tmp_path / "p"], message, capsys)
    assert not (tmp_path / "p" / "manifest.json").exists()


def test_settings_that_keep_no_rows_are_errors_and_leave_no_files(tmp_path, capsys):
    corpus = write_rows(tmp_path / "short.jsonl", [{"text": f"Number {n} is short."} for n in range(40)])
    words = ["--dataset", corpus, "--task", "text", "--output-dir", tmp_path / "p"]
    fails([*words, "--quality", "true"], r"quality removed 40 \(mostly too_short 40\)", capsys)
    prepared(*words)  # the corrected command is not refused


# --- Invalid input -----------------------------------------------------------------------------------------------


def fails(arguments, message, capsys, main=prepare.main):
    fails_in(arguments, message, capsys, main)


BAD = {
    "--stride 0": "--stride must be at least 1",
    "--max-length 0": "--max-length must be at least 1",
    "--alpha 0.5": "--alpha has no effect: it needs --mixture",
    "--mixture a,b --alpha 0": "--alpha must be above 0",
    "--mixture a,b --alpha 1.01": "--alpha must be above 0 and at most 1",
    "--mixture a,b --alpha nan": "--alpha must be above 0",
    "--mixture a=0,b=1": "--mixture: a has 0; it must be a positive number",
    "--mixture a=nan,b=1": "mixture: a has nan",
    "--mixture a=-1": "mixture: a has -1",
    "--mixture a=x": "'a=x' is not name=number",
    "--mixture a=1,a=2": "names a twice",
    "--mixture a=1,b": "give weights for all corpora, or for none",
    "--mixture a,b --mixture-epochs a=1": "--mixture-epochs needs a number for every corpus",
    "--mixture-epochs a=1": "--mixture-epochs has no effect: it needs --mixture",
    "--mixture /no/where": "/no/where",
    "--text-column body": "no column 'body', only text",
    "--dataset /no/where.txt": "no such file",
    "--deduplicate some": "deduplicate.*some",
    "--deduplicate near --duplicate-threshold 2": "--duplicate-threshold must be between 0 and 1",
    "--pack true --pad true": "Give one of them",
    "--pack true --stride 3": "remove them with --pack",
    "--task text --pack true": "--task text writes text",
    "--privacy-kinds card": "give some of key,email,ip,phone,card,iban,ssn",
    "--privacy mask --privacy-kinds card,name": "privacy-kinds card,name: give some of key,email",
    "--poisoning true": "Give the model with --reference-model",
    "--reference-model /no/where": "/no/where: no such folder",
    "--block-list /no/where": "/no/where",
    "--contamination /no/where.txt": "no such file",
    "--tokenizer /no/where": "No tokenizer could be loaded",
    "--validation-fraction 1": "--validation-fraction must be at least 0 and less than 1, not 1",
    "--max-length 99999": "train split has .* tokens, but one window of --max-length 99999 needs 100000",
    "--nonsense 1": "Unknown option --nonsense",
}


@pytest.mark.parametrize("line", BAD)
def test_bad_input_is_a_one_line_error_and_leaves_nothing_prepared(line, corpus, tokenizer, tmp_path, capsys):
    arguments = line.split()
    defaults = {"--dataset": corpus, "--output-dir": tmp_path / "p", "--tokenizer": tokenizer, "--max-length": 16}
    if "text" in arguments:
        del defaults["--tokenizer"], defaults["--max-length"]
    for name, value in defaults.items():
        if name not in arguments:
            arguments += [name, value]
    fails(arguments, BAD[line], capsys)
    assert not (tmp_path / "p" / "manifest.json").exists() and not (tmp_path / "p" / "train").exists()


def test_cleaned_rows_without_text_are_refused_by_pretraining_in_one_line(tmp_path, capsys):
    rows = [{"instruction": f"Say {n}.", "output": f"{n}!"} for n in range(20)]
    corpus = write_rows(tmp_path / "rows.jsonl", rows)
    folder, manifest = prepared("--dataset", corpus, "--task", "text", "--output-dir", tmp_path / "p")
    assert manifest["bytes"] == sum(len(f"Say {n}.\n{n}!") for n in range(20))
    run = ["--dataset", folder, "--preset", "tiny", "--output-dir", tmp_path / "run"]
    fails(run, "no column 'text', only instruction, output", capsys, pretrain.main)


def test_held_out_text_of_prepared_data_is_not_trained_on(tmp_path):
    corpus = write_rows(tmp_path / "texts.jsonl", [{"text": f"Text {n} of the sea."} for n in range(40)])
    words = ["--validation-fraction", "0.2", "--test-fraction", "0.1", "--output-dir", tmp_path / "p"]
    folder, _ = prepared("--dataset", corpus, "--task", "text", *words)
    parts = {name: set(rows["text"][:]) for name, rows in open_prepared_text(str(folder)).items()}
    assert [len(parts[name]) for name in ("train", "validation", "test")] == [28, 8, 4]
    assert set(open_documents(str(folder)).rows["text"][:]) == parts["train"]
    assert set(open_rows(Location(str(folder), split="test")).rows["text"][:]) == parts["test"]
    stream = open_stream(str(folder), validation_fraction=0.25)
    streamed = {*stream.read(0, 0), *stream.splits["validation"]["text"][:]}
    assert streamed == parts["train"] and len(stream.splits["validation"]) == 7
    with pytest.raises(ValueError, match="has no split 'dev', only train, validation, test. Choose another split"):
        open_rows(Location(str(folder), split="dev"))


def test_bytes_that_are_not_utf8_are_one_line_errors(tmp_path, capsys):
    (tmp_path / "bad.txt").write_bytes(b"fine so far \xff\xfe and no further")
    fails(["--dataset", tmp_path / "bad.txt", "--output-dir", tmp_path / "p"], r"bad\.txt cannot be read", capsys)


def test_a_pattern_that_never_ends_is_stopped_and_named(tmp_path):
    text, patterns, out = tmp_path / "a.txt", tmp_path / "patterns.txt", tmp_path / "out"
    text.write_text("a" * 60 + "b\n")
    patterns.write_text("/(a+)+$/\n")
    line = ["prepare.py", "--dataset", text, "--block-list", patterns, "--hang-timeout", "0.02", "--output-dir", out]
    done = subprocess.run([sys.executable, *map(str, line)], cwd=TRAINING, capture_output=True, text=True, timeout=100)
    assert done.returncode and done.stderr.strip().splitlines()[-1] == (
        f"error: no progress for 1.2 seconds. {out / '.work' / 'stacks.txt'} has the stacks of all threads. "
        "The same command resumes after the parts that are complete."
    )
    assert "in blocked_term" in (out / ".work" / "stacks.txt").read_text()


def test_a_column_of_numbers_is_a_one_line_error(tmp_path, capsys):
    corpus = write_rows(tmp_path / "numbers.jsonl", [{"text": 3}, {"text": 4}])
    fails(["--dataset", corpus, "--output-dir", tmp_path / "p"], "has the type Value.*not text", capsys)


def test_empty_and_one_token_documents_are_counted_and_kept(tokenizer, texts, tmp_path):
    rows = ["", "a", None, *texts[:20]]
    corpus = write_rows(tmp_path / "texts.jsonl", [{"text": text} for text in rows])
    words = ["--dataset", corpus, "--tokenizer", tokenizer, "--max-length", "16", "--pack", "true"]
    _, manifest = prepared(*words, "--output-dir", tmp_path / "p")
    assert manifest["filters"]["empty"] == {"in": 23, "removed": 2}
    assert sum(split["documents"] for split in manifest["splits"].values()) == 21


def test_one_long_line_is_prepared_completely(tokenizer, texts, tmp_path):
    text = " ".join(texts) * 60  # more than one call of the tokenizer encodes
    assert len(text) > 2**20
    corpus = write_rows(tmp_path / "long.jsonl", [{"text": text}, *({"text": short} for short in texts[:3])])
    words = ["--dataset", corpus, "--tokenizer", tokenizer, "--max-length", "128", "--pack", "true"]
    _, manifest = prepared(*words, "--validation-fraction", "0", "--output-dir", tmp_path / "p")
    ids = load_tokenizer(tokenizer)(text, verbose=False)["input_ids"]
    assert manifest["tokens"] >= len(ids) and manifest["splits"]["train"]["cut_share"] > 0.99
