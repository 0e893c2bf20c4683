"""Test generation and chat in the terminal as a user runs them."""

import builtins
import shutil

import pytest
from bad_input import fails
from compiler import needs_a_compiler
from tiny import tiny_model

from scratch_gpt.tokenization.training import train_tokenizer
from scratch_gpt_training import generate


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Make a folder with a chat template and one without."""
    folder = tmp_path_factory.mktemp("models")
    for name, template in (("chat", "chatml"), ("base", None)):
        tokenizer = train_tokenizer(["the sun shines on the sea"] * 9, vocab_size=300, chat_template=template)
        model = tiny_model(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


def test_positional_arguments_equal_options_and_one_sample_equals_the_first(models, capsys, tmp_path):
    def out(*words):
        capsys.readouterr()
        generate.main([*map(str, words), "--max-new-tokens", "8"])
        return capsys.readouterr().out

    streamed = out(models / "base", "the sun", "--seed", "3")
    assert streamed == out("--model", models / "base", "--prompt", "the sun", "--seed", "3")
    assert streamed.startswith("the sun") and streamed.endswith("\n\n")
    (tmp_path / "prompt.txt").write_text("the sun")
    assert streamed == out(models / "base", f"FILE:{tmp_path / 'prompt.txt'}", "--seed", "3")
    greedy = out(models / "base", "the sun", "--temperature", "0")
    assert out(models / "base", "the sun", "--temperature", "0", "--samples", "3") == greedy * 3


@pytest.fixture
def generate_output(models, capsys):
    """Run generate.py with these arguments; return (out, err)."""

    def say(*words):
        capsys.readouterr()
        generate.main([str(models / "base"), "the sun", "--max-new-tokens", "20", *map(str, words)])
        return capsys.readouterr()

    return say


@needs_a_compiler
def test_a_compiled_step_gives_the_same_text_and_reports_its_build_time(generate_output):
    for words in ((), ("--quantize", "int8"), ("--assistant-model", "int8"), ("--samples", "2")):
        plain, compiled = generate_output(*words), generate_output(*words, "--compile")
        assert plain.out == compiled.out or "--quantize" in words  # in int8, rounding of fp32 can change a token
        assert "Matrices converted, decoding step compiled: " in compiled.err and "compiled" not in plain.err


def test_an_assistant_gives_the_same_text_and_reports_accepted_guesses(models, generate_output):
    plain = generate_output()
    for assistant in ("int8", models / "base"):
        assisted = generate_output("--assistant-model", assistant, "--num-assistant-tokens", "3")
        assert assisted.out == plain.out
        assert "guesses accepted" in assisted.err and "guesses" not in plain.err


def test_an_assistant_that_cannot_guess_is_a_one_line_error(models, capsys):
    base = [models / "base", "--assistant-model"]
    fails([*base, "int8", "--quantize", "int8"], "Remove --quantize", capsys, generate.main)
    fails([*base, models], "--assistant-model .* is not a model folder", capsys, generate.main)
    fails([*base, models / "chat"], "has another tokenizer", capsys, generate.main)
    fails([*base, "int8", "--samples", "2"], "needs a single row, but there are 2", capsys, generate.main)
    fails(
        [*base, "int8", "--num-assistant-tokens", "0"],
        "--num-assistant-tokens must be at least 1",
        capsys,
        generate.main,
    )


def test_a_conversation_continues_until_the_user_exits(models, capsys, monkeypatch):
    lines = iter(["hello", "", "and the sea?", "/clear", "hello", "/exit", "never read"])
    monkeypatch.setattr(builtins, "input", lambda prompt: next(lines))
    contents = []
    from scratch_gpt.data.rows import conversations as prompts

    encode = prompts.encode_prompt

    def keep(tokenizer, messages):
        contents.append([message["content"] for message in messages])
        return encode(tokenizer, messages)

    monkeypatch.setattr(prompts, "encode_prompt", keep)
    generate.main([str(models / "chat"), "--chat", "--max-new-tokens", "6"])
    answers = [line for line in capsys.readouterr().out.splitlines()[1:] if line]
    assert [messages[::2] for messages in contents] == [["hello"], ["hello", "and the sea?"], ["hello"]]
    assert len(contents[1]) == 3 and contents[1][1] and answers
    assert next(lines) == "never read"


def test_a_conversation_ends_with_the_input(models, monkeypatch):
    def end(prompt):
        raise EOFError

    monkeypatch.setattr(builtins, "input", end)
    generate.main([str(models / "chat"), "--chat"])


def test_prompts_and_models_that_cannot_be_used_are_one_line_errors(models, capsys, tmp_path):
    fails([models / "base", "--chat"], "has no chat template", capsys, generate.main)
    fails(
        [models / "base", f"FILE:{tmp_path / 'absent'}"], "absent cannot be read: No such file", capsys, generate.main
    )
    (tmp_path / "bytes").write_bytes(b"a\n\xff")
    fails([models / "base", f"FILE:{tmp_path / 'bytes'}"], "line 2 is not UTF-8", capsys, generate.main)
    fails([models / "base", "the", "sun"], "Unexpected word 'sun'", capsys, generate.main)
    fails([models / "base", "--temperature", "-1"], "--temperature must be at least 0", capsys, generate.main)
    fails([models / "base", "--max-new-tokens", "0"], "--max-new-tokens must be at least 1", capsys, generate.main)
    cut_off = shutil.copytree(models / "base", tmp_path / "cut-off")
    (cut_off / "model.safetensors").write_bytes((models / "base" / "model.safetensors").read_bytes()[:-9])
    fails([cut_off], "cut-off cannot be loaded: ", capsys, generate.main)
