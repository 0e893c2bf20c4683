"""Test the model: what attention may see, what has no effect (backend, cache, padding, packing), what it returns.

Gradients are compared if a test is about training, and tests show that they could fail.
"""

import math
import re
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from tiny import VOCAB, padded, some_ids, tiny_config, tiny_model
from torch.testing import assert_close
from transformers import DynamicCache, GPT2LMHeadModel, StaticCache, Trainer, TrainingArguments

from scratch_gpt import ScratchGPTForCausalLM, ScratchGPTForSequenceClassification, ScratchGPTModel, export_gpt2
from scratch_gpt.modeling.modeling_scratch_gpt import CACHE, eager_attention_forward
from scratch_gpt.train.accelerator import compile_options
from scratch_gpt_training.support.options import check_compiler


ALL_HEADS = [ScratchGPTModel, ScratchGPTForCausalLM, ScratchGPTForSequenceClassification]
BOTH = pytest.mark.parametrize("attention", ["eager", "sdpa"])


def near(actual, expected, atol: float = 1e-5) -> None:
    assert_close(actual, expected, atol=atol, rtol=0)


def gradients(model) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


# --- Worked examples -----------------------------------------------------------------------------------------------


def test_attention_gives_the_numbers_of_the_books_example():
    words = torch.tensor([[[[0.34, 0.22, 0.54], [0.53, 0.34, 0.98], [0.29, 0.54, 0.93]]]])  # (1, 1, T=3, K=3)
    module = SimpleNamespace(training=False)
    context, weights = eager_attention_forward(module, words, words, words, torch.zeros(1, 1, 3, 3), scaling=1.0)
    near(context[0, 1, 0], torch.tensor([0.399, 0.385, 0.861]), atol=1e-3)
    near(weights.sum(-1), torch.ones(1, 1, 3))


def test_without_a_mask_eager_attention_is_causal():
    query, key, value = torch.randn(3, 2, 4, 5, 8).unbind(0)  # (B, H, T, K)
    module = SimpleNamespace(training=False)
    full, _ = eager_attention_forward(module, query, key, value, None, scaling=0.5)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=0.5)
    near(full, expected.transpose(1, 2))
    # The earlier tokens are cached.
    last, _ = eager_attention_forward(module, query[:, :, -2:], key, value, None, scaling=0.5)
    near(last, full[:, -2:])


def test_the_embedding_is_the_sum_of_token_and_position():
    model = tiny_model(ScratchGPTModel, hidden_size=3, num_attention_heads=1)
    with torch.no_grad():
        model.embed_tokens.weight[7] = torch.tensor([0.5, -0.2, 0.1])
        model.embed_positions.weight[1] = torch.tensor([0.1, 0.3, -0.1])
    embedded = model(torch.tensor([[3, 7]]), output_hidden_states=True).hidden_states[0]
    near(embedded[0, 1], torch.tensor([0.6, 0.1, 0.0]))


def test_there_is_a_logit_for_every_token():
    model = tiny_model(vocab_size=50257)
    assert model(torch.tensor([[6109, 3626, 6100, 345], [6109, 1110, 6622, 257]])).logits.shape == (2, 4, 50257)


# --- What attention may see ----------------------------------------------------------------------------------------


@BOTH
def test_the_future_cannot_change_the_past(attention):
    model, ids = tiny_model(attention=attention), some_ids()
    changed = ids.clone()
    changed[:, 7] = (ids[:, 7] + 1) % VOCAB
    before, after = model(ids).logits, model(changed).logits
    near(after[:, :7], before[:, :7], atol=0)
    assert ((after - before)[:, 7:].abs().amax(-1) > 1e-3).all()  # every later token sees the change


def test_attention_weights_are_a_causal_distribution():
    mask = padded([torch.ones(12), torch.ones(9)])["attention_mask"]
    weights = tiny_model()(some_ids(), attention_mask=mask, output_attentions=True).attentions
    assert [w.shape for w in weights] == [(2, 4, 12, 12)] * 2  # (B, H, T, S), one per block
    weights = torch.stack(weights)
    real = mask.bool()[None, :, None, :, None]  # queries of padding are ignored
    near((weights.sum(-1, keepdim=True) * real)[:, 0], real[:, 0].expand(2, 4, 12, 1).float())
    assert (weights * real).triu(1).abs().max() == 0
    assert weights[:, 1, :, 3:, :3].abs().max() == 0  # no token attends to padding
    assert (weights[:, 0].tril() > 0).sum() == 2 * 4 * 12 * 13 / 2


