"""Test instruction tuning: it learns, compares answers before and after, resumes exactly, has TRL's targets."""

import json
import shutil

import crash
import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from bad_input import fails
from datasets import Dataset
from tiny import tiny_gpt2, tiny_model
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoTokenizer

from scratch_gpt.data.filters.duplicates import contaminated_texts
from scratch_gpt.data.rows.collate import collate_rows
from scratch_gpt.data.rows.conversations import (
    PromptRows,
    encode_conversations,
    encode_prompt,
    of_both,
    read_messages,
    text_of,
)
from scratch_gpt.data.splits import split_groups
from scratch_gpt.evaluation.answers import answer_metrics
from scratch_gpt.generation.generate import generate_answers
from scratch_gpt.runs.folder import read_metrics
from scratch_gpt.tokenization.chat_templates import store_format
from scratch_gpt.tokenization.training import train_tokenizer
from scratch_gpt.train.objectives import causal_lm
from scratch_gpt_training import instruct


SMALL = ["--preset", "tiny", "--vocab-size", "320", "--device", "cpu", "--max-length", "64", "--mixed-precision", "no"]
SMALL += ["--config-overrides", "hidden_size=32,num_hidden_layers=1", "--prompt-format", "chatml"]
SMALL += ["--max-new-tokens", "8", "--learning-rate", "1e-2"]
WORDS = ["sea", "sun", "ship", "wood", "leaf", "rain", "wind", "sand"]
ROWS = [
    {"instruction": f"Say {one} twice{'.' * n}", "input": "", "output": f"{one} {one}"}
    for one in WORDS
    for n in range(8)
]


def run(*arguments) -> None:
    for state in (AcceleratorState, PartialState):
        state._reset_state()
    instruct.main([str(argument) for argument in arguments])


