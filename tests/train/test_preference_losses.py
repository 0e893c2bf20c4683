"""Test preference objectives: equal models lose log 2, gradients have the right sign, values equal TRL's."""

import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from preference_batch import MIXED, B, T
from tiny import tiny_model
from tiny_run import run
from torch.testing import assert_close

from scratch_gpt.evaluation.preferences import preference_metrics
from scratch_gpt.train.batches import BatchLayout, Steps, evaluation_batches
from scratch_gpt.train.preference_losses import LOSSES, Preference, kto_loss, log_odds


BETA = 0.3


def loss_and_gradient(objective, batch, model=None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss and the gradient of all weights for a global batch in one piece."""
    model = model or tiny_model()
    counts = objective.counts(batch)
    with torch.no_grad():
        means = {name: total / counts[name] for name, total in objective.baselines(model, batch).items()}
    loss = sum(total / counts[name] for name, total in objective.sums(model, batch | means).items())
    loss.backward()
    return loss.detach(), gradient(model)


def gradient(model) -> torch.Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


# --- Laws --------------------------------------------------------------------------------------------------------


def test_equal_models_have_dpo_log_2_kto_one_half_and_ipo_the_squared_target():
    batch = MIXED(reference_seed=0)
    for name, value in {"dpo": math.log(2), "kto": 0.5, "ipo": 1 / (2 * BETA) ** 2}.items():
        assert_close(loss_and_gradient(Preference(name, BETA), batch)[0], torch.tensor(value), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["dpo", "ipo", "orpo", "simpo"])
def test_a_likelier_chosen_or_less_likely_rejected_answer_lowers_the_loss(name):
    chosen, rejected = torch.tensor([-0.4, -1.0, -2.0]).requires_grad_(), torch.tensor([-1.0, -0.3, -2.0])
    rejected.requires_grad_()
    gamma = (0.5,) if name == "simpo" else ()
    LOSSES[name](chosen, rejected, BETA, *gamma).sum().backward()
    assert (chosen.grad < 0).all() and (rejected.grad > 0).all()


def test_kto_raises_desirable_answers_lowers_others_and_keeps_its_baseline():
    ratios = torch.tensor([0.4, 0.4, -0.7, -0.7]).requires_grad_()
    preference = torch.tensor([True, False, True, False])
    kto_loss(ratios, preference, torch.tensor(0.1), BETA).sum().backward()
    assert (torch.sign(ratios.grad) == torch.tensor([-1.0, 1.0, -1.0, 1.0])).all()
    objective, model = Preference("kto", BETA), tiny_model()
    batch = MIXED() | {"kl": torch.tensor(5.0).requires_grad_()}
    objective.sums(model, batch)["loss"].backward()
    assert batch["kl"].grad is not None  # if a reference is given; in training there is none
    other = MIXED() | {"shift_labels": batch["shift_labels"].clone(), "kl": batch["kl"].detach()}
    other["shift_labels"][B:] = -100
    # Answers to other prompts.
    assert_close(objective.sums(model, other)["loss"], objective.sums(model, batch)["loss"])


def test_log_odds_are_those_of_the_probability_and_finite_where_it_is_one():
    p = torch.tensor([0.01, 0.5, 0.99])
    assert_close(log_odds(p.log()), (p / (1 - p)).log(), atol=1e-5, rtol=1e-4)
    certain = torch.zeros(1, requires_grad=True)
    log_odds(certain).backward()
    assert certain.grad.isfinite().all() and log_odds(certain).isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_padding_changes_nothing(name):
    batch = MIXED()
    wider = {
        "input_ids": torch.zeros(2 * B, T + 5, dtype=torch.long),
        "shift_labels": torch.full((2 * B, T + 5), -100),
    }
    for key, tensor in wider.items():
        tensor[:, :T] = batch[key]
    one = loss_and_gradient(Preference(name, BETA), batch)
    assert_close(loss_and_gradient(Preference(name, BETA), batch | wider), one, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("size, accumulation, processes", [(1, 4, 1), (2, 2, 1), (1, 2, 2), (3, 1, 2)])
def test_the_gradient_does_not_depend_on_how_a_global_batch_is_split(name, size, accumulation, processes):
    batch, objective = MIXED(), Preference(name, BETA)
    whole = loss_and_gradient(objective, batch)[1]
    split = Split(batch)
    parts = []
    for rank in range(processes):
        share = BatchLayout(size, accumulation, processes, rank)
        parts += Steps(split, split.collate, share, seed=0, end=B)[0].micro_batches
    model, counts, means = tiny_model(), {}, {}
    for part, counted in parts:
        for name, count in objective.counts(part).items():
            counts[name] = counts.get(name, 0) + count * counted
        with torch.no_grad():
            for name, total in objective.baselines(model, part).items():
                means[name] = means.get(name, 0) + total * counted
    means = {name: total / counts[name] for name, total in means.items()}
    for part, counted in parts:
        sums = objective.sums(model, part | means)
        sum(total * counted / counts[name] for name, total in sums.items()).backward()
    assert_close(gradient(model), whole, atol=1e-5, rtol=1e-4)


class Split:
    """A batch as a sequence of pairs; `collate` joins them again."""

    def __init__(self, batch):
        self.batch = batch

    def __len__(self):
        return B

    def __getitem__(self, k):
        return {key: tensor[[k, B + k] if len(tensor) == 2 * B else [k]] for key, tensor in self.batch.items()}

    @staticmethod
    def collate(rows):
        halves = {key: torch.stack([row[key] for row in rows], 1) for key in rows[0]}
        return {key: tensor.flatten(0, 1) for key, tensor in halves.items()}


@pytest.mark.parametrize("name", LOSSES)
def test_metrics_do_not_depend_on_batch_size_or_processes(name):
    split, objective, model = Split(MIXED()), Preference(name, BETA), tiny_model()
    whole = preference_metrics(model, evaluation_batches(split, split.collate, BatchLayout(4)), objective)
    small = preference_metrics(model, evaluation_batches(split, split.collate, BatchLayout(1)), objective)
    assert small == pytest.approx(whole, abs=1e-4)
    shares = [evaluation_batches(split, split.collate, BatchLayout(3, 1, 2, rank)) for rank in (0, 1)]
    both = preference_metrics(model, [pair for share in shares for pair in share], objective)
    assert both == pytest.approx(whole, abs=1e-4)


def test_the_loop_takes_ktos_baseline_over_the_global_batch(tmp_path):
    split = Split(MIXED())
    options = {"rows": split, "collate": split.collate, "objective": Preference("kto", BETA), "sgd": True, "steps": 2}
    whole = run(tmp_path / "a", batch_size=4, **options)
    parts = run(tmp_path / "b", batch_size=1, accumulation_steps=4, **options)
    for name, weight in whole[0].items():
        assert_close(parts[0][name], weight, atol=1e-6, rtol=0)
    losses = [[line["loss"] for line in metrics] for _, _, metrics in (whole, parts)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    batch, objective = MIXED(), options["objective"]
    alone = [split.collate([split[k]]) for k in range(B)]  # each with a separate baseline
    assert abs(losses[0][0] - float(sum(loss_and_gradient(objective, one)[0] for one in alone)) / B) > 1e-3
    assert losses[0][0] == pytest.approx(float(loss_and_gradient(objective, batch)[0]), abs=1e-6)


# --- Equal to TRL ------------------------------------------------------------------------------------------------


class SingleProcessAccelerator:
    """The parts of Accelerate that TRL's trainers use, for one process."""

    device = torch.device("cpu")
    gather = gather_for_metrics = staticmethod(lambda tensor: tensor)


def trainer(model, **fields) -> SimpleNamespace:
    """Return the attributes that the loss of a TRL trainer reads."""
    from collections import defaultdict

    common = {"aux_loss_enabled": False, "precompute_ref_logps": True, "_metrics": {"eval": defaultdict(list)}}
    common["_total_train_tokens"] = 0
    return SimpleNamespace(
        model=model, accelerator=SingleProcessAccelerator(), beta=BETA, args=None, **common, **fields
    )


def completion_masks(batch) -> dict:
    """Return attention_mask and completion_mask as TRL's collators make them."""
    answer = (batch["shift_labels"].roll(1, 1) != -100).long()
    return {"attention_mask": (answer.flip(1).cumsum(1).flip(1) > 0).long(), "completion_mask": answer}


def trl_dpo(batch, loss_type):
    from trl import DPOTrainer
    from trl.trainer.utils import add_fused_lm_head

    model = tiny_model()
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "mean_logits", "is_top1"))
    fields = {"ld_alpha": None, "f_divergence_type": "reverse_kl", "loss_weights": [1.0], "use_weighting": False}
    chosen, rejected = batch["reference_logps"].chunk(2)
    inputs = {"input_ids": batch["input_ids"], **completion_masks(batch)}
    inputs |= {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
    self = trainer(model, loss_types=[loss_type], **fields)
    return DPOTrainer._compute_loss(self, model, inputs, False), model, self._metrics["eval"]


def trl_kto(batch):
    from trl import KTOTrainer
    from trl.trainer.utils import add_fused_lm_head

    model = tiny_model()
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "mean_logits"))
    fields = {"calculate_KL": True, "loss_type": "kto", "desirable_weight": 1.0, "undesirable_weight": 1.0}
    self = trainer(model, **fields)
    self._compute_kl_logps = partial(KTOTrainer._compute_kl_logps, self)
    inputs = {"label": batch["preference"]}
    for n, prefix in enumerate(("", "KL_")):
        rows = {"input_ids": batch["input_ids"], **completion_masks(batch)}
        inputs |= {f"{prefix}{key}": tensor.chunk(2)[n] for key, tensor in rows.items()}
    inputs["ref_logps"], inputs["ref_KL_logps"] = batch["reference_logps"].chunk(2)
    return KTOTrainer._compute_loss(self, model, inputs, False), model, self._metrics["eval"]


