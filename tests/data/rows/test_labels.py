"""Test labeled texts: no text is in two splits, each split has each class, the order of rows does not matter."""

import json
from collections import Counter

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from hypothesis import given, settings
from hypothesis import strategies as st

from scratch_gpt.data.rows.collate import collate_labeled
from scratch_gpt.data.rows.labels import (
    Examples,
    LabeledRows,
    class_weights,
    count_classes,
    distinct_rows,
    match_labels,
    read_examples,
    rows_not_in,
    split_examples,
    undersample,
)
from scratch_gpt.data.sources.documents import open_rows


def numbered(**classes: int) -> Examples:
    """Return the given number of distinct texts of each class."""
    pairs = [(f"{name} {n}", name) for name, count in classes.items() for n in range(count)]
    return Examples([text for text, _ in pairs], [name for _, name in pairs])


# --- Splits ------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    copies=st.lists(st.integers(1, 4), min_size=24, max_size=60),
    classes=st.integers(2, 4),
    seed=st.integers(0, 9),
)
def test_each_row_is_in_one_split_and_no_text_in_two_splits(copies, classes, seed):
    pairs = [
        (f"text  {n}" if k % 2 else f"text {n} ", f"c{n % classes}") for n, c in enumerate(copies) for k in range(c)
    ]
    examples = Examples([text for text, _ in pairs], [label for _, label in pairs])
    parts = split_examples(examples, 0.1, 0.2, seed)
    assert sorted(np.concatenate([*parts.values()])) == list(range(len(pairs)))
    texts = [{" ".join(text.split()) for text in examples.take(part).texts} for part in parts.values()]
    assert sum(map(len, texts)) == len(set().union(*texts)) == len(copies)
    assert all(set(examples.take(part).labels) == set(examples.labels) for part in parts.values())


def test_each_class_has_the_same_shares():
    examples = numbered(rare=10, some=100, many=1000)
    parts = split_examples(examples, 0.1, 0.2, seed=3)
    counts = {name: count_classes(examples.take(part).labels) for name, part in parts.items()}
    assert counts["train"] == {"many": 700, "rare": 7, "some": 70}
    assert counts["validation"] == {"many": 100, "rare": 1, "some": 10}
    assert counts["test"] == {"many": 200, "rare": 2, "some": 20}


def test_a_split_is_a_function_of_the_seed():
    examples = numbered(a=50, b=50)
    one, same, other = (split_examples(examples, seed=seed)["test"].tolist() for seed in (1, 1, 2))
    assert one == same != other


def test_with_several_labels_every_label_is_in_every_split():
    generator = np.random.default_rng(0)
    labels = [
        frozenset(np.array(["a", "b", "c"])[generator.random(3) < (0.7, 0.4, 0.06)].tolist()) for _ in range(300)
    ]
    examples = Examples([f"text {n}" for n in range(300)], labels)
    parts = split_examples(examples, 0.1, 0.2, seed=0)
    assert sum(map(len, parts.values())) == 300
    whole = count_classes(labels)
    for name, fraction in (("validation", 0.1), ("test", 0.2)):
        counts = count_classes(examples.take(parts[name]).labels)
        assert all(abs(counts[label] - fraction * whole[label]) < 0.06 * whole[label] + 2 for label in whole)
        assert min(counts.values()) > 0


# --- Balance -----------------------------------------------------------------------------------------------------


def test_undersampling_balances_the_classes_and_depends_only_on_the_seed():
    labels = numbered(ham=90, spam=17, eggs=30).labels
    chosen = undersample(labels, 0)
    assert Counter(labels[n] for n in chosen) == {"ham": 17, "spam": 17, "eggs": 17}
    assert chosen.tolist() == undersample(labels, 0).tolist() != undersample(labels, 1).tolist()


def test_class_weights_balance_the_classes_and_average_one_per_row():
    labels = numbered(ham=90, spam=10).labels
    ham, spam = class_weights(labels)
    assert 90 * ham == pytest.approx(10 * spam) and 90 * ham + 10 * spam == pytest.approx(100)


def test_the_first_of_equal_texts_is_kept():
    assert distinct_rows(["b", "a", "b", "c", "a"]).tolist() == [0, 1, 3]


# --- Classes -----------------------------------------------------------------------------------------------------


def test_the_order_of_classes_does_not_depend_on_the_order_of_rows():
    labels = ["10", "9", "word", "Zoo", "-1", "9", "--5"]
    assert [*count_classes(labels)] == [*count_classes(labels[::-1])] == ["-1", "9", "10", "--5", "Zoo", "word"]


def test_labels_by_name_by_number_and_by_the_datasets_names_are_the_same():
    texts = ["x", "y", "z\n"]
    by_name = read_examples(texts, ["ham", " spam", "ham"])
    assert by_name[:2] == read_examples(texts, [0, 1, 0], names=["ham", "spam"])[:2]
    assert by_name.texts == ["x", "y", "z"]
    numbers = read_examples(texts, [0, 1, 0]).labels
    assert numbers == read_examples(texts, [0.0, 1.0, 0.0]).labels == read_examples(texts, ["0", "1", "0"]).labels


