"""Test gradient scores: they are cosines with the mean gradient, and scoring does not change the model."""

import numpy as np
import pytest
import torch
from tiny import some_ids, tiny_model

from scratch_gpt.data.filters.poisoning import gradient_scores, gradient_sketches, neighbor_scores, outliers
from scratch_gpt.data.rows.collate import collate_rows
from scratch_gpt.train.objectives import causal_lm


def make_rows(n: int = 6, length: int = 12) -> list[dict]:
    ids = some_ids(n, length + 1).numpy()
    rows = [{"input_ids": row[:-1], "shift_labels": row[1:].copy()} for row in ids]
    rows[1]["shift_labels"][3:] = -100
    return rows


def last_block(name: str) -> bool:
    return "layers.1." in name


def scores(model, rows, against="mean", parameters=last_block, **changes) -> np.ndarray:
    return gradient_scores(model, causal_lm, rows, collate_rows, parameters, against=against, **changes)


def each_gradient(model, rows) -> torch.Tensor:
    chosen = [p for name, p in model.named_parameters() if last_block(name)]
    each = []
    for row in rows:
        batch = collate_rows([row])
        loss = causal_lm.sums(model, batch)["loss"] / causal_lm.counts(batch)["loss"]
        each.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, chosen)]))
    return torch.stack(each).double()


def test_scores_are_cosines_with_the_mean_of_the_rows_gradients():
    model, rows = tiny_model(), make_rows()
    each = each_gradient(model, rows)
    wanted = torch.cosine_similarity(each, each.mean(0, keepdim=True), dim=1)
    found = scores(model, rows, batch_size=1)
    assert found.dtype == np.float64 and np.allclose(found, wanted.numpy(), atol=1e-5)


def test_rows_that_contradict_the_rest_rank_lowest():
    model = tiny_model()
    rows = [{"input_ids": np.full(8, 5), "shift_labels": np.full(8, 7)} for _ in range(12)]
    rows[4] = {"input_ids": np.full(8, 5), "shift_labels": np.full(8, 9)}
    found = scores(model, rows, parameters=lambda name: True)
    assert outliers(found, share=0.05).tolist() == [4]


def test_rows_similar_to_few_others_rank_lowest():
    model = tiny_model()
    rows = make_rows(40)
    for k in (3, 8, 20, 21, 30, 39):
        rows[k] = {name: np.r_[ids[:4], np.arange(20, 28)] for name, ids in rows[k].items()}
    assert sorted(outliers(scores(model, rows, against="neighbors"), share=0.15)) == [3, 8, 20, 21, 30, 39]


def test_sketches_keep_the_cosines_of_gradients():
    model, rows = tiny_model(), make_rows(12)
    sketches = gradient_sketches(model, causal_lm, rows, collate_rows, last_block, size=4096)
    each = each_gradient(model, rows).numpy()
    kept, wanted = ((x / np.linalg.norm(x, axis=1)[:, None]) for x in (sketches, each))
    assert np.abs(kept @ kept.T - wanted @ wanted.T).max() < 0.1
    again = gradient_sketches(model, causal_lm, rows[:5], collate_rows, last_block, size=4096)
    assert (again == sketches[:5]).all()


def test_neighbor_scores_do_not_depend_on_block_size(monkeypatch):
    sketches = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    whole = neighbor_scores(sketches)
    monkeypatch.setattr("scratch_gpt.data.filters.poisoning.ROW_BLOCK", 7)
    assert np.allclose(neighbor_scores(sketches), whole) and whole.min() >= -1
    assert neighbor_scores(sketches[:1]).tolist() == [0]
    assert np.allclose(neighbor_scores(sketches[:2]), 1)  # two rows minus their mean are opposite


def test_scoring_does_not_change_the_model():
    model = tiny_model(resid_dropout=0.5).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    for against in ("mean", "neighbors"):
        first = scores(model, make_rows(), against)
        assert (scores(model, make_rows(), against) == first).all()  # no dropout while scoring
    assert model.training and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())


def test_outliers_are_the_lowest_share_lowest_first():
    assert outliers(np.array([0.3, -1, 0.1, 0.2]), share=0.5).tolist() == [1, 2]
    assert outliers(np.arange(100)[::-1]).tolist() == [99, 98, 97, 96, 95]
    assert outliers(np.array([0.5]), share=0.01).tolist() == [0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: scores(tiny_model(), make_rows(), parameters=lambda name: False),
            "6 rows and 0 chosen trainable parameters",
        ),
        (lambda: scores(tiny_model(), []), "0 rows"),
        (lambda: scores(tiny_model(), make_rows(), against="loss"), "'neighbors' or 'mean'"),
        (lambda: outliers(np.zeros(3), share=0), "share must be above 0"),
    ],
)
def test_nothing_to_score_is_a_one_line_error(call, message):
    with pytest.raises(ValueError, match=message):
        call()
