"""Test splitting texts: shares hold, nothing is lost, no text is in two splits, runs keep their splits."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scratch_gpt.data.manifest import read_manifest
from scratch_gpt.data.sources.documents import open_prepared_text, open_rows, open_splits
from scratch_gpt.data.sources.location import Location
from scratch_gpt.data.splits import is_near, split_numbers, split_texts
from scratch_gpt_training import instruct, prepare, pretrain
from scratch_gpt_training.support import command_line


WORDS = "the old grey cat sat on a warm mat and saw nine small birds fly over every roof near our quiet town".split()


def prose(size: int, seed: int = 0) -> str:
    """Return about `size` bytes of text in lines."""
    generator = np.random.default_rng(seed)
    lines = [" ".join(generator.choice(WORDS, 9)) for _ in range(size // 30)]
    return ("\n".join(lines) + "\n")[:size]


def split(texts: list[str], *fractions: float, seed: int = 0, **options) -> dict[str, list[str]]:
    """Return the texts of each split, after checks that hold for every split."""
    sizes = np.array([len(text.encode()) for text in texts])
    numbers, pieces = split_texts(sizes, texts.__getitem__, *fractions, seed, **options)
    found = np.concatenate([*numbers.values()])
    cut = {number for number, _ in pieces}
    assert sorted(found) == sorted({*range(len(texts) + len(pieces))} - cut)
    for number in cut:
        assert "".join(piece for n, piece in pieces if n == number) == texts[number]
    every = [*texts, *(piece for _, piece in pieces)]
    return {name: [every[n] for n in chosen] for name, chosen in numbers.items()}


def shares(splits: dict[str, list[str]]) -> dict[str, float]:
    sizes = {name: len("".join(texts).encode()) for name, texts in splits.items()}
    return {name: size / sum(sizes.values()) for name, size in sizes.items()}


LETTERS = st.sampled_from(["a", "b", "\u00e9", "\u4f60", "\U0001f600", "e\u0301", " ", "\n", "\r\n", ". "])


@given(
    texts=st.lists(
        st.one_of(
            st.lists(LETTERS, min_size=1, max_size=40).map("".join), st.integers(1, 5000).map(lambda n: prose(n, n))
        ),
        min_size=1,
        max_size=12,
    ),
    again=st.lists(st.integers(0, 11), max_size=3),
    fractions=st.sampled_from([(0.1, 0.0), (0.1, 0.1), (0.05, 0.2), (0.5, 0.0), (0.0, 0.3)]),
    seed=st.integers(0, 3),
)
@settings(deadline=None, max_examples=300)
def test_shares_hold_for_texts_of_any_sizes_and_nothing_is_lost(texts, again, fractions, seed):
    texts = [text for text in texts if text.strip()] + [prose(1500, 77)]
    texts += [texts[n] for n in again if n < len(texts)]
    splits = split(texts, *fractions, seed=seed)
    for name, fraction in zip(("validation", "test"), fractions, strict=True):
        assert (name in splits) == (fraction > 0)
        assert fraction == 0 or is_near(shares(splits)[name], fraction)
    assert split(texts, *fractions, seed=seed) == splits


@given(
    sizes=st.lists(st.integers(50, 20_000), min_size=1, max_size=6, unique=True),
    copies=st.integers(1, 3),
    seed=st.integers(0, 5),
)
@settings(deadline=None, max_examples=100)
def test_no_text_is_in_two_splits_and_the_order_of_files_does_not_matter(sizes, copies, seed):
    texts = [prose(size, size) for size in sizes if prose(size, size).strip()] * copies
    orders = (texts, texts[::-1])
    if not all(split_texts(np.array([*map(len, some)]), some.__getitem__, 0.1, 0.1, seed)[1] for some in orders):
        return  # split by number of texts, without cutting any
    splits = {name: {*part} for name, part in split(texts, 0.1, 0.1, seed=seed).items()}
    assert not splits["train"] & (splits["validation"] | splits["test"]) and not splits["validation"] & splits["test"]
    assert {name: {*part} for name, part in split(texts[::-1], 0.1, 0.1, seed=seed).items()} == splits


@given(
    texts=st.lists(st.sampled_from([prose(300 + 7 * n, n) for n in range(20)]), min_size=30, max_size=60),
    seed=st.integers(0, 99),
)
@settings(deadline=None)
def test_copies_among_many_texts_are_in_one_split(texts, seed):
    found = [{*part} for part in split(texts, 0.1, 0.1, seed=seed).values()]
    assert not any(found[a] & found[b] for a, b in ((0, 1), (0, 2), (1, 2)))


def test_copies_of_a_text_stay_together_and_are_cut_at_the_same_place():
    text, other = prose(30_000), prose(2000, 1)
    splits = split([text, other, text], 0.1, 0.0)
    assert is_near(shares(splits)["validation"], 0.1)
    assert not {*splits["train"]} & {*splits["validation"]}
    assert len({*splits["train"]} | {*splits["validation"]}) == 3  # `other` and the two halves of `text`


@pytest.mark.parametrize("n", [2, 3, 7])
def test_texts_are_cut_at_the_end_of_a_line_a_word_or_a_character(n):
    for texts, ends in (
        ([prose(9000, k) for k in range(n)], "\n"),
        ([" ".join(prose(9000, k).split()) for k in range(n)], " "),
        (["\u4f60\u597d\u5417\u3002" * 700 + "\u4f60" * (1 + k) for k in range(n)], "\u3002"),
        (["e\u0301" * (2000 + k) for k in range(n)], "\u0301"),
        (["a\U0001f469\u200d\U0001f52c" * (400 + k) for k in range(n)], ("a", "\U0001f52c")),
    ):
        _, pieces = split_texts(np.array([len(t.encode()) for t in texts]), texts.__getitem__, 0.04, 0.03)
        assert pieces
        for place, (number, piece) in enumerate(pieces):
            if [k for k, _ in pieces[place + 1 :] if k == number]:  # not the last piece of its text
                assert piece.endswith(ends)


def test_a_split_by_number_is_kept_if_it_has_the_right_shares():
    texts = [prose(900 + 17 * k, k) for k in range(50)]
    numbers, pieces = split_texts(np.array([len(text) for text in texts]), texts.__getitem__, 0.1, 0.2, seed=3)
    expected = split_numbers(50, 0.1, 0.2, seed=3)
    assert not pieces and {name: chosen.tolist() for name, chosen in numbers.items()} == {
        name: chosen.tolist() for name, chosen in expected.items()
    }


def test_one_large_text_among_small_ones_does_not_distort_the_shares():
    texts = [prose(500_000), *(prose(1000, k) for k in range(1, 40))]
    for seed in range(5):
        assert is_near(shares(split(texts, 0.1, 0.0, seed=seed))["validation"], 0.1)
    assert not is_near(shares(split(texts, 0.1, 0.0, by_number=True))["validation"], 0.1)


@pytest.mark.parametrize("texts", [["a"], ["a", "b"], ["ab"], ["a "], ["  "]])
def test_too_little_text_is_a_one_line_error(texts):
    with pytest.raises(ValueError, match="bytes of text cannot be split into train, validation and test. Add text"):
        split(texts, 0.1, 0.1)
    assert set(split(texts, 0.0, 0.0)) == {"train"}


# --- In the recipes ----------------------------------------------------------------------------------------------


@pytest.fixture
def two_files(tmp_path):
    """Create a folder with files of 60 kB and 20 kB."""
    (tmp_path / "books").mkdir()
    for name, size in (("a", 60_000), ("b", 20_000)):
        (tmp_path / "books" / f"{name}.txt").write_text(prose(size, size))
    return tmp_path / "books"


def test_two_files_of_any_size_give_a_validation_split_of_a_tenth(two_files):
    splits, _, _ = open_splits(str(two_files))
    texts = {name: "".join(part["text"]) for name, part in splits.items()}
    assert is_near(len(texts["validation"]) / 80_000, 0.1)
    assert sorted("".join(texts.values())) == sorted("".join(file.read_text() for file in two_files.iterdir()))
    old, _, _ = open_splits(str(two_files), by_number=True)
    assert sorted(len(part["text"][0]) for part in old.values()) == [20_000, 60_000]


@pytest.mark.parametrize("task", ["text", "pretrain"])
def test_prepared_data_have_the_split_that_training_makes(task, two_files, tmp_path, capsys):
    common = ["--dataset", str(two_files), "--test-fraction", "0.05"]
    prepare.main([*common, "--task", task, "--output-dir", str(tmp_path / "p")])
    said = capsys.readouterr().out
    splits, _, _ = open_splits(str(two_files), test_fraction=0.05)
    manifest = read_manifest(tmp_path / "p")
    for name, fraction in (("validation", 0.1), ("test", 0.05)):
        facts = manifest["splits"][name]
        assert facts["bytes"] == len("".join(splits[name]["text"])) and is_near(facts["share"], fraction)
        assert f"{100 * facts['share']:.1f} % of the text" in said
    assert "not the" not in said
    if task == "text":
        found = open_prepared_text(str(tmp_path / "p"))
        assert {name: part["text"][:] for name, part in found.items()} == {
            name: part["text"][:] for name, part in splits.items()
        }


def test_rows_with_other_columns_are_never_cut_and_a_missed_share_is_reported(tmp_path, capsys):
    rows = [{"text": prose(size, size), "label": "ham"} for size in (60_000, 20_000)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepare.main(["--dataset", str(tmp_path / "rows.jsonl"), "--task", "text", "--output-dir", str(tmp_path / "p")])
    share = read_manifest(tmp_path / "p")["splits"]["validation"]["share"]
    assert f"validation is {100 * share:.1f} % of the text, not the 10 % of --validation-fraction" in (
        capsys.readouterr().out
    )
    found = [open_rows(Location(str(tmp_path / "p"), split=name)).rows[0] for name in ("train", "validation")]
    assert sorted(found, key=len) == sorted(rows, key=len) or found == rows[::-1]


def test_row_groups_that_miss_a_share_are_reported(tmp_path):
    rows = [{"instruction": f"Say {n % 3}.", "output": f"{n}."} for n in range(27)] + [
        {"instruction": "Say less.", "output": "Less."},
        {"instruction": "Say more.", "output": "More."},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--dataset", str(tmp_path / "rows.jsonl"), "--validation-fraction", "0.3", "--test-fraction", "0.2"]
    splits, _, notices = instruct.read_splits(command_line.parse(instruct.InstructRun, words))
    assert {name: len(part) for name, part in splits.items()} == {"train": 18, "validation": 9, "test": 2}
    assert [line.split(":")[0] for line in notices] == ["test is 6.9 % of the rows, not the 20 % of --test-fraction"]


def test_a_run_of_an_older_version_keeps_its_split_when_resumed(two_files, tmp_path, monkeypatch):
    words = ["--dataset", str(two_files), "--preset", "tiny", "--vocab-size", "300", "--max-length", "16"]
    words += ["--config-overrides", "hidden_size=32,num_hidden_layers=1", "--checkpoint-every", "1"]
    words += ["--eval-batches", "1", "--output-dir", str(tmp_path / "run")]
    with monkeypatch.context() as older:
        older.setattr(pretrain, "matches_older", lambda run: True)
        pretrain.main([*words, "--max-steps", "1"])
    before = read_manifest(tmp_path / "run")
    assert "split_by" not in before and not is_near(before["splits"]["validation"]["bytes"] / 80_000, 0.1)
    pretrain.main([*words, "--max-steps", "2", "--resume", "latest"])
    assert read_manifest(tmp_path / "run") == before
    step = tmp_path / "run" / "checkpoints" / "step-1"
    for more in (["--resume", str(step)], ["--manifest", str(tmp_path / "run")]):
        made = pretrain.make_rows(command_line.parse(pretrain.PretrainRun, [*words, *more]))[3]
        assert made["splits"] == before["splits"]
    made = pretrain.make_rows(command_line.parse(pretrain.PretrainRun, words))[3]
    assert made["split_by"] and is_near(made["splits"]["validation"]["bytes"] / 80_000, 0.1)
