# /// script
# requires-python = ">=3.11"
# dependencies = ["scratch_gpt"]
#
# [tool.uv.sources]
# scratch_gpt = { path = "..", editable = true }
# ///
"""Continue a text with a model from a folder or the Hub, or chat with it, using a decoder with a KV cache.

    python training/generate.py MODEL "Once upon a time" [--max-new-tokens 100] [--temperature 0] [--samples 3]
    python training/generate.py MODEL FILE:prompt.txt
    python training/generate.py MODEL --chat
    python training/generate.py MODEL "The" --quantize int8 --prompt-lookup-num-tokens 8
    python training/generate.py MODEL "The" --quantize int8 --compile --max-new-tokens 1000
    python training/generate.py MODEL "The" --assistant-model int8

A single continuation is printed as it is generated, and the speed is printed to standard error. The model is loaded
with AutoModelForCausalLM, as in any Hugging Face client.
"""

import sys
import time
from dataclasses import dataclass
from typing import Literal, cast

from scratch_gpt_training.support.command_line import one_clear_line, parse
from scratch_gpt_training.support.commands import command
from scratch_gpt_training.support.options import check_fields, check_model_folder, option


CHAT_HELP = "Type a message. /clear starts over, /help shows this line, /exit quits."


@dataclass(frozen=True)
class GenerateRun:
    """Generation."""

    COMMON = (
        "model",
        "prompt",
        "chat",
        "samples",
        "max_new_tokens",
        "temperature",
        "top_k",
        "top_p",
        "seed",
        "quantize",
    )

    model: str = option("runs/pretrain/model", "Folder or Hub id of the model; can be given as the first word.")
    model_revision: str | None = option(None, "Branch, tag or commit of a Hub model.")
    prompt: str = option(
        "The", "Text to continue, or FILE:path; can be given as the second word. Empty starts a new document."
    )
    chat: bool = option(False, "Chat with the model in its tokenizer's chat template; /exit quits.")
    samples: int = option(1, "Number of continuations.")
    max_new_tokens: int = option(100, "Maximum number of new tokens.")
    temperature: float = option(0.8, "0 = greedy; lower = safer, higher = more random.")
    top_k: int | None = option(50, "Sample from the k most likely tokens; 0 for all.")
    top_p: float | None = option(None, "Sample from the most likely tokens that together reach this probability.")
    seed: int = option(0, "Seed of the sampling.")
    dtype: Literal["auto", "float32", "bfloat16"] = option(
        "auto", "Data type to compute in; auto is that of the saved weights."
    )
    quantize: Literal["no", "int8"] = option("no", "int8 multiplies in 8 bits on a CPU: faster, and nearly the same.")
    compile: bool = option(False, "Compile the decoding step in C first (needs a C compiler; takes a second or two).")
    prompt_lookup_num_tokens: int | None = option(
        None, "Speculative decoding: guess N tokens by prompt lookup (one sample only)."
    )
    assistant_model: str | None = option(
        None,
        "Speculative decoding with an assistant: int8 (the model itself in 8 bits), or a smaller model "
        "with the same tokenizer.",
    )
    num_assistant_tokens: int = option(5, "Number of tokens that the assistant guesses at a time.")


def chat(decoder, tokenizer, seed: int, **options) -> None:
    """Read the user's messages and print the model's answers, until /exit or the end of the input."""
    from scratch_gpt.data.rows.conversations import encode_prompt
    from scratch_gpt.generation.generate import stream
    from scratch_gpt.utils.foreign import shown

    print(CHAT_HELP)
    messages: list[dict[str, str]] = []
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            return
        if line == "/exit":
            return
        if line == "/clear":
            messages = []
        elif line.startswith("/"):
            print(CHAT_HELP)
        if line.startswith("/") or not line:
            continue
        conversation = [*messages, {"role": "user", "content": line}]
        ids = encode_prompt(tokenizer, conversation)
        if len(ids) > decoder.model.config.max_position_embeddings:
            print("(The conversation is longer than the model's context. The model no longer sees its beginning.)")
        answer = ""
        for piece in stream(decoder, tokenizer, ids, seed=seed + len(messages), **options):
            print(shown(piece), end="", flush=True)
            answer += piece
        print()
        if answer.strip():  # with an empty answer, the message is not kept
            messages = [*conversation, {"role": "assistant", "content": answer}]


def format_speed(decoder, seconds: float) -> str:
    """Describe the number of tokens and the speed. The time includes the prompt and, except in int8, matrix layout."""
    text = f"{decoder.drawn} tokens in {seconds:.2f} s: {decoder.drawn / seconds:.1f} tokens/s"
    if decoder.guessed:
        text += (
            f"; {decoder.accepted} of {decoder.guessed} guesses accepted ({decoder.accepted / decoder.guessed:.0%})"
        )
    return text


