"""Test costs computed from a config: they equal the parameters, operations and memory of the model."""

from itertools import product

import pytest
import torch
from tiny import some_ids, tiny_config, tiny_model
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from scratch_gpt import ScratchGPTForCausalLM, ScratchGPTForSequenceClassification
from scratch_gpt.finetuning.lora import add_lora
from scratch_gpt.finetuning.trainable import count_parameters, freeze
from scratch_gpt.train.costs import (
    FULL,
    Rehearsal,
    Tune,
    all_parameters,
    block_activations,
    block_parameters,
    compute_optimal_tokens,
    memory,
    rehearsal_shape,
    row_flops,
    step_seconds,
    trained_parameters,
)
from scratch_gpt.train.optimizers import make_optimizer


ROWS, LENGTH = 2, 32  # a multiple of the head's chunk step
SHAPES = ({}, {"tie_word_embeddings": False}, {"attention_bias": False, "intermediate_size": 48})


@pytest.mark.parametrize("changes", SHAPES)
@pytest.mark.parametrize("classes", (None, 3))
def test_counted_parameters_equal_those_of_the_model(changes, classes):
    kind = ScratchGPTForCausalLM if classes is None else ScratchGPTForSequenceClassification
    config = tiny_config(**changes, **({} if classes is None else {"num_labels": classes}))
    with torch.device("meta"):
        model = kind(config)
    assert all_parameters(config, classes) == sum(parameter.numel() for parameter in model.parameters())
    assert block_parameters(config) == sum(p.numel() for p in model.transformer.layers[0].parameters())


@pytest.mark.parametrize("what", ("full", "last-block", "last-2-blocks", "head"))
@pytest.mark.parametrize("classes", (None, 3))
def test_counted_trainable_parameters_equal_those_left_unfrozen(what, classes):
    kind = ScratchGPTForCausalLM if classes is None else ScratchGPTForSequenceClassification
    config = tiny_config(tie_word_embeddings=False, num_labels=3, num_hidden_layers=3)
    model = kind(config)
    freeze(model, what)
    assert trained_parameters(config, Tune(what), classes) == count_parameters(model)[0]


@pytest.mark.parametrize("targets", ("default", "attention", "all-linear"))
@pytest.mark.parametrize("classes", (None, 3))
def test_counted_lora_parameters_equal_the_added_ones(targets, classes):
    pytest.importorskip("peft")
    kind = ScratchGPTForCausalLM if classes is None else ScratchGPTForSequenceClassification
    model = kind(tiny_config(num_labels=3))
    add_lora(model, rank=2, targets=targets)
    assert trained_parameters(model.config, Tune("lora", 2, targets), classes) == count_parameters(model)[0]


def count_flops(model) -> int:
    ids = some_ids(ROWS, LENGTH)
    with FlopCounterMode(display=False) as counter:
        model(ids, shift_labels=ids, use_cache=False).loss.backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("changes", SHAPES)
def test_flops_equal_those_that_torch_counts(changes):
    model = tiny_model(**changes).train()
    assert ROWS * row_flops(model.config, LENGTH) == count_flops(model)


@pytest.mark.parametrize("what", ("last-block", "head"))
def test_flops_of_a_part_equal_those_that_torch_counts(what):
    model = tiny_model(tie_word_embeddings=False).train()
    freeze(model, what)
    assert ROWS * row_flops(model.config, LENGTH, Tune(what)) == count_flops(model)


def kept_bytes(layers: int, attention: str, half: bool, dropout: float, recompute: bool) -> int:
    """Return the bytes that autograd keeps from a forward, without parameters."""
    rates = dict.fromkeys(("embed_dropout", "attention_dropout", "resid_dropout"), dropout)
    model = tiny_model(attention=attention, num_hidden_layers=layers, **rates).train()
    if recompute:
        model.activation_checkpointing_enable()
    weights, kept, ids = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}, some_ids(ROWS, LENGTH)

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            # Keep the tensor, so that its address is not used again.
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16, enabled=half):
        loss = model(ids, shift_labels=ids, use_cache=False).loss
    del loss
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize("attention, half, dropout", [*product(("eager", "sdpa"), (False, True), (0.0, 0.1))])
def test_activations_equal_the_bytes_that_autograd_keeps(attention, half, dropout):
    rates = dict.fromkeys(("embed_dropout", "attention_dropout", "resid_dropout"), dropout)
    config = tiny_config(**rates)
    of_one = kept_bytes(3, attention, half, dropout, False) - kept_bytes(2, attention, half, dropout, False)
    weights = 2 * 12 * 32 * 32 if half else 0
    told = ROWS * LENGTH * block_activations(config, LENGTH, half=half, flash=attention == "sdpa") + weights
    assert told == of_one


