"""Test transformers' Trainer on our classes, local and from remote code: it works as it does on stock GPT-2."""

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from tiny import remote_class, some_ids, tiny_model
from torch.testing import assert_close
from transformers import GPT2ForSequenceClassification, GPT2LMHeadModel, Trainer, TrainingArguments

from scratch_gpt import ScratchGPTForCausalLM, ScratchGPTForSequenceClassification, export_gpt2
from scratch_gpt.train.objectives import causal_lm


QUIET = {"report_to": "none", "use_cpu": True, "bf16": False, "save_strategy": "no", "disable_tqdm": True}
QUIET |= {"logging_steps": 1, "learning_rate": 1e-2, "lr_scheduler_type": "constant", "seed": 0, "max_steps": 12}
SMOOTHING = 0.1
IDS = some_ids(8, 16)
TEXTS = Dataset.from_dict({"input_ids": IDS.tolist(), "labels": IDS.tolist()})
CLASSES = IDS[:, 0] % 3
LABELED = Dataset.from_dict({"input_ids": IDS.tolist(), "labels": CLASSES.tolist()})


@pytest.fixture(scope="module", params=["local class", "remote code"])
def folders(request, tmp_path_factory) -> dict:
    """Save a language model and a classifier; return a function that loads either as the class under test."""
    root = tmp_path_factory.mktemp("models")
    models = {
        "lm": (tiny_model(), ScratchGPTForCausalLM),
        "classifier": (
            tiny_model(ScratchGPTForSequenceClassification, num_labels=3, pad_token_id=0),
            ScratchGPTForSequenceClassification,
        ),
    }
    for name, (model, _) in models.items():
        model.save_pretrained(root / name)
        export_gpt2(model, root / f"stock-{name}")

    def load(name: str):
        model_class = models[name][1]
        if request.param == "remote code":
            model_class = remote_class(root / name, model_class)
            assert model_class.__module__.startswith("transformers_modules.")
        return model_class.from_pretrained(root / name)

    return {"root": root, "load": load}


def trainer(model, rows, folder, compute_metrics=None, **changes) -> Trainer:
    arguments = TrainingArguments(str(folder), **{**QUIET, "per_device_train_batch_size": 8, **changes})
    return Trainer(model, arguments, train_dataset=rows, eval_dataset=rows, compute_metrics=compute_metrics)


def losses(trained: Trainer, name: str = "loss") -> list[float]:
    return [line[name] for line in trained.state.log_history if name in line]


def next_token_loss(logits, smoothing: float = 0.0) -> float:
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten(), label_smoothing=smoothing).item()


# --- Language model -----------------------------------------------------------------------------------------------


def test_training_starts_at_the_loss_of_our_objective_and_lowers_it(folders, tmp_path):
    model = folders["load"]("lm")
    batch = {"input_ids": IDS[:, :-1], "shift_labels": IDS[:, 1:]}
    ours = causal_lm.sums(model, batch)["loss"] / causal_lm.counts(batch)["loss"]
    trained = trainer(model, TEXTS, tmp_path)
    trained.train()
    assert losses(trained)[0] == pytest.approx(ours.item(), abs=1e-3)  # the log has few digits
    assert losses(trained)[-1] < 0.5 * losses(trained)[0]


def test_evaluation_has_a_loss_and_the_metrics_of_stock_gpt2(folders, tmp_path):
    seen = {}

    def compute_metrics(prediction):
        seen["logits"], seen["labels"] = map(torch.as_tensor, (prediction.predictions, prediction.label_ids))
        return {"accuracy": (seen["logits"][:, :-1].argmax(-1) == seen["labels"][:, 1:]).float().mean().item()}

    found = trainer(folders["load"]("lm"), TEXTS, tmp_path, compute_metrics).evaluate()
    stock = GPT2LMHeadModel.from_pretrained(folders["root"] / "stock-lm")
    expected = stock(IDS).logits.detach()
    assert_close(seen["logits"], expected, atol=1e-5, rtol=0)
    assert torch.equal(seen["labels"], IDS)
    assert found["eval_loss"] == pytest.approx(next_token_loss(expected), abs=1e-4)
    assert found["eval_accuracy"] == trainer(stock, TEXTS, tmp_path, compute_metrics).evaluate()["eval_accuracy"]


def test_the_best_model_is_loaded_at_the_end(folders, tmp_path):
    best = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 2, "save_steps": 2, "max_steps": 8}
    trained = trainer(folders["load"]("lm"), TEXTS, tmp_path, **best, learning_rate=0.2, load_best_model_at_end=True)
    trained.train()
    assert min(losses(trained, "eval_loss")) == trained.state.best_metric
    assert trained.evaluate()["eval_loss"] == pytest.approx(trained.state.best_metric, abs=1e-4)


