"""A GPT written from scratch that every Hugging Face client can load, train, tune and publish.

Importing this package registers our classes with `AutoConfig`, `AutoModel`, `AutoModelForCausalLM` and
`AutoModelForSequenceClassification`. Everything else is imported at the first use of its name.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from .modeling.configuration_scratch_gpt import ScratchGPTConfig
from .modeling.modeling_scratch_gpt import (
    ScratchGPTForCausalLM,
    ScratchGPTForSequenceClassification,
    ScratchGPTModel,
    ScratchGPTPreTrainedModel,
    eager_attention_forward,
)


if TYPE_CHECKING:
    from .conversion.foreign_checkpoints import import_checkpoint, import_classifier
    from .conversion.gpt2_export import export_gpt2
    from .conversion.load import load_model
    from .data.filters.duplicates import exact_key
    from .data.filters.quality import quality_problem
    from .data.manifest import make_manifest
    from .data.prepared.mixture import target_shares
    from .data.rows.collate import collate_rows
    from .data.rows.conversations import encode_messages
    from .data.rows.packing import PackedRows
    from .data.rows.windows import Windows
    from .data.sources.documents import open_documents, split_documents
    from .data.sources.token_stream import token_stream
    from .evaluation.losses import language_metrics, mean_losses
    from .finetuning.lora import add_lora, merged_state, save_adapter
    from .finetuning.trainable import freeze
    from .generation.decoder import make_decoder
    from .generation.generate import filter_logits, generate, generate_answers, generate_text, stream
    from .hub.publish import publish
    from .hub.staging import stage
    from .runs.evaluation_file import Measured, record_measured
    from .runs.record import write_run
    from .tokenization.tokenizer import decode, encode, encode_batch, extend_tokenizer, load_tokenizer
    from .tokenization.training import train_tokenizer
    from .train.accelerator import describe_device, make_accelerator
    from .train.batches import BatchLayout, evaluation_batches
    from .train.loop import train_model
    from .train.metrics_log import read_metrics
    from .train.objectives import Objective, causal_lm
    from .train.optimizers import adamw, learning_rate_at
    from .train.preference_losses import dpo_loss
    from .train.settings import TrainingCallbacks, TrainingSettings
    from .utils.plots import plot_loss


__version__ = "0.1.0"

AutoConfig.register(ScratchGPTConfig.model_type, ScratchGPTConfig)
ScratchGPTConfig.register_for_auto_class()
for _auto_class, _model_class in (
    (AutoModel, ScratchGPTModel),
    (AutoModelForCausalLM, ScratchGPTForCausalLM),
    (AutoModelForSequenceClassification, ScratchGPTForSequenceClassification),
):
    _auto_class.register(ScratchGPTConfig, _model_class)
    _model_class.register_for_auto_class(_auto_class.__name__)  # saving copies the code next to the weights

# name -> its module, imported at the first use of the name; editors read the imports above
_LAZY = {
    "BatchLayout": "train.batches",
    "Measured": "runs.evaluation_file",
    "Objective": "train.objectives",
    "PackedRows": "data.rows.packing",
    "TrainingCallbacks": "train.settings",
    "TrainingSettings": "train.settings",
    "Windows": "data.rows.windows",
    "adamw": "train.optimizers",
    "add_lora": "finetuning.lora",
    "causal_lm": "train.objectives",
    "collate_rows": "data.rows.collate",
    "decode": "tokenization.tokenizer",
    "describe_device": "train.accelerator",
    "dpo_loss": "train.preference_losses",
    "encode": "tokenization.tokenizer",
    "encode_batch": "tokenization.tokenizer",
    "encode_messages": "data.rows.conversations",
    "evaluation_batches": "train.batches",
    "exact_key": "data.filters.duplicates",
    "export_gpt2": "conversion.gpt2_export",
    "extend_tokenizer": "tokenization.tokenizer",
    "filter_logits": "generation.generate",
    "freeze": "finetuning.trainable",
    "generate": "generation.generate",
    "generate_answers": "generation.generate",
    "generate_text": "generation.generate",
    "import_checkpoint": "conversion.foreign_checkpoints",
    "import_classifier": "conversion.foreign_checkpoints",
    "language_metrics": "evaluation.losses",
    "learning_rate_at": "train.optimizers",
    "load_model": "conversion.load",
    "load_tokenizer": "tokenization.tokenizer",
    "make_accelerator": "train.accelerator",
    "make_decoder": "generation.decoder",
    "make_manifest": "data.manifest",
    "mean_losses": "evaluation.losses",
    "merged_state": "finetuning.lora",
    "open_documents": "data.sources.documents",
    "plot_loss": "utils.plots",
    "publish": "hub.publish",
    "quality_problem": "data.filters.quality",
    "read_metrics": "train.metrics_log",
    "record_measured": "runs.evaluation_file",
    "save_adapter": "finetuning.lora",
    "split_documents": "data.sources.documents",
    "stage": "hub.staging",
    "stream": "generation.generate",
    "target_shares": "data.prepared.mixture",
    "token_stream": "data.sources.token_stream",
    "train_model": "train.loop",
    "train_tokenizer": "tokenization.training",
    "write_run": "runs.record",
}

__all__ = [
    "BatchLayout",
    "Measured",
    "Objective",
    "PackedRows",
    "ScratchGPTConfig",
    "ScratchGPTForCausalLM",
    "ScratchGPTForSequenceClassification",
    "ScratchGPTModel",
    "ScratchGPTPreTrainedModel",
    "TrainingCallbacks",
    "TrainingSettings",
    "Windows",
    "adamw",
    "add_lora",
    "causal_lm",
    "collate_rows",
    "decode",
    "describe_device",
    "dpo_loss",
    "eager_attention_forward",
    "encode",
    "encode_batch",
    "encode_messages",
    "evaluation_batches",
    "exact_key",
    "export_gpt2",
    "extend_tokenizer",
    "filter_logits",
    "freeze",
    "generate",
    "generate_answers",
    "generate_text",
    "import_checkpoint",
    "import_classifier",
    "language_metrics",
    "learning_rate_at",
    "load_model",
    "load_tokenizer",
    "make_accelerator",
    "make_decoder",
    "make_manifest",
    "mean_losses",
    "merged_state",
    "open_documents",
    "plot_loss",
    "publish",
    "quality_problem",
    "read_metrics",
    "record_measured",
    "save_adapter",
    "split_documents",
    "stage",
    "stream",
    "target_shares",
    "token_stream",
    "train_model",
    "train_tokenizer",
    "write_run",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