def trl_without_reference(batch, kind, **fields):
    model = tiny_model()
    self = trainer(model, is_encoder_decoder=False, **fields)
    rows = {"input_ids": batch["input_ids"], **completion_masks(batch)}
    labels = rows["input_ids"].where(rows["completion_mask"] == 1, -100)
    joined = {f"concatenated_{key}": tensor for key, tensor in (rows | {"labels": labels}).items()}
    self.concatenated_inputs = lambda *args, **kwargs: joined
    self.padding_value = self.pad_token_id = 0
    for name in ("get_batch_logps", "concatenated_forward", "odds_ratio_loss", "cpo_loss"):
        if hasattr(kind, name):
            is_static = name == "get_batch_logps"
            setattr(self, name, getattr(kind, name) if is_static else partial(getattr(kind, name), self))
    loss, metrics = kind.get_batch_loss_metrics(self, model, {"chosen_labels": labels[:B]})
    return loss, model, metrics


def of_trl(name, batch):
    if name in ("dpo", "ipo"):
        return trl_dpo(batch, {"dpo": "sigmoid"}.get(name, name))
    if name == "kto":
        return trl_kto(batch)
    if name == "orpo":
        from trl.experimental.orpo import ORPOTrainer

        return trl_without_reference(batch, ORPOTrainer)
    from trl.experimental.cpo import CPOTrainer

    fields = {"loss_type": "simpo", "simpo_gamma": 0.7, "cpo_alpha": 0.0, "alpha": 0.0, "label_smoothing": 0.0}
    return trl_without_reference(batch, CPOTrainer, **fields)


