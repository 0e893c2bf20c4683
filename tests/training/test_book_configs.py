"""Test the configs of the book's runs: they have the book's values and pass the recipes' checks."""

import pytest
from places import REPO

from scratch_gpt_training import classify, instruct, prefer, pretrain
from scratch_gpt_training.support import command_line
from scratch_gpt_training.support.run import recipe


# All of them: AdamW with torch's betas, a constant rate, no clipping, fp32, seed 123.
COMMON = {"optimizer": "adamw", "beta2": 0.999, "warmup_steps": 0, "max_grad_norm": 0, "seed": 123}
COMMON |= {"mixed_precision": "no", "accumulation_steps": 1}
RUNS = {
    "the_verdict": (
        pretrain.PretrainRun,
        {"learning_rate": 4e-4, "weight_decay": 0.1, "batch_size": 2, "epochs": 10, "max_length": 256, "dropout": 0.1}
        | {"drop_tail": True, "stride": None, "eval_every": 5},
    ),
    "book_classify": (
        classify.ClassifyRun,
        {"learning_rate": 5e-5, "weight_decay": 0.1, "batch_size": 8, "epochs": 5, "max_length": 120, "dropout": 0}
        | {"tune": "last-block", "balance": "undersample", "validation_fraction": 0.1, "test_fraction": 0.2},
    ),
    "book_lora": (
        classify.ClassifyRun,
        {"learning_rate": 8e-4, "weight_decay": 0.1, "batch_size": 8, "epochs": 5, "max_length": 120, "dropout": 0}
        | {"tune": "lora", "lora_rank": 16, "lora_alpha": 16, "lora_targets": "all-linear"},
    ),
    "book_instruct": (
        instruct.InstructRun,
        {"learning_rate": 5e-5, "weight_decay": 0.1, "batch_size": 8, "epochs": 2, "dropout": 0}
        | {"model": "openai-community/gpt2-medium", "prompt_format": "book", "train_on": "prompt+completion"},
    ),
    "book_preferences": (
        prefer.PreferRun,
        {"learning_rate": 5e-6, "weight_decay": 0.01, "batch_size": 8, "epochs": 1, "dropout": 0, "beta": 0.1}
        | {"loss_type": "dpo"},
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_the_config_has_the_values_of_the_book(name, tmp_path, monkeypatch):
    kind, values = RUNS[name]
    run = command_line.parse(kind, ["--config", str(REPO / "training" / "configs" / f"{name}.yaml")])
    assert {field: getattr(run, field) for field in COMMON | values} == COMMON | values
    assert run.min_learning_rate == run.learning_rate
    folder = tmp_path / "runs" / "book_instruct" / "model"  # the model of an earlier run
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    recipe.check_run(run)
