"""Run Hugging Face's common model tests on our three classes, and on two stock models as controls.

    python tests/conformance/fetch.py && python -m pytest tests/conformance -q

A test that also fails or skips for the controls points to this machine or the suite, not to our model.
"""

import functools
import json
import os
import string
import unittest
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from unittest import mock

import pytest
import torch
import transformers
from fetch import unpacked_version
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedConfig

from scratch_gpt import (
    ScratchGPTConfig,
    ScratchGPTForCausalLM,
    ScratchGPTForSequenceClassification,
    ScratchGPTModel,
    ScratchGPTPreTrainedModel,
)


if unpacked_version() != version("transformers"):
    pytest.skip(
        f"Hugging Face's tests of transformers {version('transformers')} are missing (found: {unpacked_version()}); "
        "run `python tests/conformance/fetch.py` once, with a network.",
        allow_module_level=True,
    )


@dataclass(frozen=True)
class Family:
    """The classes of a model and the names of its config fields."""

    config: type
    base: type
    causal_lm: type
    classifier: type
    extra: dict
    width: str = "hidden_size"  # as in config.json

    @property
    def classes(self) -> tuple[type, ...]:
        return self.base, self.causal_lm, self.classifier


OURS = Family(
    ScratchGPTConfig,
    ScratchGPTModel,
    ScratchGPTForCausalLM,
    ScratchGPTForSequenceClassification,
    {"embed_dropout": 0.0, "attention_dropout": 0.0, "resid_dropout": 0.0, "intermediate_size": 37},
)
GPT2 = Family(
    transformers.GPT2Config,
    transformers.GPT2Model,
    transformers.GPT2LMHeadModel,
    transformers.GPT2ForSequenceClassification,
    {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0, "n_inner": 37},
    width="n_embd",
)
LLAMA = Family(
    transformers.LlamaConfig,
    transformers.LlamaModel,
    transformers.LlamaForCausalLM,
    transformers.LlamaForSequenceClassification,
    {"intermediate_size": 37},
)


class Tiny:
    """The tiny config and random batch of a family, with the names that the mixins use."""

    batch_size, seq_length = 13, 7
    vocab_size, hidden_size, num_hidden_layers, num_attention_heads = 99, 32, 2, 4
    is_training = True
    pad_token_id, bos_token_id, eos_token_id = 0, 1, 2

    def __init__(self, family: Family):
        self.family = family
        self.base_model_class = family.base
        self.causal_lm_class = family.causal_lm
        self.sequence_classification_class = family.classifier
        self.all_model_classes = family.classes

    def get_config(self) -> PreTrainedConfig:
        names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
        tokens = ("pad_token_id", "bos_token_id", "eos_token_id")
        sizes = {name: getattr(self, name) for name in (*names, *tokens)}
        return self.family.config(**sizes, max_position_embeddings=512, **self.family.extra)

    def prepare_config_and_inputs_for_common(self) -> tuple[PreTrainedConfig, dict[str, torch.Tensor]]:
        input_ids = torch.randint(self.eos_token_id + 1, self.vocab_size, (self.batch_size, self.seq_length))
        return self.get_config(), {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids).tril()}


# --- Models on disk, for the pipeline tests ------------------------------------------------------------------------

TINY_MODELS = Path(os.environ["TRANSFORMERS_TINY_MODEL_PATH"])
(TINY_MODELS / "reports").mkdir()
(TINY_MODELS / "reports" / "tiny_model_summary.json").write_text(  # read when the pipeline mixin is imported
    json.dumps(
        {
            model_class.__name__: {"tokenizer_classes": ["PreTrainedTokenizerFast"], "processor_classes": []}
            for family in (OURS, GPT2, LLAMA)
            for model_class in family.classes
        }
    )
)


def character_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """One id per printable ASCII character: fits the testers' vocabulary of 99."""
    letters = ["<pad>", "<bos>", "<eos>", "<unk>", *(c for c in string.printable if c.isprintable())]
    vocab = {letter: i for i, letter in enumerate(letters)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )


def save_tiny_models(family: Family) -> None:
    for model_class in family.classes:
        folder = TINY_MODELS / family.config.model_type / model_class.__name__
        torch.manual_seed(0)
        model_class(Tiny(family).get_config()).save_pretrained(folder)
        character_tokenizer().save_pretrained(folder)


from tests.test_configuration_common import ConfigTester  # noqa: E402
from tests.test_modeling_common import ModelTesterMixin  # noqa: E402
from tests.test_training_mixin import TrainingTesterMixin  # noqa: E402

from tests import test_fsdp_mixin, test_pipeline_mixin, test_tensor_parallel_mixin  # noqa: E402


# The source distribution lacks these four: ours replace them.
for task, name in (
    ("feature-extraction", "FeatureExtraction"),
    ("text-classification", "TextClassification"),
    ("text-generation", "TextGeneration"),
    ("zero-shot", "ZeroShotClassification"),
):
    test_pipeline_mixin.pipeline_test_mapping[task]["test"] = f"stand_ins.{name}PipelineTests"
# Hugging Face runs the tests of several processes on few models only; here they run on all three.
test_fsdp_mixin.FSDP_DISTRIBUTED_TEST_MODEL_TYPES = None
test_tensor_parallel_mixin.TP_DISTRIBUTED_TEST_MODEL_TYPES = None


class Common(
    ModelTesterMixin,
    test_pipeline_mixin.PipelineTesterMixin,
    TrainingTesterMixin,
    test_tensor_parallel_mixin.TensorParallelTesterMixin,
    test_fsdp_mixin.FSDPTesterMixin,
):
    """Every mixin, on the classes of one family."""

    family: Family

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        save_tiny_models(cls.family)

    def setUp(self) -> None:
        super().setUp()
        self.model_tester = Tiny(self.family)
        self.all_model_classes = self.family.classes
        self._torch_compile_train_cls = self.family.causal_lm
        base, causal_lm, classifier = self.family.classes
        self.pipeline_model_mapping = {
            "feature-extraction": base,
            "text-generation": causal_lm,
            "text-classification": classifier,
            "zero-shot": classifier,
        }

    def test_generation_tester_mixin_inheritance(self) -> None:
        self.skipTest("Hugging Face's generation tests are not in the source distribution.")

    def test_config(self) -> None:
        ConfigTester(self, config_class=self.family.config, **{self.family.width: 96}).run_common_tests()


class ScratchGPTTest(Common, unittest.TestCase):
    family = OURS
    test_can_init_all_missing_weights_before_2023 = True  # our files have no year; the test is selected by name

    def test_reverse_loading_mapping(self) -> None:
        """Save GPT-2's names, as this test expects; by default our class saves its own names."""
        ours = ScratchGPTPreTrainedModel.save_pretrained
        original = functools.partialmethod(ours, save_original_format=True)
        with mock.patch.object(ScratchGPTPreTrainedModel, "save_pretrained", original):
            super().test_reverse_loading_mapping()


class GPT2Test(Common, unittest.TestCase):
    family = GPT2


class LlamaTest(Common, unittest.TestCase):
    family = LLAMA
