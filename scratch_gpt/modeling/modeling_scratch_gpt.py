"""The GPT model: token ids, hidden states, logits, with the code in the order that a token passes through it.

B batch, T queries (this call's tokens), S keys (cached and new), H heads, K head size, D width, V vocabulary.

GPT-2's architecture: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners".
This file travels inside every checkpoint, so it imports only torch and transformers.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin  # pyright: ignore[reportPrivateImportUsage]
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    SequenceClassifierOutputWithPast,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.processing_utils import Unpack  # pyright: ignore[reportPrivateImportUsage]
from transformers.utils import TransformersKwargs, can_return_tuple  # pyright: ignore[reportPrivateImportUsage]
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_scratch_gpt import ScratchGPTConfig
from .gpt2_layout import GPT2_BUFFERS, load_any_layout, register_gpt2_layout
from .linear_cross_entropy import head_losses


register_gpt2_layout(ScratchGPTConfig.model_type)

# The name of the key-value cache in this transformers: "cache" since 5.24, "past_key_values" before. Our `forward`
# accepts both names; outputs, masks and blocks get the one that this version uses.
CACHE = "cache" if "cache" in {field.name for field in fields(BaseModelOutputWithPast)} else "past_key_values"


# --- Attention ---------------------------------------------------------------------------------------------------


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,  # (B, H, T, K)
    key: torch.Tensor,  # (B, H, S, K)
    value: torch.Tensor,  # (B, H, S, K)
    attention_mask: torch.Tensor | None,  # (B or 1, 1, T, S), added to the scores: 0 to see, very negative to hide
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute scaled dot-product attention in plain steps (Vaswani et al. 2017, equation 1).

    It can be called without a model: of `module` it reads only `training`, for dropout. A mask of zeros hides nothing.

    Returns:
        The context vectors (B, T, H, K) and the attention weights (B, H, T, S), which sum to 1 over S before dropout.
    """
    scores = query @ key.transpose(-2, -1) * scaling  # (B, H, T, S)
    lowest = torch.finfo(scores.dtype).min
    if attention_mask is None:  # hide the future: query t is the key S - T + t
        T, S = scores.shape[-2:]
        visible = torch.ones(T, S, dtype=torch.bool, device=scores.device).tril(S - T)
        scores = scores.masked_fill(~visible, lowest)
    else:  # in the scores' type: fp32 would double the memory traffic from here on
        scores = scores + attention_mask.clamp(min=lowest).to(scores.dtype)
    weights = scores.softmax(-1)  # computed in fp32 for every type, and rounded once
    weights = F.dropout(weights, p=dropout, training=module.training)
    context = weights @ value  # (B, H, T, K)
    return context.transpose(1, 2).contiguous(), weights


class ScratchGPTAttention(nn.Module):
    """Multi-head causal self-attention, (B, T, D) -> (B, T, D)."""

    is_causal = True

    def __init__(self, config: ScratchGPTConfig, layer_idx: int):
        super().__init__()
        D = config.hidden_size
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = D // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.q_proj = nn.Linear(D, D, bias=config.attention_bias)
        self.k_proj = nn.Linear(D, D, bias=config.attention_bias)
        self.v_proj = nn.Linear(D, D, bias=config.attention_bias)
        self.o_proj = nn.Linear(D, D)
        cast(Any, self.o_proj).writes_residual = True  # see _init_weights

    def forward(
        self,
        x: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        B, T, _ = x.shape
        cache: Any = kwargs.pop(CACHE, None)

        def split_heads(y: torch.Tensor) -> torch.Tensor:
            return y.view(B, T, -1, self.head_dim).transpose(1, 2)  # (B, T, H * K) -> (B, H, T, K)

        q, k, v = split_heads(self.q_proj(x)), split_heads(self.k_proj(x)), split_heads(self.v_proj(x))
        if cache is not None:
            # The pages of continuous batching use the attention function's keywords.
            pages = {} if isinstance(cache, Cache) else {"kwargs": kwargs}
            k, v = cache.update(k, v, self.layer_idx, **pages)  # (B, H, S, K): earlier tokens come first

        # The config's `_attn_implementation` names the backend; "eager" is the function above.
        backend: Any = self.config._attn_implementation
        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(backend, eager_attention_forward)
        dropout = self.config.attention_dropout if self.training else 0.0
        context, weights = attend(self, q, k, v, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs)
        context = context.reshape(B, T, -1)  # heads merged: (B, T, H, K) -> (B, T, H * K)
        return self.o_proj(context), weights


# --- The block ---------------------------------------------------------------------------------------------------


class ScratchGPTMLP(nn.Module):
    """MLP on each position separately, (B, T, D) -> (B, T, D), through a wider layer and GELU (tanh form)."""

    def __init__(self, config: ScratchGPTConfig):
        super().__init__()
        width: Any = config.intermediate_size  # set by the config
        self.up_proj = nn.Linear(config.hidden_size, width)
        self.act_fn = ACT2FN[config.hidden_act]
        self.down_proj = nn.Linear(width, config.hidden_size)
        cast(Any, self.down_proj).writes_residual = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act_fn(self.up_proj(x)))


