"""The card: every hole has a source, text and metadata are one, what no file knows is not printed, hand edits stay."""

import json
import re
import subprocess
import sys
import zipfile
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import markdown
import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from places import REPO

from scratch_gpt.hub.card import FRONT, HOLE, REGION, fill, merge_cards, template
from scratch_gpt.hub.card_values import LAYOUTS, PICTURES, card_values
from scratch_gpt.hub.licenses import check_license
from scratch_gpt.hub.loading_snippet import load_code
from scratch_gpt.modeling.configuration_scratch_gpt import OLDEST_TRANSFORMERS
from scratch_gpt.runs.record import base_model, read_record, results


COMMIT = "0123456789abcdef0123456789abcdef01234567"
FACTS = {
    "steps": 20,
    "schedule": {"peak": 1e-3, "floor": 1e-4, "warmup_steps": 2},
    "parameters": 1234,
    "device": "cpu",
}
FACTS |= {"trained_parameters": 1234, "precision": "no", "threads": 2, "processes": 1, "versions": {"torch": "2.13.0"}}
SHAPE = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "max_position_embeddings": 64}
SPREAD = {"mean": 0.912345678, "std": 0.01234567, "n": 5}
MANIFESTS = {
    "pretrain": {"dataset": "notes", "files": [{"name": "a.md", "bytes": 1200, "sha256": "ab" * 32}]},
    "classify": {"dataset": "ada/mails", "revision": COMMIT, "files": [{"name": "train.parquet"}]},
    "instruct": {"dataset": "lab/tasks", "revision": COMMIT, "files": [{"name": "train.json"}]},
}


