"""Test the loss of `forward`: it equals the plain form in less memory, for any targets and chunk sizes."""

import pytest
import torch
import torch.nn.functional as F
from tiny import some_ids, tiny_model
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from scratch_gpt.modeling import linear_cross_entropy as room
from scratch_gpt.modeling.linear_cross_entropy import head_losses, linear_cross_entropy


ROWS, WIDTH = 30, 16
BOTH = pytest.mark.parametrize("summed", [True, False])


def plain(hidden, weight, targets, *, summed=True):
    logits = F.linear(hidden, weight).flatten(0, -2)
    losses = F.cross_entropy(logits.float(), targets.flatten(), reduction="sum" if summed else "none")
    return losses if summed else losses.view(targets.shape)


def inputs(vocab_size: int = 501, asked: str = "some", dtype=torch.float32):
    """Return hidden states (2, 15, D), a matrix (V, D) and targets (2, 15)."""
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, ROWS // 2, WIDTH, generator=draw, dtype=dtype).requires_grad_()
    weight = (0.3 * torch.randn(vocab_size, WIDTH, generator=draw, dtype=dtype)).requires_grad_()
    targets = some_ids(2, ROWS // 2, vocab_size=vocab_size)
    every = {"all": 1, "some": 3, "one": ROWS, "none": ROWS + 1}[asked]
    targets[(torch.arange(1, ROWS + 1) % every > 0).view(2, -1)] = -100
    return hidden, weight, targets


def loss_and_gradients(function, hidden, weight, targets, *, summed=True, **kwargs):
    """Return the loss and its gradients by hidden and weight; a random upstream gradient reveals missing factors."""
    losses = function(hidden, weight, targets, summed=summed, **kwargs)
    upstream = torch.randn(losses.shape, generator=torch.Generator().manual_seed(1)).to(losses.dtype)
    return losses, *torch.autograd.grad(losses, (hidden, weight), upstream)


def near(actual, expected, tolerance: float = 1e-6) -> None:
    """Compare within `tolerance` of the norm: single numbers of large tensors are inexact in the plain form too."""
    for one, other in zip(actual, expected, strict=True):
        assert one.shape == other.shape and (one - other).norm() <= tolerance * other.norm()


# --- The function ------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("asked", ["all", "some", "one", "none"])
@pytest.mark.parametrize("vocab_size", [65, 501, 50257])
def test_loss_and_gradients_equal_the_plain_form(vocab_size, asked, summed):
    given = inputs(vocab_size, asked)
    near(
        loss_and_gradients(linear_cross_entropy, *given, summed=summed),
        loss_and_gradients(plain, *given, summed=summed),
    )


@BOTH
@pytest.mark.parametrize("chunk_bytes, part", [(1, 1000), (501 * 4 * 7, 3), (2**40, 2**40)])
def test_loss_and_gradients_do_not_depend_on_the_chunk_size(chunk_bytes, part, summed, monkeypatch):
    given = inputs()
    expected = loss_and_gradients(plain, *given, summed=summed)
    monkeypatch.setattr(room, "CHUNK_BYTES", chunk_bytes)
    monkeypatch.setattr(room, "CHUNK_STEP", 1)
    for name in ("ROWS", "LOGITS", "COLUMNS", "PIECE"):
        monkeypatch.setattr(room, name, part)
    near(loss_and_gradients(linear_cross_entropy, *given, summed=summed), expected)


def test_the_gradient_of_every_loss_is_the_difference_quotient():
    hidden, weight, targets = inputs(vocab_size=5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *two: linear_cross_entropy(*two, targets, summed=False), (hidden, weight))
    assert torch.autograd.gradcheck(lambda *two: linear_cross_entropy(*two, targets), (hidden, weight))


@BOTH
@pytest.mark.parametrize("vocab_size", [65, 5003])
def test_under_autocast_the_loss_is_as_exact_as_the_plain_form(vocab_size, summed):
    """Include confident predictions: softmax - 1 is lost there if the softmax is rounded before the subtraction."""
    hidden, weight, targets = inputs(vocab_size)
    with torch.no_grad():
        hidden[0] += 4 * weight[targets[0].clamp(min=0)]
    truth = loss_and_gradients(plain, hidden.double(), weight.double(), targets, summed=summed)
    with torch.autocast("cpu", torch.bfloat16):
        theirs = loss_and_gradients(plain, hidden, weight, targets, summed=summed)
        ours = loss_and_gradients(linear_cross_entropy, hidden, weight, targets, summed=summed)
    assert [one.dtype for one in ours] == [torch.float32] * 3
    for our, their, true in zip(ours, theirs, truth, strict=True):
        assert 0 < (our - true).norm() < 1.5 * (their - true).norm() + 1e-4 * true.norm()


def test_a_model_in_bf16_gets_gradients_in_bf16_and_the_loss_in_fp32():
    hidden, weight, targets = inputs(dtype=torch.bfloat16)
    losses = loss_and_gradients(linear_cross_entropy, hidden, weight, targets)
    assert [one.dtype for one in losses] == [torch.float32, torch.bfloat16, torch.bfloat16]
    near(losses, loss_and_gradients(plain, hidden, weight, targets), tolerance=0.02)


@BOTH
def test_repeated_calls_are_bit_equal_and_a_graph_can_be_used_twice(summed):
    hidden, weight, targets = inputs()
    first, again = (loss_and_gradients(linear_cross_entropy, hidden, weight, targets, summed=summed) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    loss = linear_cross_entropy(hidden, weight, targets, summed=summed).sum()
    once = torch.autograd.grad(3 * loss, (hidden, weight), retain_graph=True)
    near(torch.autograd.grad(3 * loss, (hidden, weight)), once)


@BOTH
def test_frozen_parameters_get_no_gradient(summed):
    hidden, weight, targets = inputs()
    expected, *gradients = loss_and_gradients(plain, hidden, weight, targets, summed=summed)
    scale = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    for frozen in (0, 1):
        given = inputs()[:2]
        given[frozen].requires_grad_(False)
        linear_cross_entropy(*given, targets, summed=summed).backward(scale)
        near([given[1 - frozen].grad], [gradients[1 - frozen]])
        assert given[frozen].grad is None
    with torch.no_grad():
        assert not linear_cross_entropy(hidden, weight, targets, summed=summed).requires_grad


class Largest(TorchDispatchMode):
    """Records the size of the largest tensor that any operation creates."""

    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        self.numel = max([self.numel, *(leaf.numel() for leaf in tree_leaves(made) if torch.is_tensor(leaf))])
        return made


@BOTH
@pytest.mark.parametrize("step", [1, 7, 16, 64])
def test_padding_of_a_chunk_has_no_effect(summed, step, monkeypatch):
    found = []
    for size in (1, step):
        monkeypatch.setattr(room, "CHUNK_STEP", size)
        found.append(loss_and_gradients(linear_cross_entropy, *inputs(), summed=summed))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


@BOTH
def test_the_complete_logits_are_never_allocated(summed, monkeypatch):
    hidden, weight, targets = inputs()
    monkeypatch.setattr(room, "CHUNK_BYTES", 501 * 4 * 7)  # 7 rows
    monkeypatch.setattr(room, "CHUNK_STEP", 1)
    sizes = {}
    for function in (plain, linear_cross_entropy):
        with Largest() as largest:
            loss_and_gradients(function, hidden, weight, targets, summed=summed)
        sizes[function] = largest.numel
    assert sizes == {plain: ROWS * 501, linear_cross_entropy: max(7 * 501, weight.numel())}


def test_a_token_that_is_not_in_the_vocabulary_is_an_error():
    hidden, weight, targets = inputs()
    for wrong in (501, -1):
        with pytest.raises(RuntimeError, match="out of bounds"):
            linear_cross_entropy(hidden, weight, torch.full_like(targets, wrong))


# --- In forward --------------------------------------------------------------------------------------------------


def ids_and_targets():
    ids = some_ids()
    targets = ids.roll(-1, 1)
    targets[:, -1] = -100
    targets[0, :5] = -100
    return ids, targets


def model_gradients(model, loss, upstream=None) -> dict:
    model.zero_grad()
    loss.backward(upstream)
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("tied", [True, False])
def test_shift_labels_give_the_loss_and_gradients_of_labels(tied):
    model = tiny_model(tie_word_embeddings=tied).train()
    ids, targets = ids_and_targets()
    labels = torch.cat([torch.full((2, 1), -100), targets[:, :-1]], dim=1)
    for count in ({}, {"num_items_in_batch": 5}, {"num_items_in_batch": torch.tensor(5)}):
        ours, theirs = model(ids, shift_labels=targets, **count), model(ids, labels=labels, **count)
        assert ours.logits is None and theirs.logits.shape == (2, 12, 99)
        assert_close(ours.loss, theirs.loss, atol=1e-6, rtol=1e-6)
        assert_close(model_gradients(model, ours.loss), model_gradients(model, theirs.loss), atol=1e-6, rtol=1e-4)


def test_token_losses_are_correct_and_accept_any_gradient():
    model = tiny_model().train()
    ids, targets = ids_and_targets()
    ours = model(ids, shift_labels=targets, token_losses=True)
    logits = model(ids).logits
    theirs = plain(logits, torch.eye(99), targets, summed=False)
    assert ours.logits is None and ours.loss.shape == (2, 12) and (ours.loss[targets == -100] == 0).all()
    assert_close(ours.loss, theirs, atol=1e-6, rtol=1e-6)
    upstream = torch.randn(2, 12)
    one, other = model_gradients(model, ours.loss, upstream), model_gradients(model, theirs, upstream)
    assert_close(one, other, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="token_losses"):
        model(ids, labels=ids, token_losses=True)


def test_uninitialized_memory_is_not_read(monkeypatch):
    hidden, targets = torch.randn(256, 384).bfloat16().requires_grad_(), torch.randint(65, (256,))
    weight = torch.randn(65, 384).bfloat16().requires_grad_()
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN
    try:
        assert torch.empty(1).isnan()
        linear_cross_entropy(hidden, weight, targets).backward()
    finally:
        torch.use_deterministic_algorithms(False)
    assert hidden.grad.isfinite().all() and weight.grad.isfinite().all()


def test_without_targets_the_loss_is_0_with_a_graph():
    model = tiny_model().train()
    nothing = torch.full((2, 12), -100)
    for more in ({}, {"num_items_in_batch": 1}, {"token_losses": True}):
        loss = model(some_ids(), shift_labels=nothing, **more).loss
        assert (loss == 0).all() and all((g == 0).all() for g in model_gradients(model, loss.sum()).values())


class Thrice(torch.nn.Linear):
    def forward(self, x):
        return 3 * super().forward(x)


@BOTH
@pytest.mark.parametrize("change", ["hook", "lora", "subclass"])
def test_a_head_with_a_hook_or_another_class_computes_its_own_logits(change, summed):
    hidden, weight, targets = inputs()
    kinds = {"hook": torch.nn.Linear, "subclass": Thrice, "lora": torch.nn.Linear}
    head, factor = kinds[change](WIDTH, 501, bias=False), 3 if change == "subclass" else 1
    head.weight = torch.nn.Parameter(weight.detach())
    if change == "hook":
        head.register_forward_hook(lambda module, args, output: 2 * output)
        factor = 2
    if change == "lora":
        peft = pytest.importorskip("peft")
        config = peft.LoraConfig(r=2, target_modules=["0"], init_lora_weights=False)
        head = peft.get_peft_model(torch.nn.Sequential(head), config).base_model.model[0]
        weight = weight + head.get_delta_weight("default")
    ours = head_losses(head, hidden, targets, summed=summed)
    theirs = plain(hidden, factor * weight, targets, summed=summed)
    assert_close(ours, theirs, atol=1e-4, rtol=1e-5)
    d_ours, d_theirs = (torch.autograd.grad(losses.sum(), hidden)[0] for losses in (ours, theirs))
    assert_close(d_ours, d_theirs, atol=1e-5, rtol=1e-4)


def test_a_compiled_model_has_the_same_gradients():
    torch._dynamo.reset()
    ids, targets = ids_and_targets()
    model, compiled = tiny_model().train(), torch.compile(tiny_model().train(), backend="aot_eager")
    for wanted in (targets, torch.where(torch.arange(12) % 3 > 0, targets, -100)):  # another number of rows
        loss, expected = compiled(ids, shift_labels=wanted).loss, model(ids, shift_labels=wanted).loss
        assert_close(loss, expected, atol=1e-5, rtol=1e-5)
        gradients = model_gradients(compiled._orig_mod, loss)
        assert_close(gradients, model_gradients(model, expected), atol=1e-5, rtol=1e-4)