def test_label_smoothing_is_that_of_the_next_token(folders, tmp_path):
    model = folders["load"]("lm")
    expected = next_token_loss(model(IDS).logits, SMOOTHING)
    trained = trainer(model, TEXTS, tmp_path, label_smoothing_factor=SMOOTHING, max_steps=60)
    trained.train()
    assert losses(trained)[0] == pytest.approx(expected, abs=1e-3)
    predicted = model.eval()(IDS[:, :-1]).logits.argmax(-1)
    assert (predicted == IDS[:, 1:]).float().mean() > 0.9
    assert (predicted == IDS[:, :-1]).float().mean() < 0.1  # not the input token


def test_trl_smooths_labels_of_the_next_token(folders, tmp_path):
    pytest.importorskip("trl")
    from trl import SFTConfig, SFTTrainer

    from scratch_gpt.tokenization.training import train_tokenizer

    model = folders["load"]("lm")
    expected = next_token_loss(model(IDS).logits, SMOOTHING)
    words = {**QUIET, "max_steps": 1, "per_device_train_batch_size": 8, "label_smoothing_factor": SMOOTHING}
    tokenizer = train_tokenizer(["a boat at sea"], vocab_size=270)
    config = SFTConfig(str(tmp_path), **words, loss_type="nll", max_length=32)
    rows = Dataset.from_dict({"input_ids": IDS.tolist()})
    trained = SFTTrainer(model, config, train_dataset=rows, processing_class=tokenizer)
    trained.train()
    assert losses(trained)[0] == pytest.approx(expected, abs=1e-3)


def test_a_step_does_not_depend_on_how_its_batch_is_split(folders, tmp_path):
    labels = [[-100] * n + row[n:] for n, row in enumerate(IDS.tolist())]  # rows have different numbers of targets
    rows, weights = Dataset.from_dict({"input_ids": IDS.tolist(), "labels": labels}), []
    for size in (8, 2):
        model = folders["load"]("lm")
        split = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size, "optim": "sgd"}
        trainer(model, rows, tmp_path, max_steps=1, **split).train()
        weights.append(model.state_dict())
    for name, tensor in weights[0].items():
        assert_close(tensor, weights[1][name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", ["lm", "classifier"])
def test_a_resumed_training_ends_with_the_same_weights(folders, kind, tmp_path):
    rows, weights = {"lm": TEXTS, "classifier": LABELED}[kind], []
    how = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "per_device_train_batch_size": 2}
    for resume in (None, str(tmp_path / "checkpoint-3")):
        model = folders["load"](kind)
        trainer(model, rows, tmp_path, **how).train(resume_from_checkpoint=resume)
        weights.append(model.state_dict())
    for name, tensor in weights[0].items():
        assert_close(tensor, weights[1][name], atol=1e-6, rtol=1e-5)


# --- Classifier ---------------------------------------------------------------------------------------------------


def test_a_classifier_trains_and_is_evaluated_like_stock_gpt2(folders, tmp_path):
    def compute_metrics(prediction):
        return {"accuracy": (prediction.predictions.argmax(-1) == prediction.label_ids).mean()}

    stock = GPT2ForSequenceClassification.from_pretrained(folders["root"] / "stock-classifier")
    trained = trainer(folders["load"]("classifier"), LABELED, tmp_path, compute_metrics)
    found, expected = (each.evaluate() for each in (trained, trainer(stock, LABELED, tmp_path, compute_metrics)))
    assert found["eval_loss"] == pytest.approx(expected["eval_loss"], abs=1e-4)
    assert found["eval_accuracy"] == expected["eval_accuracy"]
    trained.train()
    assert trained.evaluate()["eval_accuracy"] == 1


def test_label_smoothing_of_a_classifier(folders, tmp_path):
    model = folders["load"]("classifier")
    expected = F.cross_entropy(model(IDS).logits, CLASSES, label_smoothing=SMOOTHING).item()
    trained = trainer(model, LABELED, tmp_path, label_smoothing_factor=SMOOTHING, max_steps=1)
    trained.train()
    assert losses(trained)[0] == pytest.approx(expected, abs=1e-3)


# --- peft ---------------------------------------------------------------------------------------------------------


def test_peft_adapts_the_same_layers_by_default_as_in_stock_gpt2(folders):
    from peft import IA3Config, LNTuningConfig, LoraConfig, get_peft_model

    adapted = get_peft_model(folders["load"]("lm"), LoraConfig(task_type="CAUSAL_LM"))
    names = {name.split(".lora_A")[0].rpartition(".")[2] for name, _ in adapted.named_parameters() if "lora_A" in name}
    assert names == {"q_proj", "k_proj", "v_proj"}
    assert adapted.get_nb_trainable_parameters()[0] == 2 * 3 * 8 * (32 + 32)
    adapted = get_peft_model(folders["load"]("lm"), IA3Config(task_type="CAUSAL_LM"))
    assert adapted.peft_config["default"].feedforward_modules == {"mlp.down_proj"}
    adapted = get_peft_model(folders["load"]("lm"), LNTuningConfig(task_type="CAUSAL_LM"))
    stock = GPT2LMHeadModel.from_pretrained(folders["root"] / "stock-lm")
    stock = get_peft_model(stock, LNTuningConfig(task_type="CAUSAL_LM"))
    assert adapted.get_nb_trainable_parameters()[0] == stock.get_nb_trainable_parameters()[0]