def write(file, rows) -> str:
    file.write_text(json.dumps(rows))
    return str(file)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Return sixty-four questions, three of them twice, and a row without an answer."""
    empty = {"instruction": "Say nothing", "input": "", "output": ""}
    return write(tmp_path_factory.mktemp("rows") / "rows.json", [*ROWS, *ROWS[:3], empty])


@pytest.fixture(scope="module")
def trained(rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    run("--dataset", rows, "--output-dir", folder, *SMALL, "--max-steps", 60, "--eval-every", 30)
    return folder


def test_a_run_learns_to_answer_and_shows_it(trained):
    content = json.loads((trained / "evaluation.json").read_text())
    results = content["results"]
    assert set(results) == {"before/validation", "before/test", "validation", "test"}
    assert set(results["test"]) == {"loss", "perplexity", "bits_per_byte", "exact_match", "f1", "contaminated"}
    assert results["test"]["f1"] > 0.5 > results["before/test"]["f1"]
    responses = json.loads((trained / "responses.json").read_text())
    assert len(responses) == content["protocol"]["test"]["rows"] == 7
    assert {tuple(response) for response in responses} == {("instruction", "input", "reference", "before", "after")}
    for name, split in (("before", "before/test"), ("after", "test")):
        pairs = [(response[name], response["reference"]) for response in responses]
        scores = answer_metrics(*zip(*pairs, strict=True))
        assert scores == {key: pytest.approx(results[split][key]) for key in scores}
    scored = [line for line in read_metrics(trained / "metrics.jsonl") if "test_f1" in line]
    assert [line["step"] for line in scored] == [0]  # and a last time at the end


def test_stock_transformers_gives_the_answers_of_the_run(trained):
    tokenizer = AutoTokenizer.from_pretrained(trained / "model")
    model = AutoModelForCausalLM.from_pretrained(trained / "model")
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == tokenizer.encode("<|im_end|>")[0]
    for response in json.loads((trained / "responses.json").read_text()):
        messages = [{"role": "user", "content": response["instruction"]}]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
        said = model.generate(**ids, max_new_tokens=8, do_sample=False)[0, ids["input_ids"].shape[1] :]
        assert tokenizer.decode(said, skip_special_tokens=True) == response["after"]
        assert generate_answers(
            model, tokenizer, [encode_prompt(tokenizer, messages)], temperature=0, max_new_tokens=8
        ) == [response["after"]]


def test_a_shared_system_message_is_not_contamination():
    word = {"role": "system", "content": " ".join(f"word{n}" for n in range(20))}

    def row(question):
        return [word, {"role": "user", "content": question}, {"role": "assistant", "content": "Yes."}]

    texts = [text_of(of_both(row(question))) for question in ("Is it red?", "Is it late?")]
    assert contaminated_texts(texts[:1], texts[1:]) == [] and word["content"] not in texts[0]


def test_a_stopped_run_resumes_bit_for_bit_and_keeps_its_first_answers(rows, tmp_path):
    arguments = ["--dataset", rows, *SMALL, "--max-steps", 6, "--eval-every", 2, "--keep", 9, "--pack", "true"]
    arguments += ["--batch-size", 4, "--answers", 3]
    run(*arguments, "--output-dir", tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b" / "evaluation.json").unlink()
    for step in (4, 6):
        shutil.rmtree(tmp_path / "b" / "checkpoints" / f"step-{step}")
    responses = json.loads((tmp_path / "a" / "responses.json").read_text())
    stopped = [{**response, "after": None} for response in responses]
    (tmp_path / "b" / "responses.json").write_text(json.dumps(stopped))
    run(*arguments, "--output-dir", tmp_path / "b", "--resume", "latest")
    assert crash.differences(crash.outcome(tmp_path / "a"), crash.outcome(tmp_path / "b")) == []
    assert json.loads((tmp_path / "b" / "responses.json").read_text()) == responses and len(responses) == 3


def test_gpt2_is_tuned_with_lora_and_a_format_with_new_tokens_is_then_refused(rows, tmp_path, capsys):
    tokenizer = train_tokenizer([str(row) for row in ROWS], 320)
    tokenizer.pad_token = None
    tiny_gpt2(vocab_size=len(tokenizer), n_positions=256).save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    arguments = ["--dataset", rows, "--model", tmp_path / "gpt2", "--device", "cpu", "--max-steps", 4, "--answers", 2]
    arguments += ["--max-new-tokens", 4, "--eval-every", 4, "--tune", "lora", "--output-dir", tmp_path / "run"]
    fails([*arguments, "--prompt-format", "phi3"], "format phi3 needs.*has not learned", capsys, instruct.main)
    run(*arguments)
    assert "Left out for an empty answer: 1 row, the first is row 68" in capsys.readouterr().out
    results = json.loads((tmp_path / "run" / "evaluation.json").read_text())["results"]
    assert results["test"]["loss"] < results["before/test"]["loss"]
    again = AutoTokenizer.from_pretrained(tmp_path / "run" / "model")
    assert len(again) == len(tokenizer) and again.pad_token == again.eos_token == "<|endoftext|>"
    other = ["--model", tmp_path / "run" / "model", "--prompt-format", "plain", *arguments[:2], "--preview", 1]
    run(*other)
    assert "Warning: the model's chat template is replaced by plain" in capsys.readouterr().out


def test_a_contaminated_test_row_is_reported_with_the_score(tmp_path, capsys):
    long = "Tell the long story of the old sailor who walked to the shiny sea and slept"
    # All questions are different.
    same = [{"instruction": f"{long}{'!' * n}", "output": "He slept."} for n in range(40)]
    folder = tmp_path / "run"
    run("--dataset", write(tmp_path / "a.json", same), "--output-dir", folder, *SMALL, "--max-steps", 0)
    assert "Contamination: 4 of 4 test rows share a run of 13 words with training rows" in capsys.readouterr().out
    content = json.loads((folder / "evaluation.json").read_text())
    assert content["results"]["test"]["contaminated"] == 1
    assert content["tables"]["test"]["contamination"] == {"words": 13, "rows": [0, 1, 2, 3]}


def test_a_run_without_a_validation_split_ends_without_a_sample(rows, tmp_path, capsys):
    words = ["--validation-fraction", 0, "--keep-best", "false", "--max-steps", 1, "--answers", 1]
    run("--dataset", rows, "--output-dir", tmp_path / "run", *SMALL, *words)
    output = capsys.readouterr().out
    assert "Finished: 1 step" in output and "Sample" not in output
    assert "test" in json.loads((tmp_path / "run" / "evaluation.json").read_text())["results"]


def test_a_preview_shows_rows_and_writes_nothing(rows, tmp_path, capsys):
    run("--dataset", rows, "--output-dir", tmp_path / "run", *SMALL, "--preview", 3)
    shown = capsys.readouterr().out
    parts = split_groups([row["instruction"] for row in [*ROWS, *ROWS[:3]]], 0.05, 0.1, 0)
    for k in parts["train"][:3]:
        row = [*ROWS, *ROWS[:3]][k]
        assert f"{row['instruction']}<|im_end|>\n<|im_start|>assistant\n[[{row['output']}<|im_end|>]]" in shown
    assert shown.count("count for the loss") == 3 and "\x1b" not in shown and not (tmp_path / "run").exists()


def test_a_preview_reports_dropped_and_cut_rows_and_shows_packed_rows(tmp_path, capsys):
    long, short = "Say it " * 40, {"instruction": "Say sea.", "output": "sea"}
    kinds = [short, {"instruction": long, "output": "it"}, {"instruction": "Say all.", "output": "sea " * 60}]
    rows = [{**kinds[n % 3], "instruction": f"{n} {kinds[n % 3]['instruction']}"} for n in range(12)]
    words = [
        "--dataset",
        write(tmp_path / "a.json", rows),
        "--validation-fraction",
        0,
        "--test-fraction",
        0,
        "--keep-best",
        "false",
    ]
    words += [*SMALL[: SMALL.index("--max-new-tokens")], "--preview", 99]
    run(*words)
    shown = capsys.readouterr().out.split("\n--- ")[1:]
    assert len(shown) == 12
    for each in shown:
        line, text = each.split("\n", 1)
        is_long, is_cut = long[:30] in text, "Say all." in text
        assert (
            is_long
            == ("Will be dropped: the prompt alone has 64 tokens" in line)
            == (", of which 0 count for the loss" in line)
        )
        assert is_cut == line.endswith(", cut to 64 tokens")
        assert ("[[" in text) != is_long
    run(*words, "--pack", "true")
    said = capsys.readouterr().out
    assert "Will be dropped: 4 of 12 conversations, because the prompt alone is as long as a row." in said
    shown = said.split("\n--- ")[1:]
    assert len(shown) < 8 and sum(each.count("[[sea") for each in shown) == 8 and long[:30] not in said
    assert max(each.count("[[sea") for each in shown) > 1


def test_a_preview_marks_the_targets_of_training(tmp_path, capsys):
    rows = write(tmp_path / "a.json", [{"instruction": f"Say {one}.", "output": one} for one in WORDS])
    run("--dataset", rows, *SMALL, "--train-on", "prompt+completion", "--preview", 1)
    line, text = capsys.readouterr().out.split("\n--- ")[1].split("\n", 1)
    tokens, asked = (int(word) for word in line.split() if word.isdigit())
    assert asked == tokens - 1 and text.startswith("<|im_start|>[[user")  # no token precedes the first one


BAD = {
    "--prompt-format llama": "--prompt-format must be alpaca, book, chatml, phi3, plain or tokenizer, not 'llama'",
    "--prompt-format tokenizer": "The tokenizer has no chat template",
    "--train-on answers": "--train-on 'answers' is not one of",
    "--streaming true": "remove --streaming",
    "--max-length 9": "None of .* rows has a target within 9 tokens: the prompts are too long",
    "--answers -1": "--answers must be at least 0",
    "--preview 0": "--preview must be at least 1",
    "--max-new-tokens 0": "--max-new-tokens must be at least 1",
    "--test-fraction 0.99": "leave nothing to train on",
    "--dataset /no/where.json": "no such file",
}


@pytest.mark.parametrize("line", BAD)
def test_bad_input_is_a_one_line_error(line, rows, tmp_path, capsys):
    arguments = ["--dataset", rows, "--preset", "tiny", "--vocab-size", "320", "--output-dir", str(tmp_path / "run")]
    fails([*arguments, *line.split()], BAD[line], capsys, instruct.main)
    assert not (tmp_path / "run").exists()


def test_bad_rows_and_templates_are_one_line_errors_without_side_effects(rows, trained, tmp_path, capsys):
    before = crash.outcome(trained)
    arguments = ["--output-dir", trained, "--overwrite", "true", *SMALL]
    file = write(tmp_path / "a.json", [ROWS[0], {"instruction": "Say sea"}])
    fails(["--dataset", file, *arguments], "a.json: Row 2: a row has the keys", capsys, instruct.main)
    roles = [{"role": "assistant", "content": "sea"}, {"role": "user", "content": "Say sea"}]
    file = write(tmp_path / "b.json", [{"messages": roles}])
    fails(["--dataset", file, *arguments], "Row 1: the role 'assistant' comes first", capsys, instruct.main)
    file = write(tmp_path / "c.json", [{"instruction": "Say nothing", "output": " "}])
    fails(["--dataset", file, *arguments], "No row has an answer: 1 row", capsys, instruct.main)
    shutil.copytree(trained / "model", tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    other = ["--dataset", rows, "--model", tmp_path / "model", "--output-dir", trained, "--overwrite", "true"]
    fails(other, "has no generation markers", capsys, instruct.main)
    assert crash.differences(before, crash.outcome(trained)) == []


@pytest.mark.parametrize("case", ["completion-only", "completion-only plain", "assistant-only", "everything"])
def test_trl_has_the_same_loss_and_gradient_on_the_same_batch(case, tmp_path):
    pytest.importorskip("trl")
    from trl import SFTConfig, SFTTrainer

    prompt_format = {"assistant-only": "chatml", "completion-only plain": "plain"}.get(case, "alpaca")
    tokenizer = train_tokenizer([str(row) for row in ROWS], 320)
    model = tiny_model(vocab_size=len(tokenizer), max_position_embeddings=256)
    store_format(tokenizer, prompt_format, model)
    turns = [read_messages({**row, "output": n * "sea "}) for n, row in enumerate(ROWS[5:40:11], start=1)]
    turns[1] = turns[1] + turns[2]
    if case == "completion-only":
        theirs = [{"prompt": each[-2:-1], "completion": each[-1:]} for each in turns]
        turns = [each[-2:] for each in turns]
    elif case == "completion-only plain":
        theirs = [{"prompt": f"Q: {each[0]['content']} A:", "completion": f" {each[1]['content']}"} for each in turns]
        turns = [read_messages(row) for row in theirs]
    else:
        theirs = [{"messages": each} for each in turns]
    train_on = "prompt+completion" if case == "everything" else "completion"
    rows = PromptRows(encode_conversations(tokenizer, turns, None, train_on), 256)
    batch = collate_rows([rows[k] for k in range(len(rows))], tokenizer.pad_token_id)
    ours = causal_lm.sums(model, batch)["loss"] / causal_lm.counts(batch)["loss"]
    ours.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    how = {"output_dir": str(tmp_path), "report_to": "none", "use_cpu": True, "bf16": False, "max_length": 256}
    config = SFTConfig(**how, assistant_only_loss=case == "assistant-only", per_device_train_batch_size=4)
    trainer = SFTTrainer(model, config, train_dataset=Dataset.from_list(theirs), processing_class=tokenizer)
    loss = trainer.compute_loss(model, next(iter(trainer.get_train_dataloader())))
    loss.backward()
    assert loss.item() == pytest.approx(ours.item(), abs=1e-5)
    for name, parameter in model.named_parameters():
        assert_close(gradients[name], parameter.grad, atol=1e-5, rtol=1e-4)
    assert torch.tensor(rows.lengths).unique().numel() > 1  # the batch has padding