@pytest.mark.parametrize("attention", ["sdpa", "flex_attention"])
@torch.no_grad()  # flex_attention has no backward on a CPU
def test_every_backend_equals_eager_attention(attention):
    eager, other = tiny_model(), tiny_model(attention=attention)
    assert other.config._attn_implementation == attention  # no silent fallback to eager
    ids, mask = some_ids(), padded([torch.ones(12), torch.ones(9)])["attention_mask"]
    seen = mask.bool()
    _, packed = packed_rows()
    with torch.compiler.set_stance("force_eager"):  # flex_attention would compile: 12 seconds, with a compiler
        near(other(ids).logits, eager(ids).logits)
        near(other(ids, attention_mask=mask).logits[seen], eager(ids, attention_mask=mask).logits[seen])
        near(other(**packed, use_cache=False).logits, eager(**packed, use_cache=False).logits)


# --- Cache, padding and packing have no effect ---------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_cached_equals_uncached(attention, cache):
    model, ids = tiny_model(attention=attention), some_ids()
    expected = model(ids, use_cache=False)
    assert expected.past_key_values is None
    past, logits = None if cache == "dynamic" else StaticCache(config=model.config, max_cache_len=20), []
    for number, chunk in enumerate(ids.split([5, 1, 4, 1, 1], dim=1)):
        # The cache has two argument names.
        outputs = model(chunk, use_cache=True, **{("past_key_values", "cache")[number % 2]: past})
        past = outputs[CACHE]
        logits.append(outputs.logits)
    assert past.get_seq_length() == 12
    near(torch.cat(logits, dim=1), expected.logits)


@pytest.mark.parametrize("model_class", ALL_HEADS)
def test_a_cache_that_would_not_be_used_is_an_error(model_class):
    model, ids = tiny_model(model_class), some_ids()
    for name in ("past", "layer_past", "kv_cache", "cache_params", "past_key_value", "state", "memory"):
        with pytest.raises(ValueError, match=f"does not use {name}"):
            model(ids, **{name: DynamicCache()})
    for name in ("cache_position", "past_length"):
        with pytest.raises(ValueError, match=f"does not use {name}"):
            model(ids, **{name: torch.arange(12)})
    with pytest.raises(ValueError, match="two names of one argument"):
        model(ids, past_key_values=DynamicCache(), cache=DynamicCache())
    for value in ([(torch.zeros(2, 4, 3, 8), torch.zeros(2, 4, 3, 8))] * 2, ((), ())):
        with pytest.raises(ValueError, match="key-value cache is a (list|tuple)"):
            model(ids, past_key_values=value)
    near(model(ids, past_key_values=None, layer_past=None, note="anything else goes on")[0], model(ids)[0], atol=0)


