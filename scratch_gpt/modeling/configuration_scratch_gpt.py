"""Define and check the configuration of a model: its sizes, dropouts and presets.

This file travels inside every checkpoint, so it imports only transformers and huggingface_hub.
"""

import sys
from typing import Any, ClassVar

import transformers


OLDEST_TRANSFORMERS = "5.6"


def _release(version: str) -> list[int]:
    return [int(part) for part in version.split(".")[:2]]


if _release(transformers.__version__) < _release(OLDEST_TRANSFORMERS):  # older ones fail below, with unclear errors
    raise ImportError(
        f"scratch_gpt models need transformers {OLDEST_TRANSFORMERS} or newer; this is {transformers.__version__}. "
        f'Run: pip install -U "transformers>={OLDEST_TRANSFORMERS}"'
    )

from huggingface_hub.dataclasses import strict  # noqa: E402
from transformers import PreTrainedConfig  # noqa: E402
from transformers.activations import ACT2FN  # noqa: E402


# Where the Auto classes find the code in a saved folder. Every config.json gets the complete table, because saving one
# class would otherwise list only that class.
AUTO_MAP = {
    "AutoConfig": "configuration_scratch_gpt.ScratchGPTConfig",
    "AutoModel": "modeling_scratch_gpt.ScratchGPTModel",
    "AutoModelForCausalLM": "modeling_scratch_gpt.ScratchGPTForCausalLM",
    "AutoModelForSequenceClassification": "modeling_scratch_gpt.ScratchGPTForSequenceClassification",
}

# The four sizes of Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", table 2, two that train
# on a laptop's CPU in minutes, and the small character model that nanoGPT's README trains on a CPU.
_NO_DROPOUT = {"embed_dropout": 0.0, "attention_dropout": 0.0, "resid_dropout": 0.0}
PRESETS: dict[str, dict[str, Any]] = {
    "gpt2": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
    "gpt2-medium": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16},
    "gpt2-large": {"hidden_size": 1280, "num_hidden_layers": 36, "num_attention_heads": 20},
    "gpt2-xl": {"hidden_size": 1600, "num_hidden_layers": 48, "num_attention_heads": 25},
    "small": {
        "hidden_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
        "max_position_embeddings": 256,
        **_NO_DROPOUT,
    },
    "tiny": {
        "hidden_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        **_NO_DROPOUT,
    },
    "shakespeare-char": {
        "hidden_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        **_NO_DROPOUT,
    },
}

# Names of our fields in GPT-2's config.json and in the book "Build a Large Language Model (From Scratch)".
ALIASES = {
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_positions": "max_position_embeddings",
    "n_inner": "intermediate_size",
    "activation_function": "hidden_act",
    "embd_pdrop": "embed_dropout",
    "attn_pdrop": "attention_dropout",
    "resid_pdrop": "resid_dropout",
    "layer_norm_epsilon": "layer_norm_eps",
    "emb_dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "context_length": "max_position_embeddings",
    "qkv_bias": "attention_bias",
}

# Fields of GPT-2's config.json that change the computation: accepted only with the value that our model has.
GPT2_FIXED = {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False}
# Fields of GPT-2's config.json that do not concern this model: dropped.
GPT2_IGNORED = (
    *("n_ctx", "reorder_and_upcast_attn", "summary_type", "summary_use_proj", "summary_activation"),
    *("summary_proj_to_labels", "summary_first_dropout", "task_specific_params"),
)


# GPT-2's module names in peft's tables of default target modules, and ours for each.
PEFT_NAMES = {
    "c_attn": ["q_proj", "k_proj", "v_proj"],
    "c_proj": ["o_proj", "down_proj"],
    "mlp.c_proj": ["mlp.down_proj"],
    "ln_f": ["norm"],
}