def write_run(folder: Path, task: str = "pretrain", **changes) -> Path:
    """The record of a run, by hand: what the recipes write, but the weights."""
    head = "SequenceClassification" if task == "classify" else "CausalLM"
    config = {"architectures": [f"ScratchGPTFor{head}"], "vocab_size": 99, **SHAPE}
    if task == "classify":
        config["id2label"] = {"0": "ham", "1": "spam"}
    metrics = (
        {"loss": 2.123456789, "perplexity": 8.36} if task != "classify" else {"accuracy": SPREAD, "macro_f1": 0.9}
    )
    tables = {"labels": ["ham", "spam"], **{name: {"ham": 0.9, "spam": 1.0} for name in ("precision", "recall", "f1")}}
    files = {
        "model/config.json": config,
        "manifest.json": {
            "task": task,
            "max_length": 64,
            "sources": [MANIFESTS[task]],
            "filters": {},
            "mixture": None,
            "splits": {"train": {"documents": 9, "rows": 9, "tokens": 900, "bytes": 3000, "sha256": "cd" * 32}},
        },
        "evaluation.json": {
            "protocol": {"step": 20, "chosen_by": "last step", "eval_batches": None},
            "results": {"before/test": {"loss": 4.6}, "test": metrics},
            "tables": {"test": tables} if task == "classify" else {},
        },
    }
    run = {"output_dir": "runs/x", "model": None, "seed": 0, "batch_size": 8, "accumulation_steps": 1, "tune": "full"}
    run |= {"sample_prompt": "The", **changes}
    (folder / "model").mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    if task == "instruct":
        (folder / "model" / "chat_template.jinja").write_text("{{ messages }}")
    notes = "".join(f"# {line}\n" for line in yaml.safe_dump(FACTS, sort_keys=False).splitlines())
    (folder / "run.yaml").write_text(yaml.safe_dump(run) + "\n" + notes)
    lines = [{"step": 10 * n, "tokens": 640 * n, "loss": 3.0, "epoch": 0.1, "tokens_per_second": 1e3} for n in (1, 2)]
    lines += [{"step": 20, "tokens": 1280, "eval_loss": 2.1, "sample": "The <b>sea</b> [x](y) | {{title}}"}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def card_of(folder: Path, layout: str = "scratch_gpt", **how) -> str:
    values = card_values(read_record(folder), repo="ada/x", layout=layout, pictures=["loss.png"], **how)
    return fill(template(), values)


@pytest.fixture
def runs(tmp_path) -> dict[str, Path]:
    models = {"pretrain": None, "classify": "openai-community/gpt2", "instruct": "openai-community/gpt2"}
    return {task: write_run(tmp_path / task, task, model=model) for task, model in models.items()}


# --- Holes -------------------------------------------------------------------------------------------------------


def test_card_holes_and_documented_sources_match(runs):
    holes = HOLE.findall(template())
    listed = re.findall(r"^\| `(\w+)` \|", (REPO / "hub_card" / "fields.md").read_text(), flags=re.MULTILINE)
    values = card_values(read_record(runs["pretrain"]), repo="ada/x", layout="gpt2")
    assert len(holes) == len(set(holes)) and len(listed) == len(set(listed))
    assert set(holes) == set(listed) == set(values)
    assert {f"{name}_picture" for name in PICTURES} <= set(holes)


@pytest.mark.parametrize("task", MANIFESTS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_filled_card_has_no_holes_left_and_parses(task, layout, runs):
    card = card_of(runs[task], layout)
    body = card.replace("\\[x\\](y) \\| {{title}}", "")  # what the model has written
    assert not HOLE.search(body) and "None" not in body and "More Information" not in body
    assert not re.search(r"^#+ .*\n+(#|<!-- \S+ -->\n\n<!--)", body, flags=re.MULTILINE)  # a heading without a text
    parsed = ModelCard(card).data
    assert parsed.library_name == ("peft" if layout == "adapter" else "transformers")
    assert parsed.pipeline_tag == ("text-classification" if task == "classify" else "text-generation")


def test_a_section_without_facts_is_left_out(tmp_path):
    run = write_run(tmp_path / "run")
    for name in ("evaluation.json", "manifest.json", "metrics.jsonl"):
        (run / name).unlink()
    card = card_of(run, "gpt2")
    assert "model-index" not in card
    headings = re.findall(r"^## (.*)", card, flags=re.MULTILINE)
    assert headings == ["Load it", "Training", "What it must not be used for", "Versions"]
    assert len(REGION.findall(card)) == len(REGION.findall(template()))  # their places remain


def test_a_streams_card_counts_no_epochs_and_says_what_was_evaluated(tmp_path):
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
    assert "at most 20 batches of each process, taken from all over the split; of the test split on all" in card


def test_text_written_by_a_model_cannot_become_markup(runs):
    text = card_of(runs["pretrain"])
    assert "&lt;b&gt;sea&lt;/b&gt; \\[x\\]" in text and "{{title}}" in text


HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "[click](javascript:alert(1))",
    "![x](https://example.org/x.png)",
    "# A heading",
    "a\n\n## Another\n\ntext",
    "a\r\n---\r\n",
    "---",
    "| a | b |\n|---|---|",
    "```\n</code>",
    "`code` **bold** _it_ ~~no~~ $x$",
    "<!-- scratch_gpt:end about -->",
    "<!-- scratch_gpt:begin load -->\nmine\n<!-- scratch_gpt:end load -->",
    "<javascript:alert(1)>",
    "&lt;b&gt; \\<b>",
    "- one\n- two",
    "1. one",
    "> quoted",
    "\x1b]0;title\x07\x00",
    "<script>",
    "[x]: javascript:alert(1)",
]


def hostile_run(folder: Path, text: str) -> Path:
    run = write_run(folder, "classify", model=text, sample_prompt=text, optimizer=text, prompt_format=text)
    change = lambda name, **fields: (run / name).write_text(  # noqa: E731
        json.dumps({**json.loads((run / name).read_text()), **fields})
    )
    change("model/config.json", id2label={"0": text, "1": "spam"})
    source = {"dataset": text, "config": text, "revision": text, "files": [{"name": text, "bytes": 1, "sha256": text}]}
    splits = {text: {"documents": 1, "rows": 1, "sha256": text}}
    filters, mixture = {text: {"in": 2, "removed": 1}}, {"actual": {text: 1.0}}
    hub = {"dataset": text, "revision": text, "files": [{"name": text}]}
    change("manifest.json", sources=[source, hub], splits=splits, filters=filters, mixture=mixture)
    table = {"labels": [text], **{name: {text: 0.5} for name in ("precision", "recall", "f1")}}
    protocol = {"step": 20, "chosen_by": text}
    change("evaluation.json", tables={"test": table}, protocol=protocol, results={text: {text: 1.0}})
    facts = {**FACTS, "hardware": text, "precision": text, "versions": {text: text}}
    notes = "".join(f"# {line}\n" for line in yaml.safe_dump(facts, sort_keys=False).splitlines())
    settings = yaml.safe_load((run / "run.yaml").read_text())
    (run / "run.yaml").write_text(yaml.safe_dump(settings) + "\n" + notes)
    (run / "metrics.jsonl").write_text(
        json.dumps({"step": 1, "tokens": 9, "loss": 1.0, "tokens_per_second": 1.0}) + "\n"
    )
    return run


@pytest.mark.parametrize("text", HOSTILE)
def test_no_value_of_a_run_becomes_markup(text, tmp_path):
    run, plain = hostile_run(tmp_path / "run", text), hostile_run(tmp_path / "plain", "a text")
    how = {"base": (text, text), "revision": text}
    card, same = card_of(run, "gpt2", **how), card_of(plain, "gpt2", base=("a text", "a text"), revision="a text")
    assert [name for name, _ in REGION.findall(card)] == [name for name, _ in REGION.findall(template())]
    assert card.count("<!-- scratch_gpt:") == template().count("<!-- scratch_gpt:")
    assert yaml.safe_load(FRONT.match(card)[1])["model-index"][0]["results"][0]["dataset"]["type"] == text
    assert merge_cards(card, card) == card
    body = FRONT.sub("", card)
    assert all(c.isprintable() or c == "\n" for c in body)
    for code in re.findall(r"```python\n(.*?)\n```\n", body, re.DOTALL):
        compile(code, "card", "exec")
    kinds, expected = (Counter(tags(FRONT.sub("", each))) for each in (card, same))
    assert kinds == expected


def tags(text: str) -> list[str]:
    """What a page of this Markdown is made of, as two renderers see it: tags, and the scheme of each link."""
    pages = [MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(text)]
    pages += [markdown.markdown(text, extensions=["tables", "fenced_code", "md_in_html"])]
    found: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attributes):
            where = dict(attributes).get("href") or ""
            found.extend([tag, *([where.split(":")[0]] if where and not where.startswith("https:") else [])])
            assert all(name in ("href", "src", "alt", "class", "style") for name, _ in attributes), attributes

    for page in pages:
        Reader().feed(page)
    return found


