"""Load or create the model and tokenizer of a run. Not a recipe itself."""

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

import psutil
import torch
from transformers import PreTrainedModel

from scratch_gpt import ScratchGPTConfig, ScratchGPTForCausalLM
from scratch_gpt.conversion.load import load_model
from scratch_gpt.finetuning.adapter_files import identify_base
from scratch_gpt.tokenization.chat_templates import FORMATS, choose_format, store_format
from scratch_gpt.tokenization.pre_tokenizers import advise_pre_tokenizer, mark_share
from scratch_gpt.tokenization.tokenizer import check_vocabulary, count_ids, end_of_text_id, load_tokenizer
from scratch_gpt.tokenization.training import sample_texts, train_tokenizer
from scratch_gpt.train.accelerator import compile_options
from scratch_gpt.train.costs import Tune, all_parameters, memory
from scratch_gpt_training.support.command_line import name_flags, parse_overrides, print_once
from scratch_gpt_training.support.options import Run, dropout_changes, trains_tokenizer, vocabulary_size


if TYPE_CHECKING:
    from scratch_gpt_training.instruct import InstructRun
    from scratch_gpt_training.prefer import PreferRun


def open_tokenizer(run: Run, texts: Iterable[str]) -> Any:
    """Return the tokenizer that the run names, its model's, or one that is trained on the texts."""
    if trains_tokenizer(run):
        rarest = 1 if run.tokenizer_kind == "char" else 2  # keep every character, but no merge that occurs once
        sample = sample_texts(texts)
        name = run.pre_tokenizer if run.tokenizer_kind == "bpe" else None
        print_advice(name, mark_share(sample))
        settings = {"kind": run.tokenizer_kind, "min_frequency": rarest, "pre_tokenizer": name}
        return train_tokenizer(sample, vocabulary_size(run), **settings, encoder=getattr(run, "encoder", "auto"))
    name = run.tokenizer or run.model
    assert name is not None
    return load_tokenizer(name, run.model_revision if name == run.model else None)


def print_advice(pre_tokenizer: str | None, marks: float) -> None:
    """Print a line if a text with this share of combining marks needs another pre-tokenizer."""
    if (advice := advise_pre_tokenizer(pre_tokenizer, marks)) is not None:
        print_once(name_flags(advice, {"pre_tokenizer"}))


def small_vocabulary(run: Run, tokenizer) -> list[str]:
    """Return a notice if the tokenizer was trained and has fewer tokens than requested, else nothing."""
    size = count_ids(tokenizer)
    # A text has few characters, so the default size is not a request for a character tokenizer.
    is_meant = trains_tokenizer(run) and (run.vocab_size is not None or run.tokenizer_kind != "char")
    if not is_meant or size >= vocabulary_size(run):
        return []
    return [f"Vocabulary: {size:,} tokens instead of {vocabulary_size(run):,}: the text yields no more."]


def small_preset(run: Run, config: ScratchGPTConfig, classes: int | None = None) -> list[str]:
    """Return a notice if a new model has one of GPT-2's sizes without GPT-2's vocabulary, else nothing."""
    if run.model is not None or not (run.preset or "").startswith("gpt2"):
        return []
    full_size = ScratchGPTConfig.from_preset(run.preset or "").vocab_size
    if config.vocab_size >= full_size:
        return []
    full = ScratchGPTConfig.from_dict({**config.to_dict(), "vocab_size": full_size})
    return [
        f"--preset {run.preset} with a vocabulary of {config.vocab_size:,} tokens has "
        f"{all_parameters(config, classes):,} parameters; with GPT-2's {full_size:,} tokens (--tokenizer "
        f"openai-community/gpt2) it has {all_parameters(full, classes):,}."
    ]


def check_memory(run: Run, config: ScratchGPTConfig, classes: int | None = None) -> None:
    """Raise a ValueError if a step of a new model with one token needs more memory than the machine has."""
    tune, processes = Tune(run.tune, run.lora_rank, run.lora_targets), int(os.environ.get("WORLD_SIZE", "1"))
    required = memory(config, 1, 1, half=False, tune=tune, classes=classes, optimizer=run.optimizer).peak / processes
    has_gpu = run.device in ("auto", "cuda") and torch.cuda.is_available()
    available = torch.cuda.mem_get_info()[1] if has_gpu else psutil.virtual_memory().total
    if required > available:
        raise ValueError(
            f"A model of {all_parameters(config, classes):.2e} parameters needs {required / 1e9:,.0f} GB of memory, "
            f"and {available / 1e9:,.0f} GB are available. Choose a smaller --preset, --vocab-size or "
            "--config-overrides."
        )


def build_model(
    run: Run, tokenizer, max_length: int | None, model_class: type[PreTrainedModel] = ScratchGPTForCausalLM
) -> PreTrainedModel:
    """Return a new model of `preset` for this tokenizer and rows, or the model that `model` names, in fp32."""
    changes: dict[str, Any] = {**dropout_changes(run)}
    torch.manual_seed(run.seed)
    if run.model is None:
        fields = {
            "vocab_size": count_ids(tokenizer),
            **{name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")},
            # A position that no row reaches would stay random, so a new model's context is the length of its rows.
            **({} if max_length is None else {"max_position_embeddings": max_length}),
        }
        overrides = parse_overrides(run.config_overrides, ScratchGPTConfig)
        config = ScratchGPTConfig.from_preset(run.preset or "tiny", **{**fields, **changes, **overrides})
        check_memory(run, config)
        model = model_class(config)
    else:
        model = load_model(run.model, run.model_revision, cast(Any, model_class), **changes)
        model.base_identity = identify_base(model, run.model)
    context = model.config.max_position_embeddings
    if max_length is not None and max_length > context:
        raise ValueError(f"--max-length {max_length} is more than the model's context, {context} tokens.")
    if run.gradient_checkpointing:
        model.activation_checkpointing_enable()
    if run.compile:
        model.compile(options=compile_options())
    check_vocabulary(tokenizer, model.config.vocab_size)
    return model


def row_length(run: Run, model: PreTrainedModel) -> int:
    """Return the length of a row in tokens: the run's, else the model's context."""
    return run.max_length or model.config.max_position_embeddings


def build_chat_lm(run: "InstructRun | PreferRun", tokenizer: Any) -> tuple[ScratchGPTForCausalLM, list[str]]:
    """Return the model and notices; it and the tokenizer store the run's `prompt_format`, or keep their own."""
    end_of_text_id(tokenizer)
    name = choose_format(tokenizer, run.prompt_format, replace=True)
    new = set(FORMATS[name].tokens if name in FORMATS else ()) - set(tokenizer.all_special_tokens)
    if new and run.tune != "full":
        raise ValueError(
            f"The format {name} needs {', '.join(sorted(new))}, which this model has not learned, and --tune "
            f"{run.tune} does not train them. Choose --prompt-format alpaca, or --tune full."
        )
    model = cast(ScratchGPTForCausalLM, build_model(run, tokenizer, run.max_length))
    notices = [f"Format: {name}", *store_format(tokenizer, name, model)]
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # padding is never a target, so the vocabulary need not grow
    model.config.pad_token_id = tokenizer.pad_token_id
    return model, notices
