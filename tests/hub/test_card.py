"""Test the card: text and metadata agree, no value becomes markup, and hand edits are kept."""

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
from card_run import FACTS, MANIFESTS, card_of, write_run
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from places import REPO

from scratch_gpt.hub.card import FRONT, HOLE, REGION, merge_cards, template
from scratch_gpt.hub.card_values import LAYOUTS
from scratch_gpt.hub.loading_snippet import load_code
from scratch_gpt.modeling.configuration_scratch_gpt import OLDEST_TRANSFORMERS
from scratch_gpt.runs.record import read_record, results


# --- Placeholders ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", MANIFESTS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_filled_card_has_no_placeholders_and_parses(task, layout, runs):
    card = card_of(runs[task], layout)
    body = card.replace("\\[x\\](y) \\| {{title}}", "")  # text written by the model
    assert not HOLE.search(body) and "None" not in body and "More Information" not in body
    assert not re.search(r"^#+ .*\n+(#|<!-- \S+ -->\n\n<!--)", body, flags=re.MULTILINE)  # a heading without text
    parsed = ModelCard(card).data
    assert parsed.library_name == ("peft" if layout == "adapter" else "transformers")
    assert parsed.pipeline_tag == ("text-classification" if task == "classify" else "text-generation")


def test_a_section_without_facts_is_omitted(tmp_path):
    run = write_run(tmp_path / "run")
    for name in ("evaluation.json", "manifest.json", "metrics.jsonl"):
        (run / name).unlink()
    card = card_of(run, "gpt2")
    assert "model-index" not in card
    headings = re.findall(r"^## (.*)", card, flags=re.MULTILINE)
    assert headings == ["Load it", "Training", "What it must not be used for", "Versions"]
    assert len(REGION.findall(card)) == len(REGION.findall(template()))  # their regions remain


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
    """Return the tags and link schemes of a page made from Markdown by two renderers."""
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


# --- Consistent values -------------------------------------------------------------------------------------------


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


# --- Hand edits --------------------------------------------------------------------------------------------------


def test_merging_cards_updates_regions_and_keeps_other_text(runs):
    old, new = card_of(runs["pretrain"]), card_of(runs["pretrain"], license="mit")
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
    card = card_of(runs["pretrain"], license="mit")
    other = card.replace("library_name:", "base_model: a/b\nbase_model_relation: adapter\nlibrary_name:", 1)
    new = card_of(runs["pretrain"])
    found = yaml.safe_load(merge_cards(other, new).split("---\n")[1])
    assert "base_model" not in found and "base_model_relation" not in found and found["license"] == "mit"


def test_merging_restores_metadata_missing_from_a_card(runs):
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
    with_license = merge_cards(old, card_of(runs["pretrain"], license="apache-2.0"))
    assert "license: apache-2.0\n" in with_license and "version: 1.10\n" in with_license
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


# --- The record --------------------------------------------------------------------------------------------------


def test_the_wheel_contains_the_template_of_the_card(tmp_path):
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