# --- One value ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", MANIFESTS)
def test_card_text_and_metadata_agree(task, runs):
    card, record = card_of(runs[task]), read_record(runs[task])
    rows = re.findall(r"^\| (test) \| ([\w ]+) \|(?: [\d.]* \|)? ([^|]+) \|$", card, flags=re.MULTILINE)
    index = yaml.safe_load(card.split("---\n")[1])["model-index"]
    metrics = [(each["dataset"]["split"], each["metrics"]) for each in index[0]["results"]]
    told = [(split, metric["name"], str(metric["value"])) for split, of_split in metrics for metric in of_split]
    assert rows == told and len(told) == len(results(record)) == 2
    if task == "classify":
        assert ("test", "accuracy", "0.91235 \u00b1 0.012346") in told
        assert {metric["type"] for _, of_split in metrics for metric in of_split} == {"accuracy", "f1"}


def test_base_and_datasets_are_links_in_both(runs):
    card = card_of(runs["classify"], licence="mit")
    found = yaml.safe_load(card.split("---\n")[1])
    assert (found["base_model"], found["datasets"], found["license"]) == (
        "openai-community/gpt2",
        ["ada/mails"],
        "mit",
    )
    for link in ("huggingface.co/openai-community/gpt2)", "huggingface.co/datasets/ada/mails)", "Weights: mit."):
        assert link in card
    alone = card_of(runs["pretrain"])
    assert "base_model" not in alone and "datasets/" not in alone  # a folder of files is no dataset of the Hub


