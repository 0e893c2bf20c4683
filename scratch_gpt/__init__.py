"""A GPT written from scratch that every Hugging Face client can load, train, tune and publish.

Importing this package makes `AutoConfig`, `AutoModel`, `AutoModelForCausalLM` and `AutoModelForSequenceClassification`
know our classes. Everything else is imported at the first use of its name.
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
)


if TYPE_CHECKING:
    from .conversion.foreign_checkpoints import import_checkpoint
    from .conversion.gpt2_export import export_gpt2
    from .conversion.load import load_model
    from .data.rows.collate import collate_rows
    from .data.rows.packing import PackedRows
    from .data.rows.windows import Windows
    from .evaluation.losses import mean_losses
    from .finetuning.lora import add_lora, merged_state
    from .finetuning.trainable import freeze
    from .generation.decoder import make_decoder
    from .generation.generate import filter_logits, generate, generate_answers, generate_text, stream
    from .hub.publish import publish
    from .tokenization.tokenizer import decode, encode, extend_tokenizer, load_tokenizer
    from .tokenization.training import train_tokenizer
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
    _model_class.register_for_auto_class(_auto_class.__name__)  # saving copies the code beside the weights

# name -> its module, imported at the first use of the name; editors read the imports above. (`train` is missing: it
# would hide the package scratch_gpt.train. Import it from scratch_gpt.train.loop.)
_LAZY = {
    "PackedRows": "data.rows.packing",
    "Windows": "data.rows.windows",
    "add_lora": "finetuning.lora",
    "collate_rows": "data.rows.collate",
    "decode": "tokenization.tokenizer",
    "encode": "tokenization.tokenizer",
    "export_gpt2": "conversion.gpt2_export",
    "extend_tokenizer": "tokenization.tokenizer",
    "filter_logits": "generation.generate",
    "freeze": "finetuning.trainable",
    "generate": "generation.generate",
    "generate_answers": "generation.generate",
    "generate_text": "generation.generate",
    "import_checkpoint": "conversion.foreign_checkpoints",
    "load_model": "conversion.load",
    "load_tokenizer": "tokenization.tokenizer",
    "make_decoder": "generation.decoder",
    "mean_losses": "evaluation.losses",
    "merged_state": "finetuning.lora",
    "plot_loss": "utils.plots",
    "publish": "hub.publish",
    "stream": "generation.generate",
    "train_tokenizer": "tokenization.training",
}

__all__ = [
    "PackedRows",
    "ScratchGPTConfig",
    "ScratchGPTForCausalLM",
    "ScratchGPTForSequenceClassification",
    "ScratchGPTModel",
    "ScratchGPTPreTrainedModel",
    "Windows",
    "add_lora",
    "collate_rows",
    "decode",
    "encode",
    "export_gpt2",
    "extend_tokenizer",
    "filter_logits",
    "freeze",
    "generate",
    "generate_answers",
    "generate_text",
    "import_checkpoint",
    "load_model",
    "load_tokenizer",
    "make_decoder",
    "mean_losses",
    "merged_state",
    "plot_loss",
    "publish",
    "stream",
    "train_tokenizer",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