@BOTH
@pytest.mark.parametrize("model_class", ALL_HEADS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_equals_unpadded_in_every_head(model_class, attention, side):
    model = tiny_model(model_class, attention=attention)
    texts = [some_ids(1, length, seed=length)[0] for length in (12, 5, 1)]
    batch = padded(texts, side=side, length=14)
    outputs = model(**batch)[0]
    for row, text in enumerate(texts):
        alone = model(text[None])[0][0]
        kept = outputs[row]
        if model_class is not ScratchGPTForSequenceClassification:  # (T, D) or (T, V)
            kept = kept[batch["attention_mask"][row].bool()]
        near(kept, alone)


@BOTH
def test_left_padded_cached_equals_unpadded(attention):
    model, text = tiny_model(attention=attention), some_ids(1, 9)
    batch = padded([text[0]], length=13)
    past = model(batch["input_ids"][:, :10], attention_mask=batch["attention_mask"][:, :10]).past_key_values
    last = model(batch["input_ids"][:, 10:], attention_mask=batch["attention_mask"], past_key_values=past).logits
    near(last, model(text).logits[:, 6:])


def packed_rows(lengths=((5, 1, 6), (4, 8))):
    """Return documents, and the same documents packed: input_ids and position_ids (B, 12)."""
    documents = [[some_ids(1, n, seed=10 * row + n) for n in row_lengths] for row, row_lengths in enumerate(lengths)]
    ids = torch.cat([torch.cat(row, dim=1) for row in documents])
    positions = torch.cat([torch.cat([torch.arange(n) for n in row])[None] for row in lengths])
    return documents, {"input_ids": ids, "position_ids": positions}


@BOTH
def test_packed_documents_equal_separate_documents(attention):
    model = tiny_model(attention=attention)
    documents, packed = packed_rows()
    alone = torch.cat([torch.cat([model(d).logits for d in row], dim=1) for row in documents])
    near(model(**packed, use_cache=False).logits, alone)
    assert (model(packed["input_ids"], use_cache=False).logits - alone).abs().max() > 0.1


@BOTH
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_loss_does_not_join_packed_documents(attention, mode):
    """The default `use_cache` would join the documents of a row."""
    model = getattr(tiny_model(attention=attention), mode)()
    documents, packed = packed_rows()
    assert model.config.use_cache
    alone = sum(model(d, labels=d, num_items_in_batch=1).loss for row in documents for d in row if d.shape[1] > 1)
    is_target = packed["position_ids"] != 0  # the first token of a document is not a target
    labels = packed["input_ids"].masked_fill(~is_target, -100)
    near(model(**packed, labels=labels, num_items_in_batch=1).loss, alone, atol=1e-4)
    shift_labels = torch.cat([labels[:, 1:], torch.full((2, 1), -100)], dim=1)
    near(model(**packed, shift_labels=shift_labels, num_items_in_batch=1).loss, alone, atol=1e-4)
    joined = model(packed["input_ids"], labels=labels, num_items_in_batch=1).loss
    assert (joined - alone).abs() > 0.1


# --- Loss ----------------------------------------------------------------------------------------------------------


def test_the_loss_is_the_cross_entropy_of_the_next_token():
    model, ids = tiny_model(), some_ids()
    labels = ids.clone()
    labels[0, :5] = -100
    shift_labels = torch.cat([labels[:, 1:], torch.full((2, 1), -100)], dim=1)
    outputs = model(ids, labels=labels)
    log_p = outputs.logits.log_softmax(-1)
    places = [(row, t) for row in range(2) for t in range(11) if labels[row, t + 1] != -100]
    expected = -sum(log_p[row, t, ids[row, t + 1]] for row, t in places) / len(places)
    near(outputs.loss, expected)
    near(model(ids, shift_labels=shift_labels).loss, expected)
    near(model(ids, labels=labels, num_items_in_batch=torch.tensor(5)).loss, expected * len(places) / 5)
    assert model(ids).loss is None


def test_the_causal_gradient_does_not_depend_on_the_split():
    ids = some_ids(8)
    labels = ids.clone()
    for row in range(8):
        labels[row, : row + 1] = -100  # uneven rows, for which a mean of means differs
    targets = (labels[:, 1:] != -100).sum()

    def summed(rows: int) -> dict:
        model = tiny_model().train()
        for part, part_labels in zip(ids.split(rows), labels.split(rows), strict=True):
            model(part, labels=part_labels, num_items_in_batch=targets).loss.backward()
        return gradients(model)

    assert_close(summed(8), summed(2), atol=1e-6, rtol=1e-4)


@BOTH
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_gradient(attention, side):
    texts = [some_ids(1, length, seed=length)[0] for length in (12, 5)]
    results = []
    for rows in ([padded([text]) for text in texts], [padded(texts, side=side, length=15, pad_id=17)]):
        model = tiny_model(attention=attention).train()
        for batch in rows:
            # The first token of a text is not a target: with left padding, the padding would have to predict it.
            first = batch["attention_mask"].cumsum(-1) <= 1
            labels = batch["input_ids"].masked_fill(first | (batch["attention_mask"] == 0), -100)
            model(**batch, labels=labels, num_items_in_batch=15).loss.backward()
        results.append(gradients(model))
    assert_close(results[1], results[0], atol=1e-5, rtol=1e-4)


# --- Arguments and outputs of forward ------------------------------------------------------------------------------


def test_logits_to_keep_keeps_the_given_positions():
    model, ids = tiny_model(), some_ids()
    full = model(ids).logits
    near(model(ids, logits_to_keep=3).logits, full[:, -3:])
    near(model(ids, logits_to_keep=torch.tensor([2, 5])).logits, full[:, [2, 5]])
    near(model(ids, logits_to_keep=0).logits, full)
    each = torch.tensor([[1, 4], [0, 7]])  # different positions in each row
    near(model(ids, logits_to_keep=each).logits, torch.stack([full[0, each[0]], full[1, each[1]]]))
    mask = some_ids(seed=3) % 2 == 0
    near(model(ids, logits_to_keep=mask).logits, full[mask])


@pytest.mark.parametrize("model_class", ALL_HEADS)
def test_inputs_embeds_replace_input_ids(model_class):
    model, batch = tiny_model(model_class), padded([some_ids(1, 12)[0], some_ids(1, 9)[0]])
    embeds = model.get_input_embeddings()(batch["input_ids"])
    near(model(inputs_embeds=embeds, attention_mask=batch["attention_mask"])[0], model(**batch)[0])
    for wrong in ({}, {"input_ids": batch["input_ids"], "inputs_embeds": embeds}):
        with pytest.raises(ValueError, match="exactly one"):
            model(**wrong)


@pytest.mark.parametrize("model_class", ALL_HEADS)
def test_outputs_on_request_and_as_a_tuple(model_class):
    model, ids = tiny_model(model_class), some_ids()
    outputs = model(ids, output_attentions=True, output_hidden_states=True)
    assert [h.shape for h in outputs.hidden_states] == [(2, 12, 32)] * 3  # the embeddings, then after each block
    assert len(outputs.attentions) == 2
    base = model if model_class is ScratchGPTModel else model.transformer
    near(outputs.hidden_states[-1], base(ids).last_hidden_state)
    embedded = base.embed_tokens(ids) + base.embed_positions(torch.arange(12))
    near(outputs.hidden_states[0], embedded)
    plain = model(ids)
    assert plain.hidden_states is None and plain.attentions is None
    near(model(ids, return_dict=False)[0], plain[0])


@pytest.mark.parametrize("model_class", ALL_HEADS)
def test_an_input_over_the_context_is_an_error_with_both_numbers(model_class):
    model = tiny_model(model_class)
    assert model(some_ids(1, 64))[0].isfinite().all()
    with pytest.raises(ValueError, match=r"65 tokens.*max_position_embeddings=64"):
        model(some_ids(1, 65))
    with pytest.raises(ValueError, match=r"65 tokens.*max_position_embeddings=64"):
        model(inputs_embeds=torch.randn(1, 65, 32))
    with pytest.raises(ValueError, match=r"65 tokens.*max_position_embeddings=64"):
        model(some_ids(1, 1), past_key_values=model(some_ids(1, 64), use_cache=True).past_key_values)


def test_generating_past_the_context_is_the_same_error():
    with pytest.raises(ValueError, match=r"65 tokens.*max_position_embeddings=64"):
        tiny_model().generate(some_ids(1, 60), max_new_tokens=20, do_sample=False)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_does_not_count_for_the_context(side):
    model, text = tiny_model(), some_ids(1, 60)
    batch = padded([text[0]], side=side, length=80)
    near(model(**batch).logits[batch["attention_mask"].bool()], model(text).logits[0])


# --- Training ------------------------------------------------------------------------------------------------------


def test_gradient_checkpointing_changes_no_gradient():
    """With dropout: the second forward draws the same masks."""
    dropouts = {"embed_dropout": 0.1, "attention_dropout": 0.1, "resid_dropout": 0.1}
    results, calls = [], []
    for checkpointing in (False, True):
        model = tiny_model(**dropouts).train()
        if checkpointing:
            model.activation_checkpointing_enable()
        model.transformer.layers[0].mlp.register_forward_hook(lambda *_, seen=checkpointing: calls.append(seen))
        torch.manual_seed(1)
        model(some_ids(), labels=some_ids()).loss.backward()
        results.append(gradients(model))
    assert calls == [False, True, True]  # activations are computed twice
    assert_close(results[1], results[0], atol=1e-6, rtol=1e-5)


def test_gpt2s_initialization_scales_the_projections_into_the_residual_stream():
    sizes = {"hidden_size": 128, "num_hidden_layers": 8, "vocab_size": 1000, "max_position_embeddings": 256}
    model = ScratchGPTForSequenceClassification(tiny_config(**sizes, initializer_range=0.02, num_labels=100))
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            value = 1.0 if re.search(r"(ln_\d|norm)\.weight", name) else 0.0
            assert (parameter == value).all(), name
        else:
            scaled = name.endswith(("o_proj.weight", "down_proj.weight"))
            std = 0.02 / math.sqrt(2 * 8) if scaled else 0.02
            assert parameter.std().item() == pytest.approx(std, rel=0.05), name
            assert abs(parameter.mean().item()) < 0.05 * std, name


@pytest.mark.parametrize("tied", [True, False])
def test_embeddings_can_have_their_own_initialization(tied, tmp_path):
    sizes = {"hidden_size": 128, "vocab_size": 1000, "max_position_embeddings": 256, "tie_word_embeddings": tied}
    plain, wide = (
        ScratchGPTForCausalLM(tiny_config(**sizes, initializer_range=0.02, embedding_initializer_range=std))
        for std in (None, 1)
    )
    for name, parameter in wide.named_parameters():
        std = plain.get_parameter(name).std().item()
        std = 1 if "embed_" in name or (tied and name == "lm_head.weight") else std
        assert parameter.std().item() == pytest.approx(std, rel=0.05), name
    export_gpt2(wide, tmp_path / "stock")  # the initialization does not change the function
    ids = torch.arange(20)[None]
    stock = GPT2LMHeadModel.from_pretrained(tmp_path / "stock").eval()
    with torch.no_grad():
        assert_close(stock(ids).logits, wide.eval()(ids).logits, atol=1e-3, rtol=1e-4)


@BOTH
def test_each_dropout_acts_at_its_place(attention):
    """At probability 1 a dropout removes its input completely."""
    ids, shuffled = some_ids(1, 12), some_ids(1, 12, seed=1)
    shuffled[:, -1] = ids[:, -1]

    def trained(**dropout):
        return tiny_model(attention=attention, **dropout).train()

    model = trained(embed_dropout=1.0)
    near(model(ids).logits, model(shuffled).logits)  # all embeddings are dropped
    model = trained(attention_dropout=1.0)
    near(model(ids).logits[:, -1], model(shuffled).logits[:, -1])  # no token sees another
    assert (model(ids).logits[:, 0] - model(shuffled).logits[:, 0]).abs().max() > 0.1
    model = trained(resid_dropout=1.0)
    embedded = model.transformer.embed_tokens(ids) + model.transformer.embed_positions(torch.arange(12))
    near(model(ids).logits, model.lm_head(model.transformer.norm(embedded)))  # the blocks add nothing


@BOTH
@pytest.mark.parametrize("name", ["embed_dropout", "attention_dropout", "resid_dropout"])
def test_dropout_acts_in_training_only(attention, name):
    model, ids = tiny_model(attention=attention, **{name: 0.5}), some_ids()
    near(model(ids).logits, model(ids).logits, atol=0)
    near(model(ids).logits, tiny_model(attention=attention)(ids).logits, atol=0)
    model.train()
    assert (model(ids).logits - model(ids).logits).abs().max() > 0.01


# --- Surgery, compilers, devices -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [120, 50])
@pytest.mark.parametrize("tied", [True, False])
def test_resizing_keeps_old_rows_and_the_tie(size, tied, tmp_path):
    model = tiny_model(tie_word_embeddings=tied)
    old = {name: p.clone() for name, p in model.named_parameters()}
    model.resize_token_embeddings(size, mean_resizing=False)
    kept = min(size, VOCAB)
    embeddings, head = model.transformer.embed_tokens.weight, model.lm_head.weight
    assert embeddings.shape == head.shape == (size, 32) and model.config.vocab_size == size
    near(embeddings[:kept], old["transformer.embed_tokens.weight"][:kept], atol=0)
    if not tied:
        near(head[:kept], old["lm_head.weight"][:kept], atol=0)
    assert (embeddings is head) == tied
    ids = some_ids(vocab_size=kept)
    assert model(ids, labels=ids).logits.shape[-1] == size
    model.save_pretrained(tmp_path)
    near(ScratchGPTForCausalLM.from_pretrained(tmp_path)(ids).logits, model(ids).logits)


@BOTH
def test_one_graph_compiles_and_equals_eager_mode(attention):
    torch._dynamo.reset()  # its count of compilations is per process
    model = tiny_model(attention=attention)
    compiled = torch.compile(tiny_model(attention=attention), fullgraph=True, backend="aot_eager")
    batch = padded([some_ids(1, 12)[0], some_ids(1, 9)[0]])
    near(compiled(batch["input_ids"]).logits, model(batch["input_ids"]).logits)
    near(compiled(**batch).logits, model(**batch).logits)
    _, packed = packed_rows()
    near(compiled(**packed, use_cache=False).logits, model(**packed, use_cache=False).logits)
    for each in (model, compiled):
        each.train()
        each(**packed, labels=packed["input_ids"]).loss.backward()
    assert_close(gradients(compiled._orig_mod), gradients(model), atol=1e-6, rtol=1e-4)


def test_gelu_compiled_as_in_the_recipes_equals_torchs():
    try:
        check_compiler()
    except ValueError as error:
        pytest.skip(str(error))
    torch._dynamo.reset()
    x = torch.linspace(-12, 12, 4001)
    plain = partial(torch.nn.functional.gelu, approximate="tanh")
    compiled = torch.compile(plain, options=compile_options())
    found = []
    for gelu in (plain, compiled):
        given = x.clone().requires_grad_()
        value = gelu(given)
        value.sum().backward()
        found.append((value, given.grad))
    for one, other, atol in zip(*found, (1e-6, 5e-6), strict=True):
        near(one, other, atol=atol)


@BOTH
def test_an_exported_graph_equals_the_model_at_every_length(attention):
    model = tiny_model(attention=attention)
    batch, length = {"input_ids": some_ids(), "attention_mask": torch.ones(2, 12, dtype=torch.long)}, torch.export.Dim
    dynamic = {name: {1: length("length", min=2, max=64)} for name in batch} | {"use_cache": None}
    program = torch.export.export(model, (), {**batch, "use_cache": False}, dynamic_shapes=dynamic, strict=False)
    other = padded([some_ids(1, 20)[0], some_ids(1, 7)[0]])
    near(program.module()(**other, use_cache=False).logits, model(**other).logits)


def test_device_map_loads(tmp_path):
    model, ids = tiny_model(), some_ids()
    model.save_pretrained(tmp_path)
    for device_map in ("cpu", "auto", {"transformer": "cpu", "lm_head": "cpu"}):
        near(ScratchGPTForCausalLM.from_pretrained(tmp_path, device_map=device_map)(ids).logits, model(ids).logits)


@pytest.mark.parametrize("model_class", ALL_HEADS)
@pytest.mark.parametrize("plan", ["_tp_plan", "_pp_plan", "_fsdp_plan"])
def test_plans_name_only_modules_that_exist(model_class, plan):
    model = tiny_model(model_class)
    names = {re.sub(r"\.\d+(?=\.|$)", ".*", name) for name, _ in model.named_modules()}
    entries = set(getattr(model, plan))
    assert entries and entries <= names, entries - names
    if plan != "_tp_plan":
        return
    split = {name for name in names if name.endswith(("_proj", "embed_tokens"))}
    split |= names & {"lm_head"}  # a tied head must be split like the embedding
    assert entries == split


# --- Generation ----------------------------------------------------------------------------------------------------

GREEDY_MODES = {
    "no cache": {"use_cache": False},
    "dynamic cache": {"cache_implementation": "dynamic"},
    "static cache": {"cache_implementation": "static"},
    "prompt lookup": {"prompt_lookup_num_tokens": 3},
    "early exit": {"assistant_early_exit": 1},
    "one beam": {"num_beams": 1},
    "sampling from one": {"do_sample": True, "top_k": 1},
}


def greedy(model, ids, new_tokens: int = 15, **options) -> torch.Tensor:
    options = {"do_sample": False, "max_new_tokens": new_tokens, "pad_token_id": 0, **options}
    return model.generate(ids, **options)


def greedy_by_loop(model, ids, new_tokens: int = 15) -> torch.Tensor:
    """Decode greedily in a plain loop."""
    for _ in range(new_tokens):
        ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    return ids


@BOTH
@pytest.mark.parametrize("mode", GREEDY_MODES)
def test_every_greedy_mode_gives_the_same_text(attention, mode):
    model, prompt = tiny_model(attention=attention), some_ids(1, 6)
    assert greedy(model, prompt, **GREEDY_MODES[mode]).tolist() == greedy_by_loop(model, prompt).tolist()


def test_assisted_decoding_gives_the_same_text():
    model, assistant, prompt = tiny_model(), tiny_model(seed=1, num_hidden_layers=1), some_ids(1, 6)
    expected = greedy_by_loop(model, prompt)
    assert greedy_by_loop(assistant, prompt).tolist() != expected.tolist()
    assert greedy(model, prompt, assistant_model=assistant).tolist() == expected.tolist()


def test_generating_from_embeddings_gives_the_same_text():
    model, prompt = tiny_model(), some_ids(1, 6)
    spoken = model.generate(
        inputs_embeds=model.get_input_embeddings()(prompt), do_sample=False, max_new_tokens=15, pad_token_id=0
    )
    assert spoken.tolist() == greedy_by_loop(model, prompt)[:, 6:].tolist()


@BOTH
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_a_left_padded_batch_gives_the_text_of_each_separate_row(attention, cache):
    model, texts = tiny_model(attention=attention), [some_ids(1, n, seed=n)[0] for n in (3, 8, 1)]
    batch = padded(texts)
    spoken = greedy(model, batch["input_ids"], attention_mask=batch["attention_mask"], cache_implementation=cache)
    for row, text in enumerate(texts):
        assert spoken[row, 8:].tolist() == greedy_by_loop(model, text[None])[0, len(text) :].tolist()


def test_one_beam_per_token_finds_the_most_likely_pair():
    model, prompt = tiny_model(), some_ids(1, 6)
    first = model(prompt).logits[0, -1].log_softmax(-1)  # (V,)
    each = torch.cat([prompt.expand(VOCAB, -1), torch.arange(VOCAB)[:, None]], dim=1)
    pairs = first[:, None] + model(each).logits[:, -1].log_softmax(-1)  # (V, V)
    best = divmod(int(pairs.argmax()), VOCAB)
    assert greedy(model, prompt, new_tokens=2, num_beams=VOCAB)[0, 6:].tolist() == list(best)


def test_sampling_is_seeded_and_follows_the_distribution():
    model, prompt = tiny_model(), some_ids(1, 6)

    def sampled(seed: int, rows: int = 1, new_tokens: int = 15) -> torch.Tensor:
        torch.manual_seed(seed)
        options = {"do_sample": True, "top_k": 0, "num_return_sequences": rows}
        return greedy(model, prompt, new_tokens=new_tokens, **options)[:, 6:]

    assert sampled(1).tolist() == sampled(1).tolist() != sampled(2).tolist()
    counts = sampled(3, rows=4000, new_tokens=1).flatten().bincount(minlength=VOCAB) / 4000
    probabilities = model(prompt).logits[0, -1].softmax(-1)
    assert (counts - probabilities).abs().sum() < 0.2 < (probabilities - 1 / VOCAB).abs().sum()


def test_generation_stops_at_the_end_token():
    model, prompt = tiny_model(), some_ids(1, 6)
    expected = greedy_by_loop(model, prompt)[0, 6:].tolist()
    end = expected[4]
    assert greedy(model, prompt, eos_token_id=end)[0, 6:].tolist() == expected[: expected.index(end) + 1]


# --- The classifier ------------------------------------------------------------------------------------------------


def classifier(**changes) -> ScratchGPTForSequenceClassification:
    return tiny_model(ScratchGPTForSequenceClassification, **{"num_labels": 3, **changes})


@BOTH
@pytest.mark.parametrize("special", [{}, {"pad_token_id": 5}, {"pad_token_id": 5, "eos_token_id": 5}])
def test_a_class_does_not_depend_on_padding(attention, special):
    """Padding of any id has no effect, also if a text contains the pad id or ends in it, or without a pad id."""
    model = classifier(attention=attention, **special)
    texts = [torch.tensor([7, 5, 9, 5]), torch.tensor([5, 5, 5]), torch.tensor([8, 1, 2, 3, 4, 6, 5])]
    alone = torch.cat([model(text[None]).logits for text in texts])
    assert (alone[0] - alone[1]).abs().max() > 0.1
    for side in ("left", "right"):
        for length in (7, 8, 40):
            for pad_id in (5, 17):
                near(model(**padded(texts, side=side, length=length, pad_id=pad_id)).logits, alone)


PROBLEMS = {
    "single_label_classification": (3, torch.tensor([0, 2, 1, -100, 0, 0, 2, 1])),
    "multi_label_classification": (3, torch.arange(24).reshape(8, 3).remainder(5).gt(2).float()),
    "regression": (1, torch.linspace(-1, 2, 8)),
}


def classification_rows(problem: str) -> tuple[dict, dict]:
    """Return config changes, and 8 padded rows with their labels."""
    num_labels, labels = PROBLEMS[problem]
    texts = [some_ids(1, 1 + row, seed=row)[0] for row in range(8)]
    return {"num_labels": num_labels, "problem_type": problem}, {**padded(texts), "labels": labels}


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("problem", PROBLEMS)
def test_the_classifiers_loss_and_gradient_do_not_depend_on_the_split(problem, named):
    changes, batch = classification_rows(problem)
    if not named:  # the labels then determine the problem type
        changes["problem_type"] = None
    count = (batch["labels"] != -100).sum()
    results = []
    for rows in (8, 2):
        model = classifier(**changes).train()
        loss = 0
        for start in range(0, 8, rows):
            part = {name: value[start : start + rows] for name, value in batch.items()}
            part_loss = model(**part, num_items_in_batch=count).loss
            part_loss.backward()
            loss += part_loss.detach()
        assert model.config.problem_type == changes["problem_type"]  # a forward does not change the config
        results.append((loss, gradients(model)))
    assert_close(results[0], results[1], atol=1e-6, rtol=1e-4)
    near(classifier(**changes)(**batch).loss, results[0][0])  # without a count, the mean over the labels of this call


def test_the_classifiers_losses_equal_torchs():
    for problem, loss_function in {
        "single_label_classification": torch.nn.functional.cross_entropy,
        "multi_label_classification": torch.nn.functional.binary_cross_entropy_with_logits,
        "regression": lambda logits, labels: torch.nn.functional.mse_loss(logits[:, 0], labels),
    }.items():
        changes, batch = classification_rows(problem)
        outputs = classifier(**changes)(**batch)
        near(outputs.loss, loss_function(outputs.logits, batch["labels"]))


# --- With transformers' Trainer ------------------------------------------------------------------------------------


@pytest.mark.parametrize("problem", ["causal", *PROBLEMS])
def test_a_trainer_step_does_not_depend_on_accumulation(problem, tmp_path):
    """SGD without clipping reveals a gradient of the wrong size."""
    if problem == "causal":
        batch = padded([some_ids(1, 3 + row, seed=row)[0] for row in range(8)])
        batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    else:
        changes, batch = classification_rows(problem)
    rows = [{name: value[row].tolist() for name, value in batch.items()} for row in range(8)]
    weights = []
    for size, steps in ((8, 1), (2, 4)):
        model = tiny_model() if problem == "causal" else classifier(**changes)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        options = {"optim": "sgd", "learning_rate": 0.5, "max_grad_norm": 0.0, "max_steps": 1, "use_cpu": True}
        quiet = {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "logging_strategy": "no"}
        split = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps}
        Trainer(model, TrainingArguments(tmp_path, **options, **quiet, **split), train_dataset=rows).train()
        weights.append(model.state_dict())
        assert any((value - before[name]).abs().max() > 1e-3 for name, value in model.state_dict().items())
    assert_close(weights[0], weights[1], atol=1e-5, rtol=0)