def load_language_model(name: str, revision: str | None = None):
    """Load a model as any Hugging Face client does, with an adapter merged into its base."""
    from transformers import AutoModelForCausalLM

    from scratch_gpt.conversion.load import load_model, needs_merging
    from scratch_gpt.utils.loading import load_complete

    if needs_merging(name, revision):
        return load_model(name, revision)
    return load_complete(AutoModelForCausalLM, name, revision=revision)


def load_assistant(model, tokenizer, name: str, compile: bool):
    """Return the assistant: the model itself in int8, compiled or not, or another model with the same tokenizer."""
    from scratch_gpt import load_tokenizer
    from scratch_gpt.generation.decoder import make_decoder

    if name == "int8":
        return make_decoder(model, "int8", compile)
    if load_tokenizer(name).get_vocab() != tokenizer.get_vocab():
        raise ValueError(f"--assistant-model {name} has another tokenizer. Choose one with the same tokenizer.")
    return make_decoder(load_language_model(name).to(model.dtype))


def read_prompt(prompt: str) -> str:
    """Return the text, or for FILE:path the content of the file."""
    if not prompt.startswith("FILE:"):
        return prompt
    from scratch_gpt.utils.local_files import read_text_file

    return read_text_file(prompt.removeprefix("FILE:"))


def unused_fields(run: GenerateRun) -> dict[str, str]:
    """Return the fields that this run does not use, with the reasons."""
    unused: dict[str, str] = {}
    if run.chat:
        unused |= dict.fromkeys(("prompt", "samples"), "--chat reads each prompt, and answers once")
    if run.assistant_model is None:
        unused["num_assistant_tokens"] = "it needs --assistant-model"
    if run.temperature == 0:
        unused |= dict.fromkeys(("top_k", "top_p", "seed"), "--temperature 0 does not sample")
    return unused


def main(argv: list[str] | None = None) -> None:
    with one_clear_line(stopped=""):
        run = parse(GenerateRun, argv, positional=("model", "prompt"), unused=unused_fields)
        check_fields(run)
        check_model_folder(run.model)
        if run.top_p == 0:
            raise ValueError("--top-p must be above 0 (you gave 0). For the most likely token give --temperature 0.")
        if run.assistant_model == "int8" and run.quantize == "int8":
            raise ValueError("--assistant-model int8 only works with an unquantized model. Remove --quantize.")
        if run.assistant_model not in (None, "int8"):
            check_model_folder(run.assistant_model, "assistant-model")
        prompt = read_prompt(run.prompt)

        import torch

        from scratch_gpt import generate_text, load_tokenizer
        from scratch_gpt.generation.decoder import make_decoder
        from scratch_gpt.generation.generate import stream
        from scratch_gpt.tokenization.chat_templates import TRIAL, render
        from scratch_gpt.tokenization.tokenizer import encode
        from scratch_gpt.utils.foreign import shown
        from scratch_gpt.utils.memory import keep_freed_memory

        tokenizer = load_tokenizer(run.model, run.model_revision)
        if run.chat and tokenizer.chat_template is None:
            raise ValueError(
                f"{run.model} has no chat template, so it cannot chat. Tune it with `{command('instruct')}`, or "
                "remove --chat to continue a text."
            )
        if run.chat:
            render(tokenizer, cast(str, tokenizer.chat_template), TRIAL[:1], add_generation_prompt=True)
        ids = encode(tokenizer, prompt)
        model = load_language_model(run.model, run.model_revision)
        model = model if run.dtype == "auto" else model.to(getattr(torch, run.dtype))
        keep_freed_memory()
        start = time.perf_counter()
        quantize = None if run.quantize == "no" else run.quantize
        compiled = run.compile and (run.assistant_model != "int8" or model.dtype == torch.float32)
        decoder = make_decoder(model, quantize, compiled)  # in bf16 only the assistant is compiled
        options = {"temperature": run.temperature, "top_k": run.top_k or None, "top_p": run.top_p}
        options |= {"max_new_tokens": run.max_new_tokens, "prompt_lookup_num_tokens": run.prompt_lookup_num_tokens}
        if run.assistant_model:
            assistant = load_assistant(model, tokenizer, run.assistant_model, run.compile)
            options |= {"assistant_model": assistant, "num_assistant_tokens": run.num_assistant_tokens}
        if run.compile:
            print(f"Matrices converted, decoding step compiled: {time.perf_counter() - start:.1f} s", file=sys.stderr)
        start = time.perf_counter()
        if run.chat:
            return chat(decoder, tokenizer, run.seed, **options)
        if run.samples == 1:
            print(shown(prompt), end="", flush=True)
            for piece in stream(decoder, tokenizer, ids, seed=run.seed, **options):
                print(shown(piece), end="", flush=True)
            print("\n")
        else:
            for text in generate_text(decoder, tokenizer, [prompt] * run.samples, seed=run.seed, **options):
                print(shown(f"{prompt}{text}\n"))
        print(format_speed(decoder, time.perf_counter() - start), file=sys.stderr)


if __name__ == "__main__":
    main()