def test_cards_share_the_sections_that_do_not_depend_on_the_task(runs):
    cards = {task: dict(REGION.findall(card_of(run, "gpt2"))) for task, run in runs.items()}
    for name in ("training", "hardware", "energy", "licence", "versions", "inside"):
        assert len({cards[task][name] for task in ("classify", "instruct")}) == 1, name
    code = {task: load_code(read_record(run), "ada/x", "gpt2") for task, run in runs.items()}
    assert "pipeline" in code["classify"] and "chat_template" in code["instruct"] and "generate" in code["pretrain"]
    for layout, trusted in (("scratch_gpt", 1), ("gpt2", 0)):
        assert all(
            ("trust_remote_code" in load_code(read_record(run), "a/b", layout)) == trusted for run in runs.values()
        )


def test_the_card_names_the_versions_it_needs_and_how_the_stock_layout_is_read_as_our_class(runs):
    ours = 'scratch_gpt.ScratchGPTFor{}.from_pretrained("ada/x", revision="draft")'
    needs = {"scratch_gpt": f"Needs transformers {OLDEST_TRANSFORMERS} or newer."}
    needs |= {"gpt2": "Needs transformers 5 or newer.", "adapter": "Needs peft and transformers 5 or newer."}
    for task, run in runs.items():
        for layout, line in needs.items():
            load = dict(REGION.findall(card_of(run, layout, revision="draft")))["load"]
            assert load.startswith(f"## Load it\n\n{line}\n\n```python\nfrom ")
            head = "SequenceClassification" if task == "classify" else "CausalLM"
            assert (f"import scratch_gpt\n\nmodel = {ours.format(head)}" in load) == (layout == "gpt2")
    trusting = card_of(runs["pretrain"], "adapter", base=("ada/base", None), base_needs_trust=True)
    assert f"Needs peft and transformers {OLDEST_TRANSFORMERS} or newer." in trusting


def test_the_code_asks_with_the_runs_own_prompt(tmp_path):
    run = write_run(tmp_path / "run", sample_prompt='Say "hi" \U0001f600\n')
    code = load_code(read_record(run), "ada/x", "gpt2")
    line = next(line for line in code.splitlines() if line.startswith("ids = "))
    assert eval(line.removeprefix("ids = "), {"tokenizer": lambda prompt, **_: prompt}) == 'Say "hi" \U0001f600\n'


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


def test_a_base_of_the_hub_is_named_and_a_folder_only_where_its_weights_prove_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nested" / "model").mkdir(parents=True)
    hub = {"repo": "ada/base", "commit": COMMIT, "layout": "gpt2", "fingerprint": "ab"}
    (tmp_path / "nested" / "hub.json").write_text(json.dumps(hub))
    for name, base, expected in (
        ("openai-community/gpt2", None, ("openai-community/gpt2", None)),
        ("elsewhere/model", None, None),
        ("nested/model", None, ("ada/base", COMMIT)),
        ("nested/model", {"folder": None, "fingerprint": "x"}, ("nested/model", None)),
        ("nested/model", {"folder": "nested/model", "fingerprint": "ab"}, ("ada/base", COMMIT)),
        ("nested/model", {"folder": "nested/model", "fingerprint": "cd"}, None),
        ("gone/gpt2", {"folder": "gone/gpt2", "fingerprint": "ab"}, None),
    ):
        record = read_record(write_run(tmp_path / f"{name}-{base}".replace("/", "-"), model=name))
        record = record._replace(facts={**record.facts, **({"base": base} if base else {})})
        assert base_model(record) == expected, (name, base)


