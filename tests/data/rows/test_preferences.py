"""Test preference rows: all forms give the same rows, only the last answer is a target, dropped rows are counted."""

import re
from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_model

from scratch_gpt.data.rows import preferences as preference_rows
from scratch_gpt.data.rows.collate import collate_preferences
from scratch_gpt.data.rows.conversations import encode_conversations
from scratch_gpt.data.rows.preferences import Judged, Pair, PreferenceRows, prompt_of, read_preferences
from scratch_gpt.tokenization.chat_templates import store_format
from scratch_gpt.tokenization.training import train_tokenizer


def user(text):
    return {"role": "user", "content": text}


def model(text):
    return {"role": "assistant", "content": text}


PAIR = Pair([user("Well?"), model("Well.")], [user("Well?"), model("No")])
ANSWERS = {"chosen": "Well.", "rejected": "No"}
SPOKEN = {name: [model(text)] for name, text in ANSWERS.items()}
WHOLE = {"chosen": PAIR.chosen, "rejected": PAIR.rejected, "score_chosen": 8.0}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Well?", **ANSWERS},
        {"prompt": [user("Well?")], **SPOKEN},
        {"prompt": "Well?", **WHOLE},
        {"prompt": [user("Well?")], **WHOLE},
        WHOLE,
        {"instruction": "Well?", "input": "", "output": "Well.", **ANSWERS},
    ],
)
def test_every_form_of_a_pair_gives_the_same_rows(row):
    assert read_preferences([row]) == ([PAIR], {"empty": 0, "equal": 0})
    assert read_preferences([row], judged=True)[0] == [Judged(PAIR.chosen, True), Judged(PAIR.rejected, False)]


def test_an_input_follows_its_instruction_and_a_judged_answer_keeps_its_label():
    pair = read_preferences([{"instruction": "Count.", "input": "a b", **ANSWERS}])[0][0]
    assert pair.chosen[0]["content"] == "Count.\n\n### Input:\na b" and pair.chosen[:-1] == pair.rejected[:-1]
    row = {"prompt": "Well?", "completion": "No", "label": False}
    assert read_preferences([row], judged=True)[0] == [Judged(PAIR.rejected, False)]


def test_rows_without_targets_are_dropped_and_counted():
    good = {"prompt": "Well?", **ANSWERS}
    equal, empty = {"prompt": "a", "chosen": "b", "rejected": " b\n"}, {"prompt": "a", "chosen": "b", "rejected": " "}
    assert read_preferences([equal, good, empty, equal]) == ([PAIR], {"empty": 1, "equal": 2})
    with pytest.raises(ValueError, match="in 2 the chosen answer equals the rejected one, and 1 have an empty"):
        read_preferences([equal, empty, equal])


@pytest.mark.parametrize(
    "row, message",
    [
        ({"prompt": "a", "chosen": "b"}, "Row 2: a row has the keys prompt, chosen; it needs prompt, chosen"),
        ({"chosen": "b", "rejected": "c"}, "Row 2: chosen is a text without a prompt"),
        ({"prompt": "a", "completion": "b", "label": True}, "Row 2: .*only loss_type kto"),
        ({"chosen": PAIR.chosen, "rejected": [user("Why?"), model("No")]}, "Row 2: .*their prompts must be equal"),
        ({"prompt": "a", "chosen": 1, "rejected": "c"}, "Row 2: .*must be text"),
        ({"chosen": PAIR.chosen[::-1], "rejected": PAIR.rejected}, "Row 2: the role 'assistant' comes first"),
    ],
)
def test_an_invalid_row_is_named(row, message):
    with pytest.raises(ValueError, match=message):
        read_preferences([{"prompt": "Well?", **ANSWERS}, row])


def test_a_label_is_true_or_false():
    row = {"prompt": "a", "completion": "b"}
    for good, bad in (("true", "false"), ("TRUE", "False"), ("1", "0"), (" True", "FALSE\t"), (1, 0), (1.0, 0.0)):
        found, _ = read_preferences([{**row, "label": good}, {**row, "label": bad}], judged=True)
        assert [item.preference for item in found] == [True, False]
    for label in ("yes", "", "2", 2, [True]):
        with pytest.raises(ValueError, match=re.escape(f"the label must be true or false, or 1 or 0, not {label!r}")):
            read_preferences([{**row, "label": label}], judged=True)


# --- Rows of ids -------------------------------------------------------------------------------------------------

TOKENIZER = train_tokenizer(["The sea is calm. No, it is wild and cold; why would it be calm?"] * 9, vocab_size=280)
TURNS = [user("Is the sea calm?"), model("The sea is wild."), user("Why?")]
PAIRS = [
    Pair([user("Is it?"), model("The sea is calm.")], [user("Is it?"), model("No.")]),
    Pair([*TURNS, model("No.")], [*TURNS, model("It is cold and wild.")]),
]


def with_format(name):
    tokenizer, lm = train_tokenizer(["The sea is calm."], vocab_size=280), tiny_model(vocab_size=280)
    store_format(tokenizer, name, lm)
    return tokenizer


ENCODE = partial(encode_conversations, TOKENIZER)


def target_text(tokenizer, row) -> str:
    return tokenizer.decode(row["shift_labels"][row["shift_labels"] != -100])


