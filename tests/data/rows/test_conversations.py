"""Test conversations: targets decode to the answers in every format, for every truncation."""

import json
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_model
from torch.testing import assert_close

from scratch_gpt.data.rows.collate import collate_rows
from scratch_gpt.data.rows.conversations import (
    EmptyAnswer,
    PromptRows,
    count_asked_bytes,
    describe_answer,
    encode_conversations,
    encode_messages,
    encode_prompt,
    read_conversations,
    read_messages,
    show_asked,
    text_of,
    transcript,
)
from scratch_gpt.data.rows.preferences import read_preferences
from scratch_gpt.data.splits import split_groups
from scratch_gpt.generation.generate import generate_answers
from scratch_gpt.tokenization.chat_templates import FORMATS, INPUT, store_format
from scratch_gpt.tokenization.tokenizer import encode, load_tokenizer
from scratch_gpt.tokenization.training import train_tokenizer
from scratch_gpt.train.objectives import causal_lm


TEXTS = [
    "Below is an instruction. Write a response.\n\n### Input: user assistant system",
    "Well? Well, the sea is wide.",
]


def tokenizer_of(prompt_format: str | None, kind: str = "bpe"):
    tokenizer = train_tokenizer(TEXTS * 2, 400, kind=kind)
    if prompt_format is not None:
        store_format(tokenizer, prompt_format)
    return tokenizer


TOKENIZERS = cache(tokenizer_of)
spellings = ["<|endoftext|>", "<|im_end|>", "<|im_start|>", "<|assistant|>", "<|end|>", "### Response:", INPUT]
words = st.one_of(st.sampled_from(spellings), st.text(alphabet="a\u00e9\ue000 \n?.<|>", max_size=6))
texts = st.lists(words, min_size=1, max_size=4).map("".join).filter(str.strip)


@st.composite
def conversations(draw, turns: int = 3):
    """Draw messages that end with one of the assistant."""
    system = [{"role": "system", "content": draw(texts)}] if draw(st.booleans()) else []
    pairs = draw(st.lists(st.tuples(texts, texts), min_size=1, max_size=turns))
    parts = [part for one, other in pairs for part in (("user", one), ("assistant", other))]
    return system + [{"role": role, "content": text} for role, text in parts]


def answers_of(messages, prompt_format: str) -> list[str]:
    found = [message["content"] for message in messages if message["role"] == "assistant"]
    return found if prompt_format == "plain" else [answer.strip() for answer in found]


# --- Targets -----------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None, derandomize=True)
@given(messages=conversations(), prompt_format=st.sampled_from([*FORMATS]))
def test_target_tokens_decode_to_the_answers_and_their_end_tokens(messages, prompt_format):
    tokenizer = TOKENIZERS(prompt_format)
    ids, targets = encode_messages(tokenizer, messages)
    learned = tokenizer.decode([id for id, is_target in zip(ids, targets, strict=True) if is_target])
    answers = "".join(answer + tokenizer.eos_token for answer in answers_of(messages, prompt_format))
    assert learned == answers
    assert encode_messages(tokenizer, messages, train_on="prompt+completion") == (ids, [True] * len(ids))
    # Only the template writes special tokens: their number is the same if no message spells one.
    plain = [{**message, "content": "a"} for message in messages]
    special = set(tokenizer.all_special_ids)
    assert sum(id in special for id in ids) == sum(id in special for id in encode_messages(tokenizer, plain)[0])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(messages=conversations(), prompt_format=st.sampled_from([*FORMATS]))
def test_a_prompt_equals_the_training_text_before_the_answer(messages, prompt_format):
    tokenizer = TOKENIZERS(prompt_format)
    ids, targets = encode_messages(tokenizer, messages)
    prompt = encode_prompt(tokenizer, messages)
    assert prompt == encode_prompt(tokenizer, messages[:-1]) == ids[: len(prompt)]
    answer = answers_of(messages, prompt_format)[-1]
    assert tokenizer.decode(ids[len(prompt) :]).rstrip("\n") == (answer + tokenizer.eos_token).rstrip("\n")
    assert targets[len(prompt)]


