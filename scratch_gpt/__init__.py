"""A GPT written from scratch that every Hugging Face client can load, train, tune and publish.

Importing this package makes `AutoConfig`, `AutoModel`, `AutoModelForCausalLM` and `AutoModelForSequenceClassification`
know our classes. Everything else is imported when it is first asked for.
"""

from importlib import import_module

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from .modeling.configuration_scratch_gpt import ScratchGPTConfig
from .modeling.modeling_scratch_gpt import (
    ScratchGPTForCausalLM,
    ScratchGPTForSequenceClassification,
    ScratchGPTModel,
    ScratchGPTPreTrainedModel,
)


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

# name -> the module it is imported from when it is first asked for
_LAZY = {
    "export_gpt2": "conversion.gpt2_export",
    "import_checkpoint": "conversion.foreign_checkpoints",
    "generate": "generation.generate",
    "generate_text": "generation.generate",
    "load_tokenizer": "tokenization.tokenizer",
    "train_tokenizer": "tokenization.training",
}

__all__ = [
    "ScratchGPTConfig",
    "ScratchGPTForCausalLM",
    "ScratchGPTForSequenceClassification",
    "ScratchGPTModel",
    "ScratchGPTPreTrainedModel",
    *_LAZY,
]


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
