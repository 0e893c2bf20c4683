"""Test the values of a card: each placeholder has a value from the record."""

import json
import re

import yaml
from card_run import card_of, write_run
from huggingface_hub import ModelCard
from places import REPO

from scratch_gpt.hub.card import HOLE, merge_cards, template
from scratch_gpt.hub.card_values import PICTURES, card_values
from scratch_gpt.runs.record import read_record


def test_card_placeholders_and_documented_sources_match(runs):
    holes = HOLE.findall(template())
    listed = re.findall(r"^\| `(\w+)` \|", (REPO / "hub_card" / "fields.md").read_text(), flags=re.MULTILINE)
    values = card_values(read_record(runs["pretrain"]), repo="ada/x", layout="gpt2")
    assert len(holes) == len(set(holes)) and len(listed) == len(set(listed))
    assert set(holes) == set(listed) == set(values)
    assert {f"{name}_picture" for name in PICTURES} <= set(holes)


def test_the_card_of_a_stream_has_no_epochs_and_names_the_evaluated_text(tmp_path):
    folder = write_run(tmp_path, "pretrain")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("epoch", None)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    evaluation = json.loads((folder / "evaluation.json").read_text())
    evaluation["protocol"]["eval_batches"] = 20
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    card = card_of(folder)
    assert "1,280 tokens with AdamW" in card and "epochs" not in card
    assert "at most 20 batches per process, evenly spaced over the split; the test split is used completely" in card


def test_base_and_datasets_are_links_in_both(runs):
    card = card_of(runs["classify"], license="mit")
    found = yaml.safe_load(card.split("---\n")[1])
    assert (found["base_model"], found["datasets"], found["license"]) == (
        "openai-community/gpt2",
        ["ada/mails"],
        "mit",
    )
    for link in ("huggingface.co/openai-community/gpt2)", "huggingface.co/datasets/ada/mails)", "Weights: mit."):
        assert link in card
    alone = card_of(runs["pretrain"])
    assert "base_model" not in alone and "datasets/" not in alone  # a folder of files is not a dataset on the Hub


def test_the_library_that_encoded_the_text_is_not_a_hyperparameter(tmp_path):
    card = card_of(write_run(tmp_path, encoder="auto", beta2=0.97))
    assert "beta2" in card and "encoder" not in card


def test_the_card_names_the_languages_of_the_run(tmp_path):
    for n, (codes, stated) in enumerate(((["hi"], "hi"), (["no", "en"], ["no", "en"]))):
        folder = write_run(tmp_path / str(n), facts={"languages": codes})
        card = card_of(folder)
        assert ModelCard(card).data.language == stated
        assert ModelCard(merge_cards(card_of(write_run(tmp_path / f"{n}-none")), card)).data.language == stated
        assert ModelCard(merge_cards(card, card_of(tmp_path / f"{n}-none"))).data.language == stated  # kept
    assert "language:" not in card_of(tmp_path / "0-none")


def test_the_card_gives_energy_if_it_was_measured(tmp_path):
    run = write_run(tmp_path / "run")
    assert "## Energy" not in card_of(run)
    row = {"run_id": "1", "duration": "3600", "emissions": "0.00023", "energy_consumed": "0.01"}
    row |= {"cpu_energy": "0.008", "ram_energy": "0.002", "gpu_energy": "0", "country_name": "France"}
    row |= {"codecarbon_version": "3.3.2", "cpu_power_is": "estimated from its model and load"}
    rows = [{**row, "energy_consumed": "0.001"}, row, {**row, "run_id": "2", "emissions": "0.001"}]  # two launches
    lines = [",".join(row), *(",".join(each.values()) for each in rows)]
    (run / "emissions.csv").write_text("\n".join(lines) + "\n")
    card = card_of(run)
    assert "0.02 kWh, 1.23 g CO2 equivalent with the electricity of France" in card
    assert "120.0 minutes (CPU 8 W, estimated from its model and load; memory 2 W, estimated from its size)" in card
    assert yaml.safe_load(card.split("---\n")[1])["co2_eq_emissions"] == {"emissions": 1.23, "source": "codecarbon"}