THEIR_NAMES = {"margin": "rewards/margins", "accuracy": "rewards/accuracies", "kl": "kl"}
THEIR_NAMES |= {"chosen_logps": "logps/chosen", "rejected_logps": "logps/rejected"}


@pytest.mark.parametrize("name", LOSSES)
def test_loss_gradient_and_metrics_equal_those_of_trl(name):
    pytest.importorskip("trl", reason="an extra of the tests: pip install trl")
    batch, objective = MIXED(), Preference(name, BETA, gamma=0.7)
    loss, model, theirs = of_trl(name, batch)
    loss.backward()
    ours = loss_and_gradient(objective, batch)
    assert_close(ours[0], loss.detach(), atol=1e-5, rtol=0)
    assert_close(ours[1], gradient(model), atol=1e-5, rtol=0)
    found = preference_metrics(tiny_model(), [(batch, True)], objective)
    assert found["loss"] == pytest.approx(float(loss.detach()), abs=1e-5)
    # TRL's metrics are per token if there is no reference, and it counts no accuracy for judged answers.
    skipped = {"orpo": {"chosen_logps", "rejected_logps"}, "kto": {"accuracy"}}
    for key, theirs_key in THEIR_NAMES.items():
        if key in found and key not in skipped.get("orpo" if name == "simpo" else name, ()):
            value = theirs[theirs_key]
            assert found[key] == pytest.approx(value[0] if isinstance(value, list) else value, abs=1e-4), key