def test_several_labels_come_as_a_list_or_joined():
    joined = read_examples(["x", "y", "z"], ["a; b", "b", "a;b;c"], separator=";")
    assert joined == read_examples(["x", "y", "z"], [["b", "a"], ["b"], ["c", "a", "b"]])
    assert joined.has_many and count_classes(joined.labels) == {"a": 2, "b": 3, "c": 1}


def test_a_data_set_that_names_its_classes_decides_their_order_and_keeps_those_without_rows(tmp_path):
    names = ["world", "sports", "never", "business"]
    columns = Features({"text": Value("string"), "label": ClassLabel(names=names)})
    rows = {"text": ["a", "b", "c", "d"], "label": ["business", "world", "sports", "world"]}
    Dataset.from_dict(rows, columns).to_parquet(tmp_path / "a.parquet")
    opened = open_rows(str(tmp_path / "a.parquet")).rows
    examples = read_examples(opened["text"][:], opened["label"][:], names=opened.features["label"].names)
    assert [*examples.classes.items()] == [("world", 2), ("sports", 1), ("never", 0), ("business", 1)]
    assert [*examples.take([0]).classes] == names
    assert class_weights(examples.labels, names) == pytest.approx([2 / 3, 4 / 3, 1, 4 / 3])
    assert len(undersample(examples.labels, 0)) == 3
    some = read_examples([f"t{n}" for n in range(12)], [0, 1, 3] * 4, names=names)
    assert {*split_examples(some)} == {"train", "validation", "test"}


def test_only_absent_values_are_refused_as_labels():
    labels = ["nan", "NaN", "3.1", "3.10", "007", "7", "None"]
    assert read_examples([f"t{n}" for n in range(7)], labels).labels == labels


KNOWN = ["0", "1", "10", "word"]


def test_labels_are_matched_by_spelling_else_by_number():
    examples = Examples(["a", "b", "c", "d"], ["1.0", "00", "word", "10"])
    matched = match_labels(examples, KNOWN, has_many=False)
    assert matched.labels == ["1", "0", "word", "10"] and [*matched.classes] == KNOWN
    assert match_labels(Examples(["a"], ["1.0"]), ["1.0", "1"], False).labels == ["1.0"]
    several = match_labels(Examples(["a", "b"], [frozenset(["1.0", "word"]), frozenset()]), KNOWN, True)
    assert several.labels == [{"1", "word"}, frozenset()]
    assert match_labels(Examples(["a"], ["word"]), KNOWN, True).labels == [{"word"}]


@pytest.mark.parametrize(
    ("labels", "known", "message"),
    [
        (["2"], KNOWN, "Label '2' was not seen in training; known are 0, 1, 10, word"),
        (["Word"], KNOWN, "Label 'Word' was not seen"),
        (["1e1"], KNOWN, "Label '1e1' was not seen"),
        (["01"], ["1", "1.0"], "Label '01' is ambiguous: it matches"),
        (["1", "1.0"], KNOWN, "Labels '1' and '1.0' both match the class '1'"),
        ([frozenset(["1"])], KNOWN, "several labels each, but the model predicts one"),
    ],
)
def test_labels_that_match_no_class_or_become_one_are_named(labels, known, message):
    with pytest.raises(ValueError, match=message):
        match_labels(Examples(["x"] * len(labels), labels), known, has_many=False)


def test_rows_of_another_data_set_are_recognized_by_their_text():
    assert rows_not_in(["a  b", "c", "a b ", "d"], ["a b", "d"]) == [1]


# --- Rows --------------------------------------------------------------------------------------------------------


def letters(texts: list[str]) -> list[list[int]]:
    return [[ord(letter) - 96 for letter in text] for text in texts]


def test_rows_hold_ids_and_labels_and_count_what_is_cut():
    rows = LabeledRows(Examples(["abcd", "ab", "ab"], ["spam", "ham", "ham"]), letters, {"ham": 0, "spam": 1}, 3)
    assert (rows.cut, rows.lengths, [int(row["labels"]) for row in rows]) == (1, [3, 2, 2], [1, 0, 0])
    facts = rows.facts()
    assert (facts["rows"], facts["duplicates"], facts["tokens"], facts["classes"]) == (3, 1, 7, {"ham": 2, "spam": 1})
    batch = collate_labeled([*rows], pad_token_id=9)
    assert batch["input_ids"].tolist() == [[1, 2, 3], [1, 2, 9], [1, 2, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0], [1, 1, 0]]
    assert batch["labels"].tolist() == [1, 0, 0]
    several = LabeledRows(Examples(["a", "b"], [frozenset("xz"), frozenset()]), letters, {"x": 0, "y": 1, "z": 2}, 3)
    assert collate_labeled([*several])["labels"].tolist() == [[1, 0, 1], [0, 0, 0]]