class ScratchGPTBlock(GradientCheckpointingLayer):
    """Pre-norm transformer block: attention and MLP add their outputs to the residual stream."""

    def __init__(self, config: ScratchGPTConfig, layer_idx: int):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attn = ScratchGPTAttention(config, layer_idx)
        self.ln_2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = ScratchGPTMLP(config)
        self.dropout = nn.Dropout(config.resid_dropout)

    def forward(self, x: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        x = x + self.dropout(self.attn(self.ln_1(x), **kwargs)[0])
        x = x + self.dropout(self.mlp(self.ln_2(x)))
        return x


# --- The base model ----------------------------------------------------------------------------------------------


class ScratchGPTPreTrainedModel(PreTrainedModel):
    """Base class of the ScratchGPT models: initialization, loading, saving, and the features transformers may use."""

    config: ScratchGPTConfig
    base_model_prefix = "transformer"  # as in GPT-2, so that the two layouts need no renaming for it
    supports_gradient_checkpointing = True
    _no_split_modules = ["ScratchGPTBlock"]
    _skip_keys_device_placement = ["past_key_values", "cache"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": ScratchGPTBlock, "attentions": ScratchGPTAttention}
    _keys_to_ignore_on_load_unexpected = GPT2_BUFFERS

    def __init__(self, config: ScratchGPTConfig, *args, **kwargs):
        config.validate_architecture()  # the config may have been changed after it was created
        super().__init__(config, *args, **kwargs)

    def _init_weights(self, module: nn.Module) -> None:
        # GPT-2: normal with std 0.02, biases 0, norms 1. The two projections that write into the residual stream are
        # scaled by 1 / sqrt(2 * layers), so that the stream's variance does not grow with depth. (They are marked,
        # because for custom code transformers calls this only with modules that hold parameters themselves.)
        # Embeddings have another std if the config says so.
        super()._init_weights(module)
        if getattr(module, "writes_residual", False):
            std = self.config.initializer_range / math.sqrt(2 * self.config.num_hidden_layers)
            init.normal_(cast(torch.Tensor, module.weight), std=std)
        if isinstance(module, nn.Embedding) and self.config.embedding_initializer_range is not None:
            init.normal_(module.weight, std=self.config.embedding_initializer_range)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, **kwargs):
        """Load as transformers does, and also shard and quantize GPT-2's files if requested (gpt2_layout.py)."""
        return load_any_layout(super().from_pretrained, pretrained_model_name_or_path, *model_args, **kwargs)

    def save_pretrained(
        self, save_directory, is_main_process=True, state_dict=None, *args, save_original_format=False, **kwargs
    ):
        """Save as transformers does, with our tensor names for weights that were read from any layout."""
        state_dict = None if state_dict is None else dict(state_dict)  # transformers empties the dict that it saves
        return super().save_pretrained(
            save_directory, is_main_process, state_dict, *args, save_original_format=save_original_format, **kwargs
        )


def _choose_cache(past_key_values: Any, cache: Any, kwargs: Mapping[str, Any]) -> Any:
    """Return the cache, passed under either of its two names.

    Raises:
        ValueError: both names are given, an unknown keyword holds a cache, or the cache has another type.
    """
    if past_key_values is not None and cache is not None and cache is not past_key_values:
        raise ValueError("past_key_values and cache are two names of one argument. Give one of them.")
    for name, value in kwargs.items():
        if isinstance(value, Cache) or (value is not None and ("cache" in name or "past" in name)):
            raise ValueError(f"This model does not use {name}. Give its key-value cache as past_key_values or cache.")
    cache = past_key_values if cache is None else cache
    if cache is not None and not hasattr(cache, "update"):
        raise ValueError(
            f"The key-value cache is a {type(cache).__name__}. Give a transformers Cache, such as DynamicCache."
        )
    return cache


class ScratchGPTModel(ScratchGPTPreTrainedModel):
    """The base model: embeddings, blocks and final norm, token ids (B, T) -> hidden states (B, T, D)."""

    def __init__(self, config: ScratchGPTConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.dropout = nn.Dropout(config.embed_dropout)
        self.layers = nn.ModuleList([ScratchGPTBlock(config, n) for n in range(config.num_hidden_layers)])
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        cache: Cache | None = None,
        **kwargs: Any,  # TransformersKwargs
    ) -> BaseModelOutputWithPast:
        """Return the last hidden states and, if requested, the cache, all hidden states and attention weights.

        Args:
            input_ids: (B, T) token ids. Give these or `inputs_embeds` (B, T, D).
            attention_mask: (B, S), 1 for a token and 0 for padding on either side. Positions are counted from it.
            position_ids: (B, T). Restarting at 0 inside a row marks packed documents, which then do not see each
                other. Give no attention_mask then, and `use_cache=False`: with a cache the row is one document.
            past_key_values: the keys and values of earlier calls. `cache` is transformers' newer name for it.
            cache: see `past_key_values`; give one of the two.

        Raises:
            ValueError: a row and the tokens cached before it exceed `max_position_embeddings`; a cache under another
                name than these two, or one that is not transformers' `Cache`.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of input_ids and inputs_embeds.")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)  # (B, T, D)
        assert inputs_embeds is not None
        cache = _choose_cache(past_key_values, cache, kwargs)
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config)

        T = inputs_embeds.shape[1]
        paged = cache is not None and not isinstance(cache, Cache)  # continuous batching passes mask and positions
        past = 0 if cache is None or paged else cache.get_seq_length()
        mask_cache: dict[str, Any] = {CACHE: cache if CACHE == "cache" or not paged else None}
        causal_mask = create_causal_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,  # only as the caller gave them: packed documents restart them
            **mask_cache,
        )
        if position_ids is None:
            if attention_mask is not None and attention_mask.dim() == 2:  # padding has no position
                position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -T:]
            else:
                position_ids = torch.arange(T, device=inputs_embeds.device).unsqueeze(0) + past
        limit = self.config.max_position_embeddings
        if not torch.compiler.is_compiling() and past + T > limit and int(position_ids.max()) >= limit:
            raise ValueError(
                f"The input reaches {int(position_ids.max()) + 1} tokens, but this model has max_position_embeddings="
                f"{limit}. Shorten the prompt, ask for fewer new tokens, or use a model with a longer context."
            )

        # Before 5.24 the pages of continuous batching go to the attention function, not to the module.
        state: dict[str, Any] = {"cache" if paged else CACHE: cache}
        x = self.dropout(inputs_embeds + self.embed_positions(position_ids))
        for block in self.layers[: self.config.num_hidden_layers]:
            x = block(x, attention_mask=causal_mask, use_cache=use_cache, **state, **kwargs)
        output_cache: dict[str, Any] = {CACHE: None if paged else cache}
        return BaseModelOutputWithPast(last_hidden_state=self.norm(x), **output_cache)


# --- The heads ---------------------------------------------------------------------------------------------------


class ScratchGPTForCausalLM(ScratchGPTPreTrainedModel, GenerationMixin):
    """The base model with a language modeling head, which by default shares its weights with the token embedding."""

    _tied_weights_keys = {"lm_head.weight": "transformer.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _pp_plan: Any = {"lm_head": (["hidden_states"], ["logits"])}
    _fsdp_plan = {"lm_head": "keep_full_weight"}

    def __init__(self, config: ScratchGPTConfig):
        super().__init__(config)
        self.transformer = ScratchGPTModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()
        class_plan: Any = type(self)._tp_plan  # old versions drop it in post_init
        self._tp_plan = {**cast(dict, self._tp_plan), **class_plan}

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        token_losses: bool = False,
        cache: Cache | None = None,
        **kwargs: Any,  # TransformersKwargs
    ) -> CausalLMOutputWithPast:
        """Return the logits (B, T, V), and with labels also the cross-entropy in nats.

        Args:
            labels: (B, T), in Hugging Face's convention: the row's ids, shifted in here; -100 means no target.
            shift_labels: (B, T), instead of `labels`: the next token at each position, not shifted again. No logits
                are returned then. (It is read from the keywords, because Trainer expects every named parameter with
                "label" in its name as a column of every labeled batch.)
            token_losses: with `shift_labels`, return the loss of each position, (B, T), 0 without a target.
            num_items_in_batch: divide the summed loss by this number instead of this call's number of labels.
            logits_to_keep: the positions to score, see `_keep`.
            cache: transformers' newer name for `past_key_values`.
        """
        shift_labels = kwargs.pop("shift_labels", None)
        if token_losses and (labels is not None or shift_labels is None):
            raise ValueError("token_losses only works with shift_labels. Give shift_labels, and no labels.")
        has_targets = labels is not None or shift_labels is not None
        if has_targets and use_cache is None:
            use_cache = False  # a loss needs no cache, and a cache would join packed documents
        outputs = self.transformer(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            cache=cache,
            **kwargs,
        )
        x, logits, loss = outputs.last_hidden_state, None, None  # (B, T, D)
        if labels is None and shift_labels is not None:
            loss = head_losses(self.lm_head, x, shift_labels, summed=not token_losses)
            if not token_losses:
                count = kwargs.get("num_items_in_batch")
                count = (shift_labels != -100).sum().clamp(min=1) if count is None else count
                loss = loss / (count.to(loss.device) if torch.is_tensor(count) else count)
        else:
            logits = self.lm_head(_keep(x, logits_to_keep))
        if labels is not None:
            sizes = {"vocab_size": self.config.vocab_size, "shift_labels": shift_labels}
            loss = self.loss_function(logits=logits, labels=labels, **sizes, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **{CACHE: outputs.get(CACHE)},
        )


def _keep(x: torch.Tensor, positions: int | torch.Tensor) -> torch.Tensor:
    """Return the positions of x (B, T, D) to score.

    Args:
        positions: the number of last positions, 0 for all; or their indices, for all rows (N,) or for each row (B, N);
            or a mask (B, T) of bool, which gives (number of True, D).
    """
    if not torch.is_tensor(positions):
        return x[:, -positions:]
    if positions.dim() == 2:
        return x[positions] if positions.dtype == torch.bool else torch.take_along_dim(x, positions.unsqueeze(-1), 1)
    return x[:, positions]


def sequence_classification_loss(
    logits: torch.Tensor,  # (B, C)
    labels: torch.Tensor,  # (B,) class numbers or values, (B, C) several labels or values
    problem_type: str | None = None,
    num_items_in_batch: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """Compute cross-entropy, binary cross-entropy or squared error, as `problem_type` or the labels determine.

    Without `problem_type`, the labels' type and the number of outputs decide. The sum is divided once: by this call's
    number of labels, or by `num_items_in_batch` if a batch is split over several calls, so that the gradient does not
    depend on the split.
    """
    labels = labels.to(logits.device)
    if problem_type is None:
        is_integer = labels.dtype in (torch.int64, torch.int32)
        problem_type = "single_label_classification" if is_integer else "multi_label_classification"
        if logits.shape[-1] == 1:
            problem_type = "regression"
    if problem_type == "single_label_classification":
        labels = labels.view(-1)
        total, count = F.cross_entropy(logits, labels, ignore_index=-100, reduction="sum"), (labels != -100).sum()
    elif problem_type == "multi_label_classification":
        total = F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="sum")
        count = labels.numel()
    else:
        total = F.mse_loss(logits.view(-1), labels.view(-1).to(logits.dtype), reduction="sum")
        count = labels.numel()
    if torch.is_tensor(num_items_in_batch):
        num_items_in_batch = num_items_in_batch.to(logits.device)
    return total / (count if num_items_in_batch is None else num_items_in_batch)


class ScratchGPTForSequenceClassification(ScratchGPTPreTrainedModel):
    """The base model with a linear head on the last token of each text."""

    def __init__(self, config: ScratchGPTConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.transformer = ScratchGPTModel(config)
        self.score = nn.Linear(config.hidden_size, cast(int, config.num_labels), bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        cache: Cache | None = None,
        **kwargs: Any,  # TransformersKwargs
    ) -> SequenceClassifierOutputWithPast:
        """Return the logits (B, C) at the last token that `attention_mask` keeps; without a mask, at the last one."""
        outputs = self.transformer(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            cache=cache,
            **kwargs,
        )
        x = outputs.last_hidden_state  # (B, T, D)
        B, T, _ = x.shape
        last = torch.full((B,), T - 1, device=x.device)
        if attention_mask is not None and attention_mask.dim() == 2:
            last = T - 1 - attention_mask[:, -T:].to(x.device).long().flip(-1).argmax(-1)  # the first 1 from the right
        logits = self.score(x[torch.arange(B, device=x.device), last])
        loss = None
        if labels is not None:
            loss = sequence_classification_loss(logits, labels, self.config.problem_type, num_items_in_batch)
        return SequenceClassifierOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **{CACHE: outputs.get(CACHE)},
        )


# Trainer's label smoothing and the pipelines look up a class here by its name, also for remote code.
for _names, _model_class in (
    (modeling_auto.MODEL_MAPPING_NAMES, ScratchGPTModel),
    (modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, ScratchGPTForCausalLM),
    (modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES, ScratchGPTForSequenceClassification),
):
    _names[ScratchGPTConfig.model_type] = _model_class.__name__

__all__ = [
    "ScratchGPTForCausalLM",
    "ScratchGPTForSequenceClassification",
    "ScratchGPTModel",
    "ScratchGPTPreTrainedModel",
]