@pytest.mark.parametrize("prompt_format", ["alpaca", "book", "chatml", "phi3", "plain"])
def test_only_the_last_answer_and_its_end_token_are_targets(prompt_format):
    tokenizer = with_format(prompt_format)
    rows = PreferenceRows(PAIRS, partial(encode_conversations, tokenizer), 512)
    for k, pair in enumerate(PAIRS):
        for row, messages in zip(rows[k]["answers"], pair, strict=True):
            assert target_text(tokenizer, row) == messages[-1]["content"] + tokenizer.eos_token
            is_target = row["shift_labels"][:-1] != -100
            assert np.array_equal(row["shift_labels"][:-1][is_target], row["input_ids"][1:][is_target])
    one, other = (row["input_ids"] for row in rows[0]["answers"])
    same = int(np.flatnonzero(rows[0]["answers"][0]["shift_labels"] != -100)[0]) + 1
    assert np.array_equal(one[:same], other[:same])


def test_too_long_rows_keep_the_answers_start_and_are_counted():
    whole = PreferenceRows(PAIRS, ENCODE, 512)
    starts = [int(np.flatnonzero(row["shift_labels"] != -100)[0]) for row in whole.pairs[0]]
    rows = PreferenceRows(PAIRS, ENCODE, starts[0] + 3)
    assert (len(rows), rows.cut, rows.left_out) == (1, 1, {"dropped": 1, "equal": 0})
    kept = rows[0]["answers"][0]["shift_labels"]
    assert np.array_equal(kept, whole.pairs[0][0]["shift_labels"][: starts[0] + 3]) and (kept != -100).sum() == 3
    alike = [Pair([user("Is it?"), model("It is calm.")], [user("Is it?"), model("It is cold.")]), PAIRS[0]]
    assert PreferenceRows(alike, ENCODE, starts[0] + 2).left_out == {"dropped": 0, "equal": 1}
    with pytest.raises(ValueError, match="None of 2 rows has two different answers within 3 tokens"):
        PreferenceRows(PAIRS, ENCODE, 3)


def test_a_judged_answer_is_paired_with_an_answer_to_another_prompt():
    items = [Judged([user(f"Is {n} calm?"), model(f"No {n}.")], n % 2 == 0) for n in range(7)]
    rows = PreferenceRows(items, ENCODE, 512, seed=3)
    texts = [[TOKENIZER.decode(row["input_ids"]) for row in rows[k]["answers"]] for k in range(7)]
    others = [target_text(TOKENIZER, rows[k]["answers"][1]) for k in range(7)]
    assert all(f"Is {k} calm?" in text for k in range(7) for text in texts[k])
    assert sorted(others) == [f"No {n}.{TOKENIZER.eos_token}" for n in range(7)]
    assert all(f"No {k}." not in others[k] for k in range(7))
    assert rows.facts() == PreferenceRows(items, ENCODE, 512, seed=3).facts() != rows_facts(items, seed=4)
    assert rows.facts()["desirable"] == 4 and [rows[k]["preference"] for k in range(3)] == [True, False, True]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(prompts=st.lists(st.sampled_from("abcdef"), min_size=2, max_size=40), seed=st.integers(0, 9))
def test_the_other_answer_always_belongs_to_another_prompt(prompts, seed):
    said = [[user(f"{prompt}?"), model(f"{prompt} {n}")] for n, prompt in enumerate(prompts)]
    if len(set(prompts)) == 1:
        with pytest.raises(ValueError, match=f"All {len(prompts)} rows have the same prompt"):
            preference_rows._answers_to_others(said, seed)
        return
    found = preference_rows._answers_to_others(said, seed)
    assert found == preference_rows._answers_to_others(said, seed)
    assert [messages[:-1] for messages in found] == [messages[:-1] for messages in said]
    used = Counter(messages[-1]["content"] for messages in found)
    assert all(answer[0] != messages[0]["content"][0] for messages in found for answer in [messages[-1]["content"]])
    (_, most), *_ = Counter(prompts).most_common()
    # Each answer is used once; if one prompt has more than half of the rows, the answers to the others are repeated.
    others = -(-most // (len(prompts) - most))
    assert max(used.values()) <= others and (2 * most > len(prompts) or set(used.values()) == {1})


def rows_facts(items, seed):
    return PreferenceRows(items, ENCODE, 512, seed=seed).facts()


def test_a_batch_has_first_answers_before_second_ones():
    rows = PreferenceRows(PAIRS, ENCODE, 512)
    rows.reference_logps = np.arange(4, dtype=np.float32).reshape(2, 2)
    batch = collate_preferences([rows[0], rows[1]], pad_token_id=7)
    for n in range(4):
        row = rows[n % 2]["answers"][n // 2]
        size = len(row["input_ids"])
        assert batch["input_ids"][n, :size].tolist() == row["input_ids"].tolist()
        assert (batch["input_ids"][n, size:] == 7).all() and (batch["shift_labels"][n, size:] == -100).all()
    assert torch.equal(batch["reference_logps"], torch.tensor([0.0, 2.0, 1.0, 3.0]))
    assert prompt_of(PAIRS[1]) == "Is the sea calm?\n\nThe sea is wild.\n\nWhy?"
