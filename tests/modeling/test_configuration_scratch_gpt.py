"""Test the config: three sets of names for one shape, exact sizes, and one clear error for a wrong value."""

import json
import re
import runpy
import sys

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from tiny import tiny_config

from scratch_gpt import ScratchGPTConfig, ScratchGPTForCausalLM, ScratchGPTModel
from scratch_gpt.modeling import configuration_scratch_gpt
from scratch_gpt_training.support.command_line import parse_overrides


# The book "Build a Large Language Model (From Scratch)", chapter 4, as printed.
GPT_CONFIG_124M = {
    "vocab_size": 50257,
    "context_length": 1024,
    "emb_dim": 768,
    "n_heads": 12,
    "n_layers": 12,
    "drop_rate": 0.1,
    "qkv_bias": False,
}

# config.json of openai-community/gpt2
GPT2_CONFIG_JSON = {
    "activation_function": "gelu_new",
    "architectures": ["GPT2LMHeadModel"],
    "attn_pdrop": 0.1,
    "bos_token_id": 50256,
    "embd_pdrop": 0.1,
    "eos_token_id": 50256,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2",
    "n_ctx": 1024,
    "n_embd": 768,
    "n_head": 12,
    "n_layer": 12,
    "n_positions": 1024,
    "resid_pdrop": 0.1,
    "summary_activation": None,
    "summary_first_dropout": 0.1,
    "summary_proj_to_labels": True,
    "summary_type": "cls_index",
    "summary_use_proj": True,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    "vocab_size": 50257,
}

# The names of a field per line: ours, GPT-2's, the book's.
SAME_FIELD = [
    ("hidden_size", 48, "n_embd", "emb_dim"),
    ("num_hidden_layers", 3, "n_layer", "n_layers"),
    ("num_attention_heads", 8, "n_head", "n_heads"),
    ("max_position_embeddings", 17, "n_positions", "context_length"),
    ("intermediate_size", 40, "n_inner"),
    ("hidden_act", "relu", "activation_function"),
    ("embed_dropout", 0.2, "embd_pdrop"),
    ("attention_dropout", 0.2, "attn_pdrop"),
    ("resid_dropout", 0.2, "resid_pdrop"),
    ("layer_norm_eps", 1e-3, "layer_norm_epsilon"),
    ("attention_bias", False, "qkv_bias"),
]


def parameter_count(config: ScratchGPTConfig) -> int:
    with torch.device("meta"):
        return ScratchGPTForCausalLM(config).num_parameters()  # a tied head is counted once


@pytest.mark.parametrize("ours, value, alias", [(row[0], row[1], alias) for row in SAME_FIELD for alias in row[2:]])
def test_an_alias_is_the_field_itself(ours, value, alias):
    config = ScratchGPTConfig(**{alias: value})
    assert getattr(config, ours) == getattr(config, alias) == value != getattr(ScratchGPTConfig(), ours)
    assert alias not in config.to_dict() and config.to_dict()[ours] == value
    config = ScratchGPTConfig()
    setattr(config, alias, value)
    assert getattr(config, ours) == value


def test_the_books_drop_rate_equals_all_three_dropouts_in_both_directions():
    config = ScratchGPTConfig(drop_rate=0.3)
    assert config.drop_rate == config.embed_dropout == config.attention_dropout == config.resid_dropout == 0.3
    config.drop_rate = 0.2
    assert config.drop_rate == config.embed_dropout == config.attention_dropout == config.resid_dropout == 0.2
    assert "drop_rate" not in config.to_dict()
    again = ScratchGPTConfig.from_dict(config.to_dict(), drop_rate=0.25)
    assert again.drop_rate == again.resid_dropout == 0.25
    config.embed_dropout = 0.0
    assert config.drop_rate is None  # the three dropouts differ
    assert parse_overrides("drop_rate=0.4", ScratchGPTConfig) == {"drop_rate": 0.4}
    config.drop_rate = 1.5
    with pytest.raises(ValueError, match="embed_dropout is 1.5"):
        config.validate_architecture()


