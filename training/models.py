"""What a run says of its model -> a language model, new or loaded. Not a recipe itself."""

import torch

from recipe import Run, parse_overrides
from scratch_gpt import ScratchGPTConfig, ScratchGPTForCausalLM
from scratch_gpt.conversion import load_model
from scratch_gpt.tokenizer import count_ids


def build_causal_lm(run: Run, tokenizer, max_length: int | None) -> ScratchGPTForCausalLM:
    """A new model of `preset` for this tokenizer and rows, or the one that `model` names, in fp32."""
    rates = ("embed_dropout", "attention_dropout", "resid_dropout")
    changes = {} if run.dropout is None else dict.fromkeys(rates, run.dropout)
    torch.manual_seed(run.seed)
    if run.model is None:
        fields = {
            "vocab_size": count_ids(tokenizer),
            **{name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")},
            # A position that no row reaches would stay random: the context of a new model is its rows' length.
            **({} if max_length is None else {"max_position_embeddings": max_length}),
        }
        overrides = parse_overrides(run.config_overrides, ScratchGPTConfig)
        config = ScratchGPTConfig.from_preset(run.preset or "tiny", **{**fields, **changes, **overrides})
        model = ScratchGPTForCausalLM(config)
    else:
        model = load_model(run.model, run.model_revision, **changes)
    if max_length is not None and max_length > model.config.max_position_embeddings:
        raise ValueError(
            f"max_length {max_length} is more than the model's context, {model.config.max_position_embeddings} tokens."
        )
    if run.gradient_checkpointing:
        model.activation_checkpointing_enable()
    if run.compile:
        model.compile()
    return model
