"""Test how a sweep is read, checked, and turned into the options of each combination."""

import pytest
from bad_input import fails

from scratch_gpt.runs.folder import is_run_file
from scratch_gpt_training import classify, instruct, prefer, pretrain
from scratch_gpt_training.support.combinations import combination_name, combine, parse_sweep
from scratch_gpt_training.support.command_line import parse


def combinations(kind, *words):
    return combine(parse(kind, ["--output-dir", "runs/x", *words]))


def test_a_sweep_is_the_product_of_its_values():
    runs = combinations(pretrain.PretrainRun, "--sweep", "learning_rate=1e-3, 3e-3  batch-size = 4,8")
    assert [values for values, _ in runs.values()] == [
        {"learning_rate": rate, "batch_size": size} for rate in (1e-3, 3e-3) for size in (4, 8)
    ]
    for name, (values, run) in runs.items():
        assert (run.learning_rate, run.batch_size) == (*values.values(),)
        assert run.output_dir == f"runs/x/{name}" and run.sweep is run.learning_rates is None
    assert next(iter(runs)) == "sweep-batch_size-4-learning_rate-0.001"


def test_the_order_of_fields_does_not_change_a_folder():
    assert combination_name({"beta": 1.0, "epochs": 2.0}) == combination_name({"epochs": 2.0, "beta": 1.0})


def test_overwrite_knows_the_folders_of_a_sweep():
    for values in ({"learning_rate": 1e-3}, {"beta": 1.0, "epochs": 2.0}):
        assert is_run_file(f"{combination_name(values)}/model/config.json")


def test_learning_rates_is_a_short_form_and_keeps_its_folders():
    short = combinations(pretrain.PretrainRun, "--learning-rates", "1e-3,3e-3")
    assert short == combinations(pretrain.PretrainRun, "--sweep", "learning_rate=1e-3,3e-3")
    assert [*short] == ["rate-0.001", "rate-0.003"]


def test_names_of_other_tools_are_translated(capsys):
    assert parse_sweep("lr=1e-3,1e-2 lora_r=4,8", pretrain.PretrainRun) == {
        "learning_rate": [1e-3, 1e-2],
        "lora_rank": [4, 8],
    }
    assert "lr is learning_rate here." in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    (
        "sweep: learning_rate=1e-3,3e-3 beta=0.1,0.2",
        "sweep:\n  learning_rate: [1e-3, 3e-3]\n  beta: [0.1, 0.2]",
    ),
)
def test_a_sweep_in_a_config_file(text, tmp_path):
    (tmp_path / "sweep.yaml").write_text(text)
    runs = combinations(prefer.PreferRun, "--config", str(tmp_path / "sweep.yaml"))
    assert [*runs][-1] == "sweep-beta-0.2-learning_rate-0.003" and len(runs) == 4


def test_a_value_without_alternatives_in_a_config_file(tmp_path, capsys):
    (tmp_path / "sweep.yaml").write_text("sweep:\n  dropout: 0.1")
    fails(["--config", tmp_path / "sweep.yaml"], "dropout has one value", capsys)


def test_an_option_of_the_config_file_can_be_swept_on_the_command_line(tmp_path):
    (tmp_path / "run.yaml").write_text("learning_rate: 1e-4\nbatch_size: 2\n")
    runs = combinations(pretrain.PretrainRun, "--config", str(tmp_path / "run.yaml"), "--sweep", "batch_size=4,8")
    assert [(run.learning_rate, run.batch_size) for _, run in runs.values()] == [(1e-4, 4), (1e-4, 8)]


