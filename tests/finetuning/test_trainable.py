"""Test trainable parameters: exactly the named parts are trained, and their count is right."""

import re

import pytest
import torch
from tiny import tiny_gpt2, tiny_model

from scratch_gpt import ScratchGPTConfig, ScratchGPTForSequenceClassification
from scratch_gpt.finetuning.lora import add_lora
from scratch_gpt.finetuning.trainable import count_parameters, freeze, trainable_line


def trained_parts(model: torch.nn.Module) -> set[str]:
    """Return the parts with all parameters trained; raise if a part is partly trained."""
    found: dict[str, set[bool]] = {}
    for name, parameter in model.named_parameters():
        part = re.match(r"transformer\.(?:layers|h)\.\d+|transformer\.\w+|\w+", name)[0].rsplit(".", 1)
        part = ".".join(part) if part[-1].isdigit() else part[-1]
        found.setdefault(part.removeprefix("transformer."), set()).add(parameter.requires_grad)
    assert all(len(kinds) == 1 for kinds in found.values())
    return {part for part, kinds in found.items() if kinds == {True}}


@pytest.mark.parametrize(
    ("tune", "parts"),
    [
        ("full", {"embed_tokens", "embed_positions", "layers.0", "layers.1", "layers.2", "norm", "score"}),
        ("last-block", {"layers.2", "norm", "score"}),
        ("last-1-blocks", {"layers.2", "norm", "score"}),
        ("last-2-blocks", {"layers.1", "layers.2", "norm", "score"}),
        ("head", {"score"}),
    ],
)
def test_freezing_leaves_exactly_the_named_parameters_trainable(tune, parts):
    model = tiny_model(ScratchGPTForSequenceClassification, num_hidden_layers=3)
    freeze(model, "head")  # earlier freezing has no effect
    assert freeze(model, tune) == [] and trained_parts(model) == parts
    untied = tiny_model(num_hidden_layers=3, tie_word_embeddings=False)
    assert freeze(untied, tune) == []
    assert trained_parts(untied) == {"lm_head" if part == "score" else part for part in parts}


def test_a_tied_head_is_not_trained_and_a_message_says_so():
    for model, block, norm in ((tiny_model(), "layers.1", "norm"), (tiny_gpt2(), "h.1", "ln_f")):
        (notice,) = freeze(model, "last-block")
        assert "token embedding" in notice and trained_parts(model) == {block, norm}
        with pytest.raises(ValueError, match="this model's head is its token embedding"):
            freeze(model, "head")
        with pytest.raises(ValueError, match="the model has 2 blocks"):
            freeze(model, "last-3-blocks")
        with pytest.raises(ValueError, match="last-0-blocks.*it must be full, last-block"):
            freeze(model, "last-0-blocks")


def test_the_counted_parameters_of_gpt2():
    with torch.device("meta"):
        model = ScratchGPTForSequenceClassification(ScratchGPTConfig.from_preset("gpt2", num_labels=2))
    whole = count_parameters(model)[0]
    add_lora(model, rank=16, targets="all-linear")
    assert count_parameters(model) == (2_666_528, whole + 2_666_528)
    assert trainable_line(model) == "Training 2,666,528 of 127,107,872 parameters (2.10 %)"