@pytest.mark.parametrize("prompt_format", [*FORMATS])
def test_transformers_marks_the_same_targets_in_the_instructions_of_a_book(prompt_format, data):
    rows, _ = read_conversations(json.loads((data / "instruction-data.json").read_text())[:60])
    rows.append([{"role": "system", "content": "Be brief."}, *rows[0], *rows[1]])
    tokenizer = TOKENIZERS(prompt_format)
    for messages, (ids, targets) in zip(rows, encode_conversations(tokenizer, rows), strict=True):
        theirs = tokenizer.apply_chat_template(messages, return_assistant_tokens_mask=True, return_dict=True)
        if prompt_format != "plain":  # in "plain" a token may join the end of the question and the start of the answer
            assert theirs["input_ids"] == ids and [bool(n) for n in theirs["assistant_masks"]] == targets
        prompt = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=False)
        assert prompt == encode_prompt(tokenizer, messages)


@pytest.mark.parametrize("kind", ["wordpiece", "unigram", "word", "char"])
@pytest.mark.parametrize("prompt_format", ["alpaca", "book", "chatml", "phi3"])
def test_every_kind_of_tokenizer_has_the_targets_of_transformers(prompt_format, kind):
    tokenizer = tokenizer_of(prompt_format, kind)
    messages = [{"role": "user", "content": "Well?"}, {"role": "assistant", "content": "the sea is wide."}] * 2
    theirs = tokenizer.apply_chat_template(messages, return_assistant_tokens_mask=True, return_dict=True)
    ids, targets = encode_messages(tokenizer, messages)
    assert theirs["input_ids"] == ids and [bool(n) for n in theirs["assistant_masks"]] == targets
    assert targets.count(True) == 2 * (len(encode(tokenizer, "the sea is wide.")) + 1)


def test_the_alpaca_format_is_that_of_its_authors():
    tokenizer = TOKENIZERS("alpaca")
    begin = "Below is an instruction that describes a task"
    end = "Write a response that appropriately completes the request.\n\n### Instruction:\n"
    row = {"instruction": "Spell it. ", "input": "see", "output": "sea"}
    with_input, without = read_messages(row), read_messages({**row, "input": ""})
    assert tokenizer.decode(encode_prompt(tokenizer, with_input)) == (
        f"{begin}, paired with an input that provides further context. {end}Spell it.\n\n### Input:\nsee"
        "\n\n### Response:\n"
    )
    assert tokenizer.decode(encode_prompt(tokenizer, without)) == f"{begin}. {end}Spell it.\n\n### Response:\n"
    assert describe_answer(with_input, "a", None) == {
        "instruction": "Spell it.",
        "input": "see",
        "reference": "sea",
        "before": "a",
        "after": None,
    }


def book_input(entry):
    """Return the prompt of "Build a Large Language Model (From Scratch)", chapter 7, as its `format_input` does."""
    text = (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        f"\n\n### Instruction:\n{entry['instruction']}"
    )
    return text + (f"\n\n### Input:\n{entry['input']}" if entry["input"] else "")


def test_the_book_format_has_one_introduction_with_and_without_input():
    tokenizer = TOKENIZERS("book")
    row = {"instruction": "Spell it.", "input": "see", "output": "sea"}
    for entry in (row, {**row, "input": ""}):
        messages, prompt = read_messages(entry), book_input(entry) + "\n\n### Response:\n"
        assert tokenizer.decode(encode_prompt(tokenizer, messages)) == prompt
        assert tokenizer.decode(encode_messages(tokenizer, messages)[0]) == f"{prompt}sea{tokenizer.eos_token}"
    messages = [{"role": "system", "content": "Be brief."}, *messages]
    assert tokenizer.decode(encode_prompt(tokenizer, messages)).startswith("Be brief.\n\n### Instruction:\nSpell it.")


def test_the_book_format_has_the_tokens_of_the_book(data):
    tokenizer = load_tokenizer(data / "gpt2-tokenizer")
    store_format(tokenizer, "book")
    entries = json.loads((data / "instruction-data.json").read_text())
    conversations, _ = read_conversations(entries)
    assert sum(bool(entry["input"]) for entry in entries) == 325
    texts = [f"{book_input(entry)}\n\n### Response:\n{entry['output']}" for entry in entries]
    expected = [[*encode(tokenizer, text), tokenizer.eos_token_id] for text in texts]
    assert [ids for ids, _ in encode_conversations(tokenizer, conversations)] == expected
    prompts = [encode(tokenizer, book_input(entry) + "\n\n### Response:\n") for entry in entries]
    assert [encode_prompt(tokenizer, messages) for messages in conversations] == prompts


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    messages=conversations(),
    prompt_format=st.sampled_from([*FORMATS]),
    blank=st.text(alphabet=" \n\t", max_size=3),
    tool=st.sampled_from([encode_messages, encode_prompt, lambda _, messages: read_messages({"messages": messages})]),
)
def test_an_empty_system_message_is_ignored_in_every_format(messages, prompt_format, blank, tool):
    tokenizer, messages = TOKENIZERS(prompt_format), [each for each in messages if each["role"] != "system"]
    assert tool(tokenizer, [{"role": "system", "content": blank}, *messages]) == tool(tokenizer, messages)


