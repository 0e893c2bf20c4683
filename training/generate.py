"""A model folder or Hub id and a prompt -> text, by our own decoding with a KV cache.

    python training/generate.py --model runs/pretrain/model --prompt "The" [--max-new-tokens 100] [--temperature 0]

Loads through AutoModelForCausalLM, as any Hugging Face client would.
"""

from dataclasses import dataclass

from recipe import check_model_folder, one_clear_line, option, parse


@dataclass(frozen=True)
class GenerateRun:
    """What to continue, and how."""

    model: str = option("runs/pretrain/model", "Folder or Hub id.")
    model_revision: str | None = option(None, "Branch, tag or commit of a Hub model.")
    prompt: str = option("The", "Text to continue; empty begins a document.")
    samples: int = option(1, "How many continuations.")
    max_new_tokens: int = option(100, "Tokens to add at most.")
    temperature: float = option(0.8, "0 takes the likeliest token; below 1 is careful, above 1 daring.")
    top_k: int | None = option(50, "Draw among the k likeliest tokens; 0 for all.")
    top_p: float | None = option(None, "Draw among the likeliest tokens that together reach this probability.")
    seed: int = option(0, "Decides the draws.")


def main(argv: list[str] | None = None) -> None:
    with one_clear_line(stopped=""):
        run = parse(GenerateRun, argv)
        if run.samples < 1:
            raise ValueError(f"samples is {run.samples}; it has to be at least 1.")
        check_model_folder(run.model)

        from transformers import AutoModelForCausalLM

        from scratch_gpt import generate_text, load_tokenizer
        from scratch_gpt.adapter_loading import find_adapter
        from scratch_gpt.conversion import load_model

        tokenizer = load_tokenizer(run.model, run.model_revision)
        load = load_model if find_adapter(run.model, run.model_revision) else AutoModelForCausalLM.from_pretrained
        model = load(run.model, revision=run.model_revision)
        texts = generate_text(
            model,
            tokenizer,
            [run.prompt] * run.samples,
            max_new_tokens=run.max_new_tokens,
            temperature=run.temperature,
            top_k=run.top_k or None,
            top_p=run.top_p,
            seed=run.seed,
        )
    for text in texts:
        print(f"{run.prompt}{text}\n")


if __name__ == "__main__":
    main()