@strict
class ScratchGPTConfig(PreTrainedConfig):
    r"""
    The configuration of a GPT-2 style decoder.

    Args:
        vocab_size (`int`): rows of the token embedding.
        hidden_size (`int`): width of the residual stream; a multiple of `num_attention_heads`.
        intermediate_size (`int`, *optional*): width inside the MLP; four times `hidden_size` by default.
        num_hidden_layers (`int`), num_attention_heads (`int`): depth, and heads per block.
        max_position_embeddings (`int`): the longest context, in tokens.
        hidden_act (`str`): any name in transformers' `ACT2FN`. The default is GPT-2's GELU (tanh form) as one fused
            operation; GPT-2's `gelu_new` is the same function in separate steps, which round differently in bf16.
        embed_dropout, attention_dropout, resid_dropout (`float`): dropout on the embeddings, on the attention weights
            and on each block's two outputs; all in [0, 1].
        initializer_range (`float`): standard deviation of new matrices; GPT-2's is 0.02.
        embedding_initializer_range (`float`, *optional*): standard deviation of new token and position embeddings (and
            of a tied head); `initializer_range` by default. torch's `nn.Embedding`, and so the book's model, has 1.
        attention_bias (`bool`): whether query, key and value projections have a bias.
        tie_word_embeddings (`bool`): whether the output head shares its weights with the token embedding.

    GPT-2's names (`n_embd`, `n_layer`, ...) and the book's (`emb_dim`, `n_layers`, `drop_rate`, `qkv_bias`, ...) are
    accepted for the same fields. The book's model has an untied head, so `emb_dim` also sets `tie_word_embeddings` to
    False, unless it is given.

    Raises:
        ValueError: a size that is not positive, a width that the heads do not divide, a dropout outside [0, 1].

    Example:

    ```python
    >>> ScratchGPTConfig.from_preset("gpt2", max_position_embeddings=256).hidden_size
    768
    ```
    """

    model_type = "scratch_gpt"
    keys_to_ignore_at_inference = ["past_key_values", "cache"]
    attribute_map = ALIASES
    base_model_tp_plan = {
        "embed_tokens": "embedding_rowwise",
        "layers.*.attn.q_proj": "colwise",
        "layers.*.attn.k_proj": "colwise",
        "layers.*.attn.v_proj": "colwise",
        "layers.*.attn.o_proj": "rowwise",
        "layers.*.mlp.up_proj": "colwise",
        "layers.*.mlp.down_proj": "rowwise",
    }
    base_model_pp_plan = {
        "embed_tokens": (["input_ids"], ["inputs_embeds"]),
        "embed_positions": (["position_ids"], ["inputs_embeds"]),
        "layers": (["hidden_states", "attention_mask"], ["hidden_states"]),
        "norm": (["hidden_states"], ["hidden_states"]),
    }
    base_model_fsdp_plan = {
        "embed_tokens": "free_full_weight",
        "embed_positions": "free_full_weight",
        "layers.*": "free_full_weight",
        "norm": "keep_full_weight",
    }
    presets: ClassVar[dict[str, dict[str, Any]]] = PRESETS

    vocab_size: int = 50257
    hidden_size: int = 768
    intermediate_size: int | None = None
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    max_position_embeddings: int = 1024
    hidden_act: str = "gelu_pytorch_tanh"
    embed_dropout: float | int = 0.1
    attention_dropout: float | int = 0.1
    resid_dropout: float | int = 0.1
    attention_bias: bool = True
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    embedding_initializer_range: float | int | None = None
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    tie_word_embeddings: bool | None = None  # None becomes True, or False if the book's `emb_dim` is given

    def __post_init__(self, **kwargs):
        kwargs.pop("model_type", None)  # a GPT-2 config.json has "gpt2"; the weight table is registered under ours
        for name in GPT2_IGNORED:
            kwargs.pop(name, None)
        for name, needed in GPT2_FIXED.items():
            if kwargs.pop(name, needed) != needed:
                raise ValueError(f"{name}={not needed} is a variant of GPT-2 that this model does not have.")
        if self.tie_word_embeddings is None:
            self.tie_word_embeddings = "emb_dim" not in kwargs
        if (rate := kwargs.pop("drop_rate", None)) is not None:
            self.drop_rate = rate
        for alias in [name for name in kwargs if name in ALIASES]:
            setattr(self, ALIASES[alias], kwargs.pop(alias))  # under the real name, so that the type is checked
        kwargs.setdefault("auto_map", dict(AUTO_MAP))
        super().__post_init__(**kwargs)
        if self.intermediate_size is None:
            self.intermediate_size = 4 * self.hidden_size
        self.validate_architecture()  # here for a plain ValueError; @strict calls it again, also before saving

    def validate_architecture(self):
        """Raise a ValueError that names the first field with an impossible value."""
        super().validate_architecture()
        sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        for name in (*sizes, "max_position_embeddings"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {value!r}; it must be a whole number of at least 1.")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}: "
                "all heads have the same width. Change one of the two."
            )
        for name in ("embed_dropout", "attention_dropout", "resid_dropout"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not 0 <= value <= 1:
                raise ValueError(f"{name} is {value!r}; it must be between 0 and 1.")
        if self.hidden_act not in ACT2FN:
            raise ValueError(f"hidden_act is {self.hidden_act!r}; it must be one of {', '.join(ACT2FN)}.")
        for name in ("layer_norm_eps", "initializer_range", "embedding_initializer_range"):
            value = getattr(self, name)
            if value is None and name == "embedding_initializer_range":
                continue
            if not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
                raise ValueError(f"{name} is {value!r}; it must be a number of at least 0.")

    @property
    def drop_rate(self) -> float | int | None:
        """The book's name for all three dropouts; None if they differ. Setting it sets all three."""
        rates = {self.embed_dropout, self.attention_dropout, self.resid_dropout}
        return rates.pop() if len(rates) == 1 else None

    @drop_rate.setter
    def drop_rate(self, rate: float | int) -> None:
        self.embed_dropout = self.attention_dropout = self.resid_dropout = rate

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as transformers does, and first add our modules to peft's default target modules.

        peft calls this method before it looks up its defaults. So `LoraConfig(task_type="CAUSAL_LM")` adapts the same
        matrices as in GPT-2, whichever of peft and this class is imported first.
        """
        peft = sys.modules.get("peft.utils.constants")
        for name, table in vars(peft).items() if peft else ():
            if name.startswith("TRANSFORMERS_MODELS_TO_") and isinstance(table.get("gpt2"), list):
                names = [new for old in table["gpt2"] for new in PEFT_NAMES.get(old, [old])]
                table.setdefault(self.model_type, names)
        return super().to_dict()

    @classmethod
    def get_config_dict(cls, *args, **kwargs) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read a config.json as transformers does; GPT-2's counts as ours, so transformers prints no warning."""
        values, unused = super().get_config_dict(*args, **kwargs)
        if values.get("model_type") == "gpt2":
            values["model_type"] = cls.model_type
        return values, unused

    @classmethod
    def from_preset(cls, name: str, **changes) -> "ScratchGPTConfig":
        """Return the config of a preset with `changes` applied; the ValueError for another name lists all presets."""
        if name not in PRESETS:
            raise ValueError(f"Unknown preset {name!r}; the presets are {', '.join(PRESETS)}.")
        return cls(**{**PRESETS[name], **changes})


__all__ = ["AUTO_MAP", "PRESETS", "ScratchGPTConfig"]
