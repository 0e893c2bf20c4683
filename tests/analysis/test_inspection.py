"""Test inspection: each number equals that of a direct call of the model."""

import pytest
import torch
from tiny import some_ids, tiny_gpt2, tiny_model
from transformers import GPT2LMHeadModel

from scratch_gpt import ScratchGPTForSequenceClassification
from scratch_gpt.analysis import inspection
from scratch_gpt.generation.generate import filter_logits, generate
from scratch_gpt.tokenization.chat_templates import FORMATS
from scratch_gpt.tokenization.tokenizer import encode
from scratch_gpt.tokenization.training import train_tokenizer


IDS = some_ids(1, 12)


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def seen(model):
    return inspection.look(model, IDS[0].tolist())


def cut(model, layers: int):
    """Return a model with the same weights and only the first layers."""
    shorter = tiny_model()
    shorter.load_state_dict(model.state_dict())
    shorter.transformer.layers = shorter.transformer.layers[:layers]
    shorter.config.num_hidden_layers = layers
    return shorter


def test_attention_rows_sum_to_one_and_never_look_ahead(model, seen):
    L, H, T = 2, 4, IDS.shape[1]
    assert seen.hidden.shape == (L + 1, T, 32) and seen.attention.shape == (L, H, T, T)
    direct = model(IDS, output_attentions=True)
    assert torch.equal(seen.attention, torch.cat(direct.attentions))
    assert torch.allclose(seen.attention.sum(-1), torch.ones(L, H, T))
    assert not seen.attention.triu(1).any()
    assert torch.equal(model.lm_head(seen.hidden[-1]), direct.logits[0])


def test_inspecting_a_prefix_equals_the_start_of_inspecting_the_text(model, seen):
    alone = inspection.look(model, IDS[0, :5].tolist())
    assert torch.allclose(seen.attention[:, :, :5, :5], alone.attention, atol=1e-6)
    assert torch.allclose(seen.hidden[:, :5], alone.hidden, atol=1e-5)


@pytest.mark.parametrize("how", [{}, {"temperature": 0.7, "top_k": 5, "top_p": 0.9}, {"top_p": 0.3}])
def test_the_next_token_has_the_distribution_of_generate(model, seen, how):
    p = inspection.next_probabilities(model, seen.hidden, **how)
    assert torch.allclose(p, filter_logits(model(IDS).logits[:, -1], **how)[0].softmax(-1))
    drawn = generate(model, IDS.expand(300, -1), max_new_tokens=1, **how)[:, -1]
    assert (p[drawn] > 0).all()


def test_at_temperature_0_the_greedy_token_has_probability_one(model, seen):
    p = inspection.next_probabilities(model, seen.hidden, 0, 5, 0.9)
    assert p.max() == p.sum() == 1
    assert p.argmax() == generate(model, IDS, max_new_tokens=1, temperature=0)[0, -1]


def test_the_logit_lens_equals_a_model_that_ends_at_the_layer(model, seen):
    p, ids = inspection.logit_lens(model, seen.hidden, count=3)
    assert p.shape == ids.shape == (3, IDS.shape[1], 3)
    for layers in range(3):
        with torch.no_grad():
            expected = cut(model, layers)(IDS).logits[0].softmax(-1).topk(3)
        assert torch.equal(ids[layers], expected.indices)
        assert torch.allclose(p[layers], expected.values, atol=1e-6)


def test_neighbors_are_nearest_by_cosine_without_the_token_itself(model):
    table = model.get_input_embeddings().weight.detach()
    for id in (0, 57):
        cosines, ids = inspection.neighbors(model, id, 5)
        each = torch.cosine_similarity(table[id], table)
        assert id not in ids and torch.allclose(cosines, each[ids])
        others = [k for k in range(len(table)) if k not in (id, *ids.tolist())]
        assert cosines.diff().le(0).all() and cosines[-1] >= each[others].max()