# --- Hand edits --------------------------------------------------------------------------------------------------


def test_merging_cards_updates_regions_and_keeps_other_text(runs):
    old, new = card_of(runs["pretrain"]), card_of(runs["pretrain"], licence="mit")
    assert merge_cards(old, old) == old and merge_cards(new, new) == new
    by_hand = old.replace("# x\n", "# The sea\n\nWritten at night.\n").replace(
        "library_name:", "language: en\nlibrary_name:"
    )
    by_hand = by_hand.replace("## Versions\n", "## Versions, and more\n").replace(
        "- scratch-gpt\n", "- scratch-gpt\n- sea\n"
    )
    limits = next(found[0] for found in REGION.finditer(by_hand) if found[1] == "limits")
    by_hand = by_hand.replace(limits, "My own words on limits.")
    merged = merge_cards(by_hand, new)
    assert "# The sea\n\nWritten at night.\n" in merged and "My own words on limits." in merged
    assert "What it must not" not in merged and "Versions, and more" not in merged and "Weights: mit." in merged
    found = ModelCard(merged).data
    assert (found.language, found.license, found.tags) == ("en", "mit", ["scratch-gpt", "sea"])
    assert merge_cards(merged, new) == merged


def test_merging_removes_metadata_without_a_new_value_except_the_license(runs):
    card = card_of(runs["pretrain"], licence="mit")
    other = card.replace("library_name:", "base_model: a/b\nbase_model_relation: adapter\nlibrary_name:", 1)
    new = card_of(runs["pretrain"])
    found = yaml.safe_load(merge_cards(other, new).split("---\n")[1])
    assert "base_model" not in found and "base_model_relation" not in found and found["license"] == "mit"


def test_merging_restores_metadata_that_a_card_has_lost(runs):
    card = card_of(runs["pretrain"])
    bare = card.split("---\n", 2)[2]
    assert ModelCard(merge_cards(bare, card)).data.to_dict() == ModelCard(card).data.to_dict()
    with pytest.raises(ValueError, match="not YAML"):
        merge_cards(card.replace("library_name: transformers", "a: b: c"), card)


OF_USERS = """\

---
# My own card.
language: no   # Norwegian
version: 1.10
license: mit
tags: poems
widget:
- text: "Yes:"   # the first
  example_title: 'on'

# The end of mine.
base_model: a/b
thumbnail: 0x1F
---
"""


def test_a_users_own_metadata_keep_their_bytes(runs):
    new = card_of(runs["pretrain"])
    body = new.split("---\n", 2)[2]
    old = OF_USERS + body
    merged = merge_cards(old, new)
    front = merged[: merged.index("---\n", 6)]
    for line in OF_USERS.splitlines(keepends=True):
        assert line in ("base_model: a/b\n", "tags: poems\n") or line in front, line
    assert "tags:\n- poems\n- scratch-gpt\n" in front and "base_model" not in front and "model-index" in front
    assert merge_cards(merged, new) == merged and merged.startswith("\n---\n# My own card.\n")
    assert yaml.safe_load(front.split("---\n")[1])["license"] == "mit"
    with_licence = merge_cards(old, card_of(runs["pretrain"], licence="apache-2.0"))
    assert "license: apache-2.0\n" in with_licence and "version: 1.10\n" in with_licence
    crlf = old.replace("\n", "\r\n")
    assert "language: no   # Norwegian\r\nversion: 1.10\r\n" in merge_cards(crlf, new)
    assert len(REGION.findall(merge_cards(crlf, new))) == len(REGION.findall(new))