@pytest.mark.parametrize("version", ["4.57.6", "5.0.0", "5.5.4", "5.5.0.dev0"])
def test_an_older_transformers_is_refused_with_the_required_version(version, monkeypatch):
    monkeypatch.setattr(sys.modules["transformers"], "__version__", version)
    message = f"need transformers 5.6 or newer; this is {version}. Run: pip install -U"
    with pytest.raises(ImportError, match=re.escape(message)):
        runpy.run_path(configuration_scratch_gpt.__file__)
    monkeypatch.setattr(sys.modules["transformers"], "__version__", "6.0.0.dev0")
    runpy.run_path(configuration_scratch_gpt.__file__)


def test_the_books_config_gives_the_books_model():
    config = ScratchGPTConfig(**{**GPT_CONFIG_124M, "drop_rate": 0.3})
    assert config.embed_dropout == config.attention_dropout == config.resid_dropout == 0.3
    config = ScratchGPTConfig(**GPT_CONFIG_124M)
    assert not config.tie_word_embeddings and not config.attention_bias
    assert parameter_count(config) == 163_009_536
    with torch.device("meta"):
        block = ScratchGPTModel(config).layers[0]
    assert sum(parameter.numel() for parameter in block.parameters()) == 7_085_568
    tied = ScratchGPTConfig(**GPT_CONFIG_124M, tie_word_embeddings=True)
    assert parameter_count(tied) == 163_009_536 - 50257 * 768


@pytest.mark.parametrize(
    "name, parameters",
    [
        ("gpt2", 124_439_808),
        ("gpt2-medium", 354_823_168),
        ("gpt2-large", 774_030_080),
        ("gpt2-xl", 1_557_611_200),
        ("small", 30_044_544),
        ("tiny", 7_242_624),
    ],
)
def test_each_preset_has_its_exact_size(name, parameters):
    assert parameter_count(ScratchGPTConfig.from_preset(name)) == parameters


def test_the_default_config_is_stock_gpt2():
    assert parameter_count(ScratchGPTConfig()) == 124_439_808
    assert ScratchGPTConfig() == ScratchGPTConfig.from_preset("gpt2")


def test_a_preset_takes_overrides_and_an_unknown_one_lists_the_presets():
    config = ScratchGPTConfig.from_preset("tiny", vocab_size=1000, num_hidden_layers=2)
    assert (config.vocab_size, config.num_hidden_layers, config.hidden_size) == (1000, 2, 128)
    assert ScratchGPTConfig.from_preset("tiny").num_hidden_layers == 4  # the preset is unchanged
    with pytest.raises(ValueError, match=r"'gpt3'.*gpt2-medium.*tiny"):
        ScratchGPTConfig.from_preset("gpt3")


WRONG = [
    ({"hidden_size": 30}, r"hidden_size 30 .* num_attention_heads 4"),
    ({"n_embd": 30}, r"hidden_size 30 .* num_attention_heads 4"),
    ({"num_attention_heads": 5}, r"hidden_size 32 .* num_attention_heads 5"),
    ({"num_attention_heads": 0}, "num_attention_heads is 0"),
    ({"vocab_size": -1}, "vocab_size is -1"),
    ({"n_layers": -3}, "num_hidden_layers is -3"),
    ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
    ({"intermediate_size": 0}, "intermediate_size is 0"),
    ({"context_length": -64}, "max_position_embeddings is -64"),
    ({"embed_dropout": 1.5}, "embed_dropout is 1.5"),
    ({"attn_pdrop": -0.1}, "attention_dropout is -0.1"),
    ({"resid_dropout": float("nan")}, "resid_dropout is nan"),
    ({"layer_norm_eps": -1e-5}, "layer_norm_eps is -1e-05"),
    ({"initializer_range": float("inf")}, "initializer_range is inf"),
    ({"embedding_initializer_range": -1}, "embedding_initializer_range is -1"),
    ({"n_head": 2.5}, "num_attention_heads"),  # @strict refuses a wrong type with its own message
    ({"vocab_size": "99"}, "vocab_size"),
    ({"hidden_act": "gelu_newest"}, "hidden_act.*gelu_newest"),
]