REFUSED = {
    "": r"--sweep is empty. Give field=value,value",
    "  ": "--sweep is empty",
    "1e-3,3e-3": r"--sweep must be field=value,value .* \(you gave '1e-3,3e-3'\)",
    "learning_rat=1,2": "--sweep: unknown field 'learning_rat'. Did you mean learning_rate",
    "warmup_ratio=0.1,0.2": "unknown field 'warmup_ratio'. Use --warmup-steps, which counts steps",
    "nonsense=1,2": "unknown field 'nonsense'. --help-all lists all",
    "hidden_size=64,128": "hidden_size belongs to the model's config.*--config-overrides hidden_size=VALUE",
    "n_layer=1,2": "n_layer belongs to the model's config",
    "preset=1,2": "preset is not a number",
    "pack=0,1": "pack is not a number",
    "schedule=1,2": "schedule is not a number",
    "dropout=0,2": r"--dropout must be at most 1 \(you gave 2.0\)",
    "batch_size=0,2": "--batch-size must be at least 1",
    "beta2=0.9,1": "--beta2 must be below 1",
    "dropout=0,x": r"the values of dropout must be numbers \(you gave 'x'\)",
    "dropout=0,": r"must be numbers \(you gave ''\)",
    "dropout=": r"must be numbers \(you gave ''\)",
    "dropout=0,nan": r"must be numbers \(you gave 'nan'\)",
    "batch_size=4,4.5": r"must be whole numbers \(you gave '4.5'\)",
    "dropout=0,0.1,0.0": "dropout has the value 0 twice",
    "dropout=0.1": "dropout has one value. Give two or more, or --dropout 0.1 by itself",
    "dropout=0,0.1 dropout=0.2,0.3": "names dropout twice",
    "lr=1,2 learning_rate=3,4": "names learning_rate twice",
    "max_steps=" + ",".join(map(str, range(1, 300))): "299 combinations, each a complete run. Give at most 256",
    "seed=1,2": "seed decides which rows are trained on and which are compared",
    "validation_fraction=0.1,0.2": "validation_fraction decides which rows",
    "eval_batches=1,2": "eval_batches decides which rows",
    "log_every=1,2": "log_every does not change what is learned",
    "workers=1,2": "workers does not change what is learned",
    "lora_rank=16,32": "--lora-rank only works with --tune lora",
    "stream_lanes=2,4": "--stream-lanes has no effect: it needs --streaming true",
}


@pytest.mark.parametrize("text", REFUSED)
def test_bad_sweeps_end_with_one_line_before_anything_is_written(text, tmp_path, capsys):
    (tmp_path / "story.txt").write_text("The sun shone.\n" * 99)
    words = ["--dataset", tmp_path / "story.txt", "--output-dir", tmp_path / "run", "--sweep", text]
    fails(words, REFUSED[text], capsys)
    assert not (tmp_path / "run").exists()


WITH_OTHERS = {
    "--dropout 0.1": "--dropout has no effect: it is swept. Remove it",
    "--learning-rates 1,2": "--learning-rates 1,2 is a short form of --sweep, and --sweep is given too",
    "--resume training": "a checkpoint of one combination",
    "--validation-fraction 0": "compared by validation loss",
    "--plan true": "--plan estimates one run: remove --sweep",
    "--push-to-hub me/it": "A sweep has one seed, and none of its runs is published",
}


@pytest.mark.parametrize("words", WITH_OTHERS)
def test_options_that_a_sweep_cannot_have(words, tmp_path, capsys):
    given = ["--output-dir", tmp_path / "run", "--sweep", "dropout=0,0.1", *words.split()]
    fails(given, WITH_OTHERS[words], capsys)
    assert not (tmp_path / "run").exists()


def test_fields_of_a_recipe_that_make_losses_incomparable(tmp_path, capsys):
    words = ["--model", tmp_path, "--output-dir", tmp_path / "run", "--sweep"]
    for module in (instruct, prefer):
        fails([*words, "max_length=32,64"], "max_length decides which rows", capsys, module.main)
    fails([*words, "seeds=2,3"], "seeds decides which rows", capsys, classify.main)
    fails([*words, "simpo_gamma=1,2"], "--simpo-gamma has no effect: it needs --loss-type simpo", capsys, prefer.main)
    fails([*words, "beta=0,1"], "--beta must be above 0", capsys, prefer.main)
    fails([*words, "answers=1,2"], "answers does not change what is learned", capsys, instruct.main)