@pytest.mark.parametrize(
    ("tags", "after"),
    [
        ("tags: [a, 1.10]  # two\n", "tags:\n- a\n- 1.10\n- scratch-gpt\n"),
        ("tags:\n  - a  # one\n  - no\n", "tags:\n  - a  # one\n  - no\n  - scratch-gpt\n"),
        ("tags:\n- a\n# last\n", "tags:\n- a\n- scratch-gpt\n# last\n"),
        ("tags:\n", "tags:\n- scratch-gpt\n"),
        ("tags: [scratch-gpt, x]\n", "tags: [scratch-gpt, x]\n"),
    ],
)
def test_tags_of_any_form_are_kept_and_ours_are_added(tags, after, runs):
    new = card_of(runs["pretrain"])
    merged = merge_cards(f"---\n{tags}---\n" + new.split("---\n", 2)[2], new)
    assert merged.startswith(f"---\n{after}library_name: transformers\n") and merge_cards(merged, new) == merged


def test_a_license_is_of_the_hubs_list_or_has_a_name_and_a_link(runs):
    check_license(None), check_license("apache-2.0"), check_license("other", "my-license-1.0", "LICENSE")
    for given, message in (
        (("MIT",), r"licence is 'MIT', .*did you mean mit"),
        (("<b>",), "not an identifier of the Hub's list"),
        (("mit", "x", None), "leave them out"),
        ((None, "x", "LICENSE"), "not an identifier"),
        (("other",), "licence_name is None"),
        (("other", "My License", "LICENSE"), "licence_name is 'My License'"),
        (("other", "mine", "javascript:alert(1)"), "licence_link is 'javascript"),
        (("other", "mine", None), "licence_link is None"),
    ):
        with pytest.raises(ValueError, match=message):
            check_license(*given)
    terms = {"licence": "other", "licence_name": "mine-1.0", "licence_link": "https://example.org/mine"}
    card = card_of(runs["pretrain"], **terms)
    found = ModelCard(card).data
    assert (found.license, found.license_name, found.license_link) == ("other", "mine-1.0", "https://example.org/mine")
    assert "Weights: mine-1.0, https://example.org/mine." in card
    other = merge_cards(card, card_of(runs["pretrain"], licence="mit"))
    assert "license: mit\n" in other and "license_name" not in other and "license_link" not in other
    assert "license_name: mine-1.0\n" in merge_cards(card, card_of(runs["pretrain"]))


# --- The record --------------------------------------------------------------------------------------------------


def test_several_seeds_give_mean_results_and_the_first_seeds_details(tmp_path):
    run = write_run(tmp_path / "run", "classify")
    write_run(run / "seed-0", "classify")
    (run / "run.yaml").write_text("seed: 0\nseeds: 2\n\n# runs:\n# - seed-0\n# - seed-1\n")
    for name in ("manifest.json", "metrics.jsonl"):
        (run / name).unlink()
    record = read_record(run)
    assert record.folder == run / "seed-0" and record.facts["steps"] == 20 and record.metrics
    assert [str(result) for result in results(record)] == ["0.91235 \u00b1 0.012346", "0.9"]


def test_a_folder_that_is_not_a_run_has_no_card(tmp_path):
    with pytest.raises(ValueError, match="no run folder"):
        read_record(tmp_path)
    run = write_run(tmp_path / "run")
    with pytest.raises(ValueError, match="give the folder around it"):
        read_record(run / "model")
    (run / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match=r"manifest\.json cannot be read"):
        read_record(run)
    (run / "model" / "config.json").unlink()
    with pytest.raises(ValueError, match="no model yet"):
        read_record(run)


def test_the_template_travels_with_the_package(tmp_path):
    code = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "scratch_gpt", "training", "hub_card"):
        (tree / name).symlink_to(REPO / name)
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], cwd=tree, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    names = set(zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist())
    package = {path.relative_to(REPO).as_posix() for path in (REPO / "scratch_gpt").rglob("*.py")}
    assert {*package, "scratch_gpt/hub_card/template.md", "scratch_gpt/hub_card/fields.md"} <= names