@pytest.mark.parametrize("wrong, message", WRONG, ids=[repr(wrong) for wrong, _ in WRONG])
class TestAWrongValueIsOneClearError:
    def test_at_construction(self, wrong, message):
        with pytest.raises((ValueError, StrictDataclassError), match=message):
            tiny_config(**wrong)

    def test_when_set_later_and_saved(self, wrong, message, tmp_path):
        with pytest.raises((ValueError, StrictDataclassError), match=message):
            self.changed(wrong).save_pretrained(tmp_path)
        assert not (tmp_path / "config.json").exists()

    def test_when_set_later_and_a_model_is_built(self, wrong, message):
        with pytest.raises((ValueError, StrictDataclassError), match=message):
            ScratchGPTForCausalLM(self.changed(wrong))

    @staticmethod
    def changed(wrong: dict) -> ScratchGPTConfig:
        config = tiny_config()
        for name, value in wrong.items():
            setattr(config, name, value)
        return config


def test_dropouts_of_0_and_1_are_allowed():
    config = tiny_config(embed_dropout=0, attention_dropout=1, resid_dropout=1.0)
    assert (config.embed_dropout, config.attention_dropout, config.resid_dropout) == (0, 1, 1)


@pytest.mark.parametrize(
    "variant",
    [{"scale_attn_weights": False}, {"scale_attn_by_inverse_layer_idx": True}, {"add_cross_attention": True}],
)
def test_a_gpt2_variant_that_computes_something_else_is_refused_by_name(variant, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**GPT2_CONFIG_JSON, **variant}))
    with pytest.raises(ValueError, match=next(iter(variant))):
        ScratchGPTConfig.from_pretrained(tmp_path)


def test_gpt2s_config_json_is_read_as_our_own(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**GPT2_CONFIG_JSON, "scale_attn_weights": True}))
    config = ScratchGPTConfig.from_pretrained(tmp_path)
    assert config.model_type == "scratch_gpt"  # otherwise the loader does not find the weight table
    assert (config.eos_token_id, config.intermediate_size, config.hidden_act) == (50256, 3072, "gelu_new")
    assert config.tie_word_embeddings
    assert parameter_count(config) == 124_439_808
    left = {"model_type", "architectures", "initializer_range", "vocab_size", "bos_token_id", "eos_token_id"}
    assert set(config.to_dict()) & set(GPT2_CONFIG_JSON) == left


@pytest.mark.parametrize(
    "config",
    [
        ScratchGPTConfig(),
        ScratchGPTConfig(**GPT_CONFIG_124M),
        ScratchGPTConfig.from_preset("small", vocab_size=512, hidden_act="relu"),
        tiny_config(num_labels=3, problem_type="regression", pad_token_id=98, eos_token_id=[1, 2], attn_pdrop=1),
    ],
    ids=["default", "book", "preset", "classifier"],
)
def test_a_config_survives_the_disk(config, tmp_path):
    config.save_pretrained(tmp_path)
    again = ScratchGPTConfig.from_pretrained(tmp_path)
    assert again.to_dict() == config.to_dict()
    again.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "config.json").read_text() == (tmp_path / "config.json").read_text()
    assert json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"] is config.tie_word_embeddings


def test_every_saved_config_names_the_code_of_every_auto_class(tmp_path):
    tiny_config().save_pretrained(tmp_path)
    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert set(auto_map) == {"AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoModelForSequenceClassification"}


def test_two_configs_share_no_state():
    first, second = tiny_config(), tiny_config()
    first.auto_map["AutoModel"] = "elsewhere"
    assert second.auto_map["AutoModel"] == tiny_config().auto_map["AutoModel"] != "elsewhere"