def test_recomputed_activations_equal_the_bytes_that_autograd_keeps():
    of_one = kept_bytes(3, "sdpa", False, 0.0, True) - kept_bytes(2, "sdpa", False, 0.0, True)
    assert ROWS * LENGTH * block_activations(tiny_config(), LENGTH, half=False, recompute=True) == of_one


def test_memory_grows_with_its_causes_and_the_peak_covers_its_parts():
    config = tiny_config()

    def peak(rows=2, length=32, half=False, **changes) -> int:
        return memory(config, rows, length, half=half, **changes).peak

    assert peak(rows=64) > peak(rows=32) > peak()
    assert peak(rows=64, recompute=True) < peak(rows=64)
    assert peak(rows=64, on_cpu=False) < min(peak(rows=64), peak(rows=64, on_cpu=False, accumulates=True))
    assert peak(rows=64, half=True) < peak(rows=64)
    assert peak(rows=64, tune=Tune("last-block")) < peak(rows=64)
    found = memory(config, 64, 32, half=False)
    assert found.weights == 4 * all_parameters(config) and found.optimizer == 2 * found.weights
    assert sum(found[:-1]) < found.peak
    muon = memory(config, 64, 32, half=False, optimizer="muon")
    assert found.optimizer - muon.optimizer == found.peak - muon.peak > 0


@pytest.mark.parametrize("optimizer", ("adamw", "muon"))
@pytest.mark.parametrize("what", ("full", "last-block"))
def test_moments_equal_those_of_the_optimizer(optimizer, what):
    model = tiny_model().train()
    freeze(model, what)
    model(some_ids(), labels=some_ids()).loss.backward()
    moves = make_optimizer(model, 1e-3, 0.1, optimizer)
    moves.step()
    kept = [tensor for state in moves.state.values() for name, tensor in state.items() if name != "step"]
    counted = memory(model.config, 2, 12, half=False, tune=Tune(what), optimizer=optimizer).optimizer
    assert sum(tensor.nbytes for tensor in kept) == counted


def test_step_time_scales_from_the_measured_time():
    config = tiny_config(num_hidden_layers=5)
    found = Rehearsal(rows=4, length=32, shallow=1.0, block=0.25, update=0.0)
    assert step_seconds(config, found, 4, 32) == 1.0 + 4 * 0.25
    assert step_seconds(config, found, 8, 32, accumulation_steps=3) == 6 * (1.0 + 4 * 0.25)
    assert step_seconds(config, found, 4, 32, tune=Tune("last-block")) < step_seconds(config, found, 4, 32)
    muon = found._replace(block_update=0.5)
    assert step_seconds(config, muon, 4, 32, accumulation_steps=3) == 3 * (1.0 + 4 * 0.25) + 5 * 0.5
    upper = Tune("last-2-blocks")
    assert step_seconds(config, muon, 4, 32, tune=upper) - step_seconds(config, found, 4, 32, tune=upper) == 2 * 0.5


def test_a_trial_step_is_limited_by_batch_and_time():
    config = tiny_config()
    assert rehearsal_shape(8, 64, config, 1e15) == (8, 64)
    rows, length = rehearsal_shape(8, 64, config, row_flops(config, 64) * 3)
    assert 1 < rows < 8 and length == 64
    assert rehearsal_shape(8, 1024, config, 1.0) == (1, 128)


def test_compute_optimal_tokens_are_twenty_per_parameter():
    assert compute_optimal_tokens(70_000_000_000) == 1_400_000_000_000  # Chinchilla itself: 70B, 1.4T
    assert FULL.blocks(12) == 12 and Tune("last-2-blocks").blocks(12) == 2 and Tune("lora").blocks(12) == 0