# --- Rows --------------------------------------------------------------------------------------------------------


def learned(row) -> list[int]:
    return [id for id in row["shift_labels"].tolist() if id != -100]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    some=st.lists(conversations(), min_size=1, max_size=4),
    prompt_format=st.sampled_from([*FORMATS]),
    max_length=st.integers(1, 200),
    pack=st.booleans(),
)
def test_truncation_keeps_an_answers_start_and_is_counted(some, prompt_format, max_length, pack):
    encoded = encode_conversations(TOKENIZERS(prompt_format), some)
    wanted = [  # a target is kept if the token before it is within max_length
        [id for id, is_target in list(zip(ids, targets, strict=True))[1 : max_length + 1] if is_target]
        for ids, targets in encoded
    ]
    if not any(wanted):
        with pytest.raises(ValueError, match="has a target within"):
            PromptRows(encoded, max_length, pack)
        return
    rows = PromptRows(encoded, max_length, pack)
    assert rows.kept == [k for k, ids in enumerate(wanted) if ids] and rows.dropped == len(some) - len(rows.kept)
    assert rows.cut == sum(len(encoded[k][0]) > max_length + 1 for k in rows.kept)
    assert all(len(rows[k]["input_ids"]) == rows.lengths[k] <= max_length for k in range(len(rows)))
    found = sorted(id for k in range(len(rows)) for id in learned(rows[k]))
    assert found == sorted(id for ids in wanted for id in ids) and len(found) == rows.targets
    if not pack:
        assert [learned(rows[k]) for k in range(len(rows))] == [wanted[k] for k in rows.kept]


def test_every_target_is_the_next_token_including_the_first_eos_and_never_padding():
    tokenizer = TOKENIZERS("alpaca")
    tokenizer.pad_token = tokenizer.eos_token  # padding can only be recognized by the lengths
    messages = read_messages({"instruction": "Well?", "output": "Well."})
    encoded = [encode_messages(tokenizer, messages), encode_messages(tokenizer, messages * 2)]
    rows = PromptRows(encoded, 999)
    batch = collate_rows([rows[0], rows[1]], tokenizer.pad_token_id)
    for (ids, _), row, labels in zip(encoded, batch["input_ids"], batch["shift_labels"], strict=True):
        n = len(ids)
        assert row[: n - 1].tolist() == ids[:-1] and labels[n - 2] == tokenizer.eos_token_id
        assert (labels[n - 1 :] == -100).all() and (row[n - 1 :] == tokenizer.pad_token_id).all()
        assert all(label in (-100, following) for label, following in zip(labels.tolist(), ids[1:], strict=False))
    assert rows.targets == sum(targets.count(True) for _, targets in encoded)
    assert count_asked_bytes(tokenizer, rows) == 3 * len("Well.")


@torch.no_grad()
def test_no_conversation_sees_another_if_packed_or_padded(data):
    tokenizer = TOKENIZERS("chatml")
    some, _ = read_conversations(json.loads((data / "instruction-data.json").read_text())[:6])
    encoded = encode_conversations(tokenizer, some)
    model = tiny_model(vocab_size=len(tokenizer), attention="sdpa", max_position_embeddings=300)

    def loss(rows, together: bool) -> float:
        rows = [rows[k] for k in range(len(rows))]
        batches = [rows] if together else [[row] for row in rows]
        return sum(float(causal_lm.sums(model, collate_rows(batch, 0))["loss"]) for batch in batches)

    alone = loss(PromptRows(encoded, 300), together=False)
    packed = PromptRows(encoded, 300, pack=True)
    assert len(packed) < len(encoded)
    assert loss(PromptRows(encoded, 300), together=True) == pytest.approx(alone, rel=1e-5)
    assert loss(packed, together=True) == pytest.approx(alone, rel=1e-5)