@pytest.mark.parametrize("problem", ["single_label_classification", "multi_label_classification"])
def test_class_probabilities_and_the_last_layer_of_the_lens_equal_the_forward(problem):
    model = tiny_model(ScratchGPTForSequenceClassification, num_labels=3, problem_type=problem)
    seen = inspection.look(model, IDS[0].tolist())
    logits = model(IDS).logits[0]
    expected = logits.softmax(-1) if problem.startswith("single") else logits.sigmoid()
    p = inspection.class_probabilities(model, seen.hidden)
    assert torch.allclose(p, expected)
    lens, classes = inspection.logit_lens(model, seen.hidden, 3)
    assert torch.allclose(lens[-1, -1], p.sort(descending=True).values) and classes.max() == 2


# --- Folders ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("subjects")
    tokenizer = train_tokenizer(["the sun shines on the sea"] * 9, vocab_size=280)
    sizes = {"vocab_size": len(tokenizer)}
    tiny_model(**sizes).save_pretrained(folder / "base")
    tiny_model(**sizes).save_pretrained(folder / "chat")
    tiny_model(ScratchGPTForSequenceClassification, num_labels=2, **sizes).save_pretrained(folder / "classifier")
    tiny_model(ScratchGPTForSequenceClassification, num_labels=1, **sizes).save_pretrained(folder / "regression")
    tiny_gpt2(**sizes).save_pretrained(folder / "gpt2")
    tiny_model(vocab_size=100).save_pretrained(folder / "small")
    for path in folder.iterdir():
        tokenizer.save_pretrained(path)
    tokenizer.chat_template = FORMATS["alpaca"].template
    tokenizer.save_pretrained(folder / "chat")
    return folder


def test_every_kind_of_folder_opens_as_its_kind(folders):
    for name, kind in {"base": "base", "gpt2": "base", "chat": "chat", "classifier": "classifier"}.items():
        model, tokenizer, found = inspection.open_subject(folders / name)
        assert found == kind and not model.training
        assert inspection.look(model, encode(tokenizer, "the sun")).attention.isfinite().all()


def test_stock_gpt2_gives_the_same_inspection_in_our_class(folders):
    model = inspection.open_subject(folders / "gpt2").model
    theirs = GPT2LMHeadModel.from_pretrained(folders / "gpt2", attn_implementation="eager")
    stock = theirs.transformer(IDS, output_attentions=True, output_hidden_states=True)
    seen = inspection.look(model, IDS[0].tolist())
    assert torch.allclose(seen.attention, torch.cat(stock.attentions), atol=1e-5)
    assert torch.allclose(seen.hidden, torch.cat(stock.hidden_states), atol=1e-4)


def test_folders_that_cannot_be_inspected_are_one_line_errors(folders, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model").symlink_to(folders / "base")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "llama"}')
    for folder, message in {
        tmp_path / "absent": "is not a model folder",
        tmp_path / "empty": "it has no config.json",
        tmp_path / "run": "Did you mean .*model",
        tmp_path / "adapter": "holds an adapter",
        tmp_path / "broken": "cannot be read",
        tmp_path / "other": "it is a llama",
        folders / "regression": "is a regression",
        folders / "small": "the model's vocab_size is 100",
    }.items():
        with pytest.raises(ValueError, match=message) as caught:
            inspection.open_subject(folder)
        assert "\n" not in str(caught.value)


# --- Display ------------------------------------------------------------------------------------------------------


def test_tokens_are_spelled_as_text_and_parts_of_characters_as_their_bytes():
    tokenizer = train_tokenizer(["sun"], vocab_size=258)
    spelled = [inspection.spell(tokenizer, id) for id in encode(tokenizer, "a \u20ac\n")]
    assert spelled == ["a", " ", "<E2>", "<82>", "<AC>", "\n"]
    assert inspection.spell(tokenizer, tokenizer.eos_token_id) == "<|endoftext|>"
