"""Test optimizers and schedules: each parameter is in one optimizer, and rates follow the schedule."""

import pytest
import torch
from tiny import some_ids, tiny_model

from scratch_gpt.train.optimizers import MuonWithAdamW, adamw, clip_gradients, learning_rate_at, make_optimizer


# --- Parameters of each optimizer --------------------------------------------------------------------------------


def test_only_matrices_decay_and_each_parameter_is_in_one_group():
    model = tiny_model()
    groups = adamw(model, 1e-3, 0.1).param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert all(p.dim() >= 2 for p in groups[0]["params"]) and all(p.dim() < 2 for p in groups[1]["params"])
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("max_norm", [0.5, 1e6, float("inf")])
def test_a_clipped_step_equals_that_of_torch(name, max_norm):
    ids, norms, means = some_ids(2, 12), [], []
    for clips in (False, True):
        model = tiny_model()
        optimizer = make_optimizer(model, 1e-2, 0.1, name)
        (50 * model(ids, labels=ids).loss).backward()
        if clips:
            norms.append(clip_gradients(model.parameters(), optimizer, max_norm))
        else:
            norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm).item())
        optimizer.step()
        states = [optimizer.state[parameter] for parameter in model.parameters()]
        means.append([state.get("exp_avg", state.get("momentum_buffer")) for state in states])
    assert norms[0] > 0.5 and norms[1] == pytest.approx(norms[0], rel=1e-5)
    for a, b in zip(*means, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-7)


def test_gradients_that_are_not_fp32_on_a_cpu_are_clipped_by_torch():
    model, ids = tiny_model().bfloat16(), some_ids(2, 12)
    model(ids, labels=ids).loss.backward()
    before, asked = [p.grad.clone() for p in model.parameters()], []
    optimizer = make_optimizer(model, 1e-2, 0.1)
    clip_gradients(model.parameters(), optimizer, 1e-3, otherwise=lambda *given: asked.append(given))
    assert len(asked) == 1 and asked[0][1] == 1e-3 and getattr(optimizer, "grad_scale", None) is None
    assert all(one is other for one, other in zip(asked[0][0], model.parameters(), strict=True))
    assert all(torch.equal(p.grad, known) for p, known in zip(model.parameters(), before, strict=True))


def test_muon_updates_the_matrices_of_blocks_and_adamw_the_rest():
    model = tiny_model()
    groups = make_optimizer(model, 1e-3, 0.1, "muon").param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    matrices, embeddings, vectors = ({names[id(p)] for p in group["params"]} for group in groups)
    assert len(matrices) == 2 * 6 and all(".layers." in name and name.endswith("proj.weight") for name in matrices)
    assert embeddings == {"transformer.embed_tokens.weight", "transformer.embed_positions.weight"}
    assert matrices | embeddings | vectors == set(names.values())
    assert len(matrices) + len(embeddings) + len(vectors) == len(names)
    assert [group["weight_decay"] for group in groups] == [0.1, 0.1, 0.0]


def test_muon_with_adamw_is_torchs_two_optimizers_side_by_side():
    ours, theirs = tiny_model(), tiny_model()
    optimizer = MuonWithAdamW(ours, 1e-2, 0.1)
    named = dict(theirs.named_parameters())
    matrices = [p for name, p in named.items() if ".layers." in name and p.dim() == 2]
    rest = [p for p in named.values() if not any(p is matrix for matrix in matrices)]
    groups = [{"params": [p for p in rest if p.dim() == 2]}]
    groups += [{"params": [p for p in rest if p.dim() == 1], "weight_decay": 0.0}]
    pair = [
        torch.optim.Muon(matrices, lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(groups, lr=1e-2, weight_decay=0.1, betas=(0.9, 0.95), fused=True),
    ]
    for step in range(3):
        for model in (ours, theirs):
            model.zero_grad()
            model(some_ids(seed=step), labels=some_ids(seed=step)).loss.backward()
        optimizer.step()
        for part in pair:
            part.step()
    assert all(torch.equal(p, named[name]) for name, p in ours.named_parameters())


def test_frozen_parameters_are_in_no_optimizer_and_muon_takes_matrices_only():
    model = tiny_model()
    model.transformer.requires_grad_(False)
    model.transformer.norm.requires_grad_(True)
    with pytest.raises(ValueError, match="Choose adamw"):
        make_optimizer(model, 1e-3, 0.1, "muon")
    model.transformer.layers[1].mlp.requires_grad_(True)
    taken = [p for group in make_optimizer(model, 1e-3, 0.1, "muon").param_groups for p in group["params"]]
    assert {id(p) for p in taken} == {id(p) for p in model.parameters() if p.requires_grad}
    with pytest.raises(ValueError, match="Unknown optimizer 'sgd'. Choose one of: adamw, muon"):
        make_optimizer(model, 1e-3, 0.1, "sgd")


# --- The learning rate -------------------------------------------------------------------------------------------


def test_schedule_warms_up_and_falls_to_the_floor():
    rates = [learning_rate_at(step, 100, 1.0, warmup_steps=10, floor=0.1) for step in range(101)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == 1.0
    assert all(a >= b for a, b in zip(rates[10:], rates[11:], strict=False))
    assert rates[55] == pytest.approx(0.55) and rates[100] == pytest.approx(0.1)
    assert {learning_rate_at(step, 9, 1.0, floor=1.0) for step in range(9)} == {1.0}


def test_a_linear_schedule_falls_in_a_straight_line_to_the_floor():
    rates = [learning_rate_at(step, 100, 1.0, warmup_steps=10, shape="linear") for step in range(101)]
    falls = [a - b for a, b in zip(rates[10:], rates[11:], strict=False)]
    assert falls == pytest.approx([1 / 90] * 90) and rates[100] == 0.0