def test_answers_do_not_depend_on_the_batch():
    tokenizer = TOKENIZERS("alpaca")
    model = tiny_model(vocab_size=len(tokenizer))
    prompts = [encode(tokenizer, text) for text in ("a", "Write a", "the sea is", "Well, the", "x")]
    alone = [generate_answers(model, tokenizer, [prompt], temperature=0, max_new_tokens=9)[0] for prompt in prompts]
    assert len(set(alone)) > 1
    for batch_size in (2, 5):
        options = {"temperature": 0, "max_new_tokens": 9, "batch_size": batch_size}
        assert generate_answers(model, tokenizer, prompts, **options) == alone
    long = [(prompt * 70)[: 60 + n] for n, prompt in enumerate(prompts)]  # of 64 positions 5, 4, ... 1 are free
    options = {"temperature": 0, "max_new_tokens": 9, "eos_token_id": None}
    alone = [generate_answers(model, tokenizer, [prompt], **options)[0] for prompt in long]
    assert generate_answers(model, tokenizer, long, **options) == alone
    ids = torch.tensor(long[:1])
    whole = model.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0, eos_token_id=None)[0]
    logits = model(whole[None]).logits[0, 59:]
    assert alone[0] == tokenizer.decode(logits.argmax(-1)) and all(alone)


def test_a_preview_marks_the_targets():
    tokenizer = TOKENIZERS("chatml")
    ids, targets = encode_messages(tokenizer, read_messages({"prompt": "Well?", "completion": "Sea."}))
    begin = "<|im_start|>user\nWell?<|im_end|>\n<|im_start|>assistant\n"
    assert show_asked(tokenizer, ids, targets, color=False) == f"{begin}[[Sea.<|im_end|>]]\n"
    assert show_asked(tokenizer, ids, targets, color=True) == f"{begin}\x1b[32mSea.<|im_end|>\x1b[0m\n"


# --- Reading -----------------------------------------------------------------------------------------------------

ASK, SAY = {"role": "user", "content": "Well?"}, {"role": "assistant", "content": "Well."}


def test_all_forms_of_a_row_are_the_same_messages():
    rows = [
        {"instruction": "Well?", "output": "Well.", "input": None},
        {"messages": [{**ASK, "name": "x"}, SAY], "prompt": None},
        {"prompt": "Well?", "completion": "Well."},
        {"prompt": [ASK], "completion": [SAY]},
    ]
    assert all(read_messages(row) == [ASK, SAY] for row in rows)
    conversations, empty = read_conversations([*rows, {"prompt": "Well?", "completion": " "}])
    assert len(conversations) == 4 and empty == [5]


CALL = {"type": "function", "function": {"name": "look", "arguments": "{}"}}
NOTHING = [None, [], {}, "", "[]", [None], {"name": None, "arguments": None}]
ALIEN = [
    ({"tools": [CALL]}, {}, {}),
    ({"tools": json.dumps([CALL])}, {}, {}),
    ({"system": "Be brief."}, {}, {}),
    ({"history": [["Well?", "Well."]]}, {}, {}),
    ({"chat_template_kwargs": {"enable_thinking": True}}, {}, {}),
    ({"images": ["a.png"]}, {}, {}),
    ({}, {"images": ["a.png"]}, {}),
    ({}, {}, {"tool_calls": [CALL]}),
    ({}, {}, {"tool_calls": [CALL], "content": None}),
    ({}, {}, {"function_call": CALL["function"]}),
    ({}, {}, {"reasoning_content": "The sea is wide."}),
    ({}, {}, {"weight": 0}),
    ({}, {}, {"train": False}),
]


@pytest.mark.parametrize(("row", "ask", "say"), ALIEN)
def test_unsupported_keys_are_refused_by_name(row, ask, say):
    messages = [{**ASK, **ask}, {**SAY, **say}]
    (key, *_) = [*row, *ask, *say]
    pair = {"chosen": messages, "rejected": [messages[0], {**SAY, "content": "No."}]}
    good = {"messages": [ASK, SAY], "chosen": [ASK, SAY], "rejected": [ASK, {**SAY, "content": "No."}]}
    for read, keys in ((read_conversations, {"messages": messages}), (read_preferences, pair)):
        with pytest.raises(ValueError, match=f"Row 2: the (row|.*'s message) has {key}, which cannot be learned"):
            read([good, {**row, **keys}])


