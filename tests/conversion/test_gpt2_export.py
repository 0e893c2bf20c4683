"""Test the export to GPT-2: bit-equal round trips, the same tokens in CTranslate2, refusals that write nothing."""

import pytest
import torch
from exported import PROMPTS, TIE, greedy_tokens
from outputs import logits_of
from safetensors.torch import load_file
from tiny import some_ids, tiny_gpt2, tiny_model
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from scratch_gpt import ScratchGPTForCausalLM, ScratchGPTForSequenceClassification, ScratchGPTModel, export_gpt2
from scratch_gpt.conversion.load import load_any_head
from scratch_gpt.tokenization.tokenizer import encode
from scratch_gpt.tokenization.training import train_tokenizer


@pytest.mark.parametrize("history", ["gpt2", "native", "folder"])
def test_the_round_trip_is_bit_equal_for_every_history_of_the_model(history, tmp_path):
    stock = tiny_gpt2()
    stock.save_pretrained(tmp_path / "stock")
    model = ScratchGPTForCausalLM.from_pretrained(tmp_path / "stock")
    if history != "gpt2":
        model.save_pretrained(tmp_path / "native")
        model = ScratchGPTForCausalLM.from_pretrained(tmp_path / "native")
    export_gpt2(tmp_path / "native" if history == "folder" else model, tmp_path / "out")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("stock", "out"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("changes", [{}, {"attention_bias": False}, {"tie_word_embeddings": False}])
def test_exported_folders_are_stock_gpt2(changes, tmp_path):
    model, ids = tiny_model(**changes), some_ids()
    tokenizer = train_tokenizer(["a shiny sun"], vocab_size=258)
    export_gpt2(model, tmp_path / "out", tokenizer=tokenizer)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(stock).__module__ == "transformers.models.gpt2.modeling_gpt2"
    assert stock.config.tie_word_embeddings == model.config.tie_word_embeddings
    assert (logits_of(stock, ids) - logits_of(model, ids)).abs().max() < 1e-5
    assert not list((tmp_path / "out").glob("*.py"))
    assert len(AutoTokenizer.from_pretrained(tmp_path / "out")) == len(tokenizer)


@pytest.mark.parametrize(
    ("ours", "auto"),
    [(ScratchGPTModel, AutoModel), (ScratchGPTForSequenceClassification, AutoModelForSequenceClassification)],
)
def test_the_other_heads_are_exported_too(ours, auto, tmp_path):
    model, ids = tiny_model(ours, pad_token_id=98, num_labels=3), some_ids(vocab_size=98)
    model.save_pretrained(tmp_path / "ours")
    export_gpt2(tmp_path / "ours", tmp_path / "out")
    stock = auto.from_pretrained(tmp_path / "out").eval()
    assert "gpt2" in type(stock).__module__
    assert (logits_of(stock, ids) - logits_of(model, ids)).abs().max() < 1e-5
    assert type(load_any_head(tmp_path / "out")) is ours  # and load as the same class


@pytest.mark.parametrize(
    ("changes", "message"), [({"hidden_act": "relu"}, "hidden_act 'relu'"), ({"rope_theta": 1e4}, "rope_theta")]
)
def test_features_that_gpt2_lacks_are_refused_by_name_and_nothing_is_written(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export_gpt2(tiny_model(**changes), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_an_unmerged_adapter_is_refused_and_a_merged_one_is_exported(tmp_path):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model, ids = peft.get_peft_model(tiny_model(), config), some_ids()
    for adapted in (model, model.base_model.model):
        with pytest.raises(ValueError, match="unmerged adapter"):
            export_gpt2(adapted, tmp_path / "out")
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match="unmerged adapter"):
        export_gpt2(tmp_path / "adapter", tmp_path / "out")
    merged = model.merge_and_unload().eval()
    export_gpt2(merged, tmp_path / "out")
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert (logits_of(stock, ids) - logits_of(merged, ids)).abs().max() < 1e-5


def test_a_folder_that_is_not_empty_is_not_changed(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="not an empty folder"):
        export_gpt2(tiny_model(), tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_a_failed_write_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr("transformers.GPT2LMHeadModel.save_pretrained", full)
    with pytest.raises(OSError, match="No space"):
        export_gpt2(tiny_model(), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_ctranslate2_writes_the_same_tokens(trained, tmp_path, monkeypatch):
    library = pytest.importorskip("ctranslate2", reason="not in the dev extra (146 MB): pip install ctranslate2")
    from ctranslate2.converters import transformers as converter

    folder, model, tokenizer = trained
    export_gpt2(folder / "model", tmp_path / "stock")
    again = type(tokenizer).from_pretrained(tmp_path / "stock")
    again.unk_token = again.eos_token  # required by CTranslate2, not used in any text
    again.save_pretrained(tmp_path / "stock")
    words = ["ct2", "--model", str(tmp_path / "stock"), "--output_dir", str(tmp_path / "ct2")]
    monkeypatch.setattr("sys.argv", words)
    converter.main()
    generator = library.Generator(str(tmp_path / "ct2"), intra_threads=1)
    ids = encode(tokenizer, PROMPTS[0])
    ours, ahead = greedy_tokens(model, ids, 200)
    how = {"max_length": 200, "include_prompt_in_result": False, "end_token": []}
    theirs = generator.generate_batch([tokenizer.convert_ids_to_tokens(ids)], **how)[0].sequences_ids[0]
    same = next((n for n in range(200) if theirs[n : n + 1] != ours[n : n + 1]), 200)
    assert same == 200 or ahead[same] < TIE