def test_the_hash_depends_on_ids_and_labels():
    def digest(texts, labels):
        return LabeledRows(Examples(texts, labels), letters, {"x": 0, "y": 1}, 9).facts()["sha256"]

    assert (
        len({digest(["ab", "c"], ["x", "y"]), digest(["a", "bc"], ["x", "y"]), digest(["ab", "c"], ["y", "x"])}) == 3
    )


def test_a_file_without_header_is_read_exactly(tmp_path):
    lines = ['ham\tHe said "no', "spam\tNA", 'ham\t"quoted" null', "spam\t"]
    (tmp_path / "a.tsv").write_text("\n".join(lines) + "\n")
    rows = open_rows(str(tmp_path / "a.tsv"), column_names=["label", "text"]).rows
    assert [f"{row['label']}\t{row['text'] or ''}" for row in rows] == lines
    (tmp_path / "b.tsv").write_text("\n".join(["label\ttext", *lines]) + "\n")  # the same rows with a header
    rows = open_rows(str(tmp_path / "b.tsv")).rows
    assert [f"{row['label']}\t{row['text'] or ''}" for row in rows] == lines
    (tmp_path / "b.csv").write_text('label,text,stars\nham,None,1\nspam,"NA, null",\nham,,3\n')
    rows = open_rows(str(tmp_path / "b.csv")).rows
    assert (rows["text"][:], rows["stars"][:]) == (["None", "NA, null", ""], ["1", "", "3"])
    (tmp_path / "a.csv").write_text('ham,"one, two"\nspam,three\n')
    assert open_rows(str(tmp_path / "a.csv"), column_names=["label", "text"]).rows["text"][:] == ["one, two", "three"]
    with pytest.raises(ValueError, match=r"a\.csv has 2 columns, but column_names gives 1: text"):
        open_rows(str(tmp_path / "a.csv"), column_names=["text"])
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "a"}))
    with pytest.raises(ValueError, match=r"without a header; a\.jsonl is not one"):
        open_rows(str(tmp_path / "a.jsonl"), column_names=["text"])


def test_the_sms_spam_collection_has_its_5574_rows(data):
    rows = open_rows(str(data / "classification" / "sms_spam.tsv"), column_names=["label", "text"]).rows
    examples = read_examples(rows["text"][:], rows["label"][:])
    assert count_classes(examples.labels) == {"ham": 4827, "spam": 747}
    distinct = examples.take(distinct_rows(examples.texts))
    assert len(distinct.texts) == 5171 and count_classes(distinct.labels)["spam"] == 653


# --- Invalid input -----------------------------------------------------------------------------------------------

BAD = {
    "one class only": (["x", "y"], ["a", "a"], {}, "At least 2 classes are needed, but the labels contain only a"),
    "an empty text": (["x", " \n"], ["a", "b"], {}, "Row 2 has an empty text"),
    "no text": (["x", None], ["a", "b"], {}, "Row 2 has an empty text"),
    "no label": (["x", "y", "z"], ["a", "b", None], {}, r"Row 3 has no label \(None\)"),
    "an empty label": (["x", "y", "z"], ["a", "b", " "], {}, "Row 3 has no label"),
    "NaN": (["x", "y", "z"], [0.0, 1.0, float("nan")], {}, "Row 3 has no label"),
    "a name of none": (["x", "y"], ["a", "c"], {"names": ["a", "b"]}, "Row 2 has the label 'c'; .* are a, b"),
    "an unlabeled row": (["x", "y", "z"], [0, 1, -1], {"names": ["a", "b"]}, "Row 3 has the label -1"),
    "no list": (["x", "y"], [["a", "b"], None], {}, "Row 2 has no label"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_columns_are_one_line_errors(case):
    texts, labels, options, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        read_examples(texts, labels, **options)


def test_bad_splits_and_labels_are_one_line_errors():
    with pytest.raises(ValueError, match="Class 'b' has 2 distinct texts, but there are 3 splits"):
        split_examples(Examples(["x", "y", "z", "1", "2", "1 "], ["a", "a", "a", "b", "b", "b"]))
    with pytest.raises(ValueError, match="leave nothing to train on"):
        split_examples(numbered(a=9, b=9), 0.5, 0.5)
    with pytest.raises(ValueError, match=r"validation_fraction must be .*, not 1\.5"):
        split_examples(numbered(a=9, b=9), 1.5)
    with pytest.raises(ValueError, match="Label 'z' was not seen in training; known are a, b"):
        LabeledRows(Examples(["x"], ["z"]), letters, {"a": 0, "b": 1}, 9)
    several = [frozenset("ab"), frozenset("a")]
    for balance in (lambda: undersample(several, 0), lambda: class_weights(several)):
        with pytest.raises(ValueError, match="one label per text, but these texts have several"):
            balance()