def test_empty_keys_and_other_columns_of_a_row_are_ignored():
    for nothing in NOTHING:
        row = {"tools": nothing, "id": "a", "source": "sea", "timestamp": 3, "score": 0.0, "reasoning": "It is wide."}
        said = {**SAY, "tool_calls": nothing, "weight": 1, "id": 3, "name": "x"}
        assert read_messages({**row, "messages": [{**ASK, "weight": 0}, said]}) == [ASK, SAY]
        assert read_preferences([{**row, "chosen": [ASK, said], "rejected": [ASK, {**SAY, "content": "No."}]}])[1] == {
            "empty": 0,
            "equal": 0,
        }


def test_a_transcript_is_the_plain_question_or_several_messages_with_their_roles():
    code = "def f():\n    return  1\n"
    assert transcript([{"role": "user", "content": code}]) == code
    system = {"role": "system", "content": "Be  brief."}
    assert transcript([system, ASK, SAY, {"role": "user", "content": code}]) == (
        f"[system]\nBe  brief.\n\n[user]\nWell?\n\n[assistant]\nWell.\n\n[user]\n{code}"
    )


BAD_ROWS = {
    "have only an empty system message": {"messages": [{"role": "system", "content": " "}]},
    "has the keys question; it needs instruction and output": {"question": "Well?"},
    r"has the keys \(none\)": {"instruction": None},
    "the role 'assistant' comes first; it must be system or user there": {"messages": [SAY]},
    "the role 'user' comes after the user's message": {"messages": [ASK, ASK, SAY]},
    "the role 'tool' comes after": {"messages": [ASK, {"role": "tool", "content": "x"}]},
    "the role 'system' comes after": {"messages": [ASK, SAY, {"role": "system", "content": "x"}]},
    "last message is the user's": {"messages": [ASK]},
    "a role and a content": {"messages": [{"role": "user"}]},
    "must be a list with at least one message": {"messages": []},
    "output must be text, not 3": {"instruction": "Well?", "output": 3},
    "the user's message is empty": {"instruction": " ", "output": "Well."},
}


@pytest.mark.parametrize("message", BAD_ROWS)
def test_an_invalid_row_is_named(message):
    with pytest.raises(ValueError, match=f"Row 2: .*{message}"):
        read_conversations([{"messages": [ASK, SAY]}, BAD_ROWS[message]])


def test_empty_answers_are_counted_and_rows_without_any_answer_refused():
    row = {"instruction": "Well?", "output": " \n"}
    with pytest.raises(EmptyAnswer, match="the assistant's message is empty"):
        read_messages(row)
    with pytest.raises(ValueError, match="No row has an answer: 2 rows"):
        read_conversations([row, row])


# --- Splits ------------------------------------------------------------------------------------------------------


def test_a_split_has_its_exact_share_and_no_question_is_in_two_splits(data):
    rows, empty = read_conversations(json.loads((data / "instruction-data.json").read_text()))
    keys = [text_of(messages[:-1]) for messages in rows]
    assert not empty and len(set(keys)) < len(keys)
    splits = split_groups(keys, 0.05, 0.1, seed=3)
    assert {name: len(part) for name, part in splits.items()} == {"train": 935, "validation": 55, "test": 110}
    assert sorted(np.concatenate([*splits.values()]).tolist()) == list(range(1100))
    parts = [{keys[k] for k in part} for part in splits.values()]
    assert sum(map(len, parts)) == len(set(keys))
    again, other = split_groups(keys, 0.05, 0.1, seed=3), split_groups(keys, 0.05, 0.1, seed=4)
    assert_close(torch.tensor(again["test"]), torch.tensor(splits["test"]))
    assert again["test"].tolist() != other["test"].tolist()
    fewer = [key for k, key in enumerate(keys) if k % 150]  # another file with the same rows, except a few
    held_out = {fewer[k] for k in split_groups(fewer, 0.05, 0.1, seed=3)["test"]}
    assert not held_out & {keys[k] for k in splits["train"]}
    with pytest.raises(ValueError, match="2 distinct texts in 9 rows leave nothing for"):
        split_groups(["a", "b"] + ["b"] * 7, 0.1, 0.1)
