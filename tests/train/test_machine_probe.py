"""Test the machine probe."""

import torch
from tiny import some_ids, tiny_model
from torch.utils.flop_counter import FlopCounterMode

from scratch_gpt.train import machine_probe as probe
from scratch_gpt.train.machine_probe import device_peak, known_peak, seconds_of


def test_the_muon_probe_computes_the_products_of_one_block(monkeypatch):
    def flops(work, device, budget):
        with FlopCounterMode(display=False) as counter:
            work()
        return [counter.get_total_flops()]

    monkeypatch.setattr(probe, "seconds_of", flops)
    model, ids = tiny_model().train(), some_ids(2, 8)
    how = (lambda model: model(ids, labels=ids).loss, 2, 8, "no")
    assert probe.rehearse(model, *how).block_update == 0
    model = tiny_model().train()
    D, F = model.config.hidden_size, model.config.intermediate_size
    one = 4 * (3 * 2 * D**3) + 2 * (2 * 2 * D * D * F + 2 * D**3)  # X X^T, its square, and the product with X
    assert probe.rehearse(model, *how, "muon").block_update == 5 * one


def test_the_peak_is_that_of_the_card_at_the_precision():
    assert known_peak("NVIDIA H100 80GB HBM3", "bf16") == 989e12
    assert known_peak("NVIDIA H100 PCIe", "bf16") == 756e12
    assert known_peak("NVIDIA L40S", "bf16") == 362e12 != known_peak("NVIDIA L4", "bf16")
    assert known_peak("NVIDIA A100-SXM4-80GB", "no") is None and known_peak("Another card", "bf16") is None
    assert device_peak(torch.device("meta"), "no") is None


def test_a_timed_function_has_one_warm_up_call():
    calls = []
    assert len(seconds_of(lambda: calls.append(0), torch.device("cpu"), 0.0)) == 2 and len(calls) == 3
