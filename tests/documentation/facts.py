"""Write facts of the code and its tests as Markdown: verbs, options, presets, rooms, versions, servers, faults."""

import dataclasses
import importlib
import json
from typing import Any, Literal, get_args, get_origin

from markup import table
from places import TESTS
from rooms import rooms_table
from targets import figures

from scratch_gpt_training.support.command_line import flag
from scratch_gpt_training.support.commands import VERBS
from scratch_gpt_training.support.help import group_fields
from scratch_gpt_training.support.options import Run
from scratch_gpt_training.support.words import HINTS, SYNONYMS


PAGES = {  # the page of each verb in training/docs
    "tokenizer": "tokenizers",
    "prepare": "prepare",
    "pretrain": "pretrain",
    "classify": "classify",
    "instruct": "instruct",
    "prefer": "prefer",
    "evaluate": "evaluate",
    "generate": "generate",
    "chat": "generate",
    "publish": "publish",
}


def read(path: str) -> Any:
    """Return the content of a JSON file below tests/."""
    return json.loads((TESTS / path).read_text(encoding="utf-8"))


def verbs() -> str:
    """List the verbs of the command, each with its page."""
    rows = [
        f"| [`{name}`](training/docs/{PAGES[name]}.md) | {verb.summary} | `training/{verb.module}.py` |"
        for name, verb in VERBS.items()
    ]
    rows.append(
        "| [`look-inside`](hub_card/README.md#inspect-a-model) | Open a page that shows a model's tokens, attention "
        "and predictions. | `hub_card/space/app.py` |"
    )
    return table("| `scratch-gpt ...` | does | in a clone |", rows)


def options_of(verb: str) -> str:
    """List the options of a verb in the groups of --help; of a training recipe only those that it adds or changes."""
    module = importlib.import_module(f"scratch_gpt_training.{VERBS[verb].module}")
    (kind,) = (
        item
        for item in vars(module).values()
        if isinstance(item, type) and item.__module__ == module.__name__ and item.__name__.endswith("Run")
    )
    shared = {item.name: item for item in dataclasses.fields(Run)} if issubclass(kind, Run) else {}
    rows = []
    for title, names in group_fields(kind).items():
        items = [item for item in dataclasses.fields(kind) if item.name in names]
        if verb != "pretrain":
            items = [item for item in items if item.name not in shared or is_changed(item, shared[item.name])]
        if items:
            rows += [f"| **{title}** | | |", *map(option_row, items)]
    return table("| option | default | meaning |", rows)


def is_changed(item: dataclasses.Field, shared: dataclasses.Field) -> bool:
    """Tell whether a recipe gives a shared option another default or meaning."""
    return (item.default, item.metadata["help"]) != (shared.default, shared.metadata["help"])


def option_row(item: dataclasses.Field) -> str:
    """Return the row of an option."""
    default = item.default
    shown = "" if default is None else f"`{str(default).lower() if isinstance(default, bool) else default}`"
    choices = get_args(item.type) if get_origin(item.type) is Literal else ()
    names = f" ({', '.join(f'`{choice}`' for choice in choices)})" if choices else ""
    text = item.metadata["help"].replace("|", "\\|")
    return f"| `{flag(item.name)}` | {shown} | {text}{names} |"


def presets() -> str:
    """List the presets with their shapes and numbers of parameters."""
    from scratch_gpt import ScratchGPTConfig
    from scratch_gpt.train.costs import all_parameters

    vocabularies = {"tiny": 4096, "small": 4096, "shakespeare-char": 69}
    configs = {
        name: ScratchGPTConfig.from_preset(name, vocab_size=vocabularies.get(name, 50257))
        for name in ScratchGPTConfig.presets
    }
    rows = []
    for name, config in sorted(configs.items(), key=lambda item: all_parameters(item[1])):
        shape = (config.num_hidden_layers, config.hidden_size, config.num_attention_heads)
        cells = [*map(str, shape), f"{config.max_position_embeddings}", f"{config.vocab_size:,}"]
        rows.append(f"| `{name}` | {' | '.join(cells)} | {all_parameters(config):,} |")
    return table("| preset | layers | width | heads | context | vocabulary | parameters |", rows)


def rooms() -> str:
    """List the rooms of the package and their imports."""
    return rooms_table()


def compatibility() -> str:
    """List the versions of transformers that `make compatibility` has tried."""
    found = read("compatibility/compatibility.json")
    rows = [
        f"| {row['transformers']}{' (the newest)' if row['asked'] == 'newest' else ''} | {row['huggingface_hub']} "
        f"| {row['tokenizers']} | {row['checks'] - len(row['failed'])} of {row['checks']} |"
        for row in found["versions"]
    ]
    torch = ", ".join({row["torch"] for row in found["versions"]})
    head = "| transformers | huggingface_hub | tokenizers | checks passed |"
    return f"{table(head, rows)}\n\nMeasured on {found['date']} with torch {torch}."


def servers() -> str:
    """List the results of `make servers`, by server and layout."""
    found = read("servers/servers.json")
    rows = [
        f"| {row['server']} | `{row['layout']}` | {seen_with(row)} | {server_result(row)} |"
        for row in found["servers"]
    ]
    return f"{table('| server | layout | tested with | result |', rows)}\n\nMeasured on {found['date']}."


def seen_with(row: dict[str, Any]) -> str:
    """Return the packages and versions of a server's row."""
    package = f"{row['package']} {row['version']}" if row["version"] else row["package"]
    is_other = row["transformers"] and row["package"] != "transformers"
    return package + (f", transformers {row['transformers']}" if is_other else "")


def server_result(row: dict[str, Any]) -> str:
    """Return the result of a server's row, or why it was not run."""
    return row["result"] if "result" in row else f"not run: {row['skipped']}"


def works_with() -> str:
    """List the versions and servers that published models were tried with."""
    versions = read("compatibility/compatibility.json")["versions"]
    passed = sum(row["checks"] - len(row["failed"]) for row in versions)
    tried = sum(row["checks"] for row in versions)
    names = ", ".join(row["transformers"] for row in versions)
    rows = [f"| transformers {names} | {passed} of {tried} checks passed |"]
    for row in read("servers/servers.json")["servers"]:
        if "result" in row and row["layout"] != "own":
            rows.append(f"| {row['server']}, {row['layout']} layout | {server_result(row)} ({seen_with(row)}) |")
    return table("| client | result |", rows)


def chaos() -> str:
    """List the results of `make chaos`, by kind of fault."""
    found = figures("chaos").values()
    keys = ("tried", "recovered", "refused", "lost")
    rows = [f"| {row['fault']} | {' | '.join(f'{row[key]:,}' for key in keys)} |" for row in found]
    total = " | ".join(f"{sum(row[key] for row in found):,}" for key in keys)
    return table("| fault | tried | recovered | refused | lost |", [*rows, f"| {len(found)} kinds | {total} |"])


def promises() -> str:
    """List promises, their measurements, and where these are documented."""
    faults = figures("chaos")
    kills = [row for row in faults.values() if "SIGKILL" in row["fault"]]
    versions = read("compatibility/compatibility.json")["versions"]
    checks = {row["checks"] - len(row["failed"]) for row in versions}
    quality, loss = figures("quality"), figures("loss")["figures"]
    steps = figures("training")["workloads"]["middle"]["rows"]
    seconds = [
        steps[name]["step_seconds"]["median"] for name in ("transformers, Trainer's default", "ours, out of the box")
    ]
    head = loss["head, 4x1024, fp32"]
    decoding = figures("decoding")["ratios"]["1x32+128"]["as both come"]
    publish = figures("publish")
    tried = sum(row["tried"] for row in faults.values())
    kept = f"{sum(row['recovered'] for row in kills)} of {sum(row['tried'] for row in kills)} killed runs"
    results = [
        ("A killed run resumes with the same weights, bit for bit", kept, "tests/README.md", "faults"),
        (
            "Faults and bad input never cost saved work",
            f"{sum(row['lost'] for row in faults.values())} of {tried:,} attempts lost something",
            "tests/README.md",
            "faults",
        ),
        (
            "Published models load in stock transformers",
            f"{min(checks)} of {versions[0]['checks']} checks in each of {len(versions)} versions",
            "hub_card/README.md",
            "clients",
        ),
        (
            "A training step is faster than Trainer's default",
            f"{seconds[0] / seconds[1]:.2f} times (6 layers, 384 wide, two cores)",
            "tests/benchmarks/README.md",
            "training",
        ),
        (
            "The loss needs less memory than the plain form",
            f"{head['ours']['peak_bytes'] / head['plain']['peak_bytes']:.2f} times at 124M in fp32",
            "tests/benchmarks/README.md",
            "loss",
        ),
        (
            "Decoding in fp32 is faster than transformers' `generate`",
            f"{decoding['ours fp32 / transformers fp32']:.2f} times",
            "tests/benchmarks/README.md",
            "decoding",
        ),
        (
            "nanoGPT's CPU recipe is matched in less time",
            f"{100 * quality['time_over_reference']:.0f} % of its time",
            "tests/benchmarks/README.md",
            "quality",
        ),
        (
            "An unchanged model is not uploaded again",
            f"{publish['uploads']['push unchanged']} requests at the second push",
            "training/docs/publish.md",
            "publish",
        ),
    ]
    rows = [f"| {promise} | {result} | [{name}]({page}) |" for promise, result, page, name in results]
    return table("| promise | measured | where |", rows)


MAIN = ("batch_size", "accumulation_steps", "epochs", "max_steps", "learning_rate", "warmup_steps", "eval_every")
MAIN += ("checkpoint_every", "keep", "keep_best", "max_length", "dataset", "model", "lora_rank")


def by_field() -> dict[str, list[str]]:
    """Return the words of other tools for each of our fields, as `word` (tool)."""
    found: dict[str, list[str]] = {}
    for word, (field, tool) in SYNONYMS.items():
        if tool != "scratch_gpt":
            found.setdefault(field, []).append(f"`{word}` ({tool})")
    return found


def coming_from() -> str:
    """List the main options with the words of other tools that are accepted for them."""
    found = by_field()
    return table("| here | also accepted |", [f"| `{flag(field)}` | {', '.join(found[field])} |" for field in MAIN])


def aliases() -> str:
    """List all options with the words of other tools that are accepted for them."""
    rows = [f"| `{flag(field)}` | {', '.join(words)} |" for field, words in by_field().items()]
    return table("| here | also accepted |", rows)


def hints() -> str:
    """List the words of other tools that name one of our options in their error."""
    found: dict[str, list[str]] = {}
    for word, (_, text) in HINTS.items():
        found.setdefault(text, []).append(f"`{word}`")
    return table("| word | message |", [f"| {', '.join(words)} | {text} |" for text, words in found.items()])


def public_names() -> str:
    """List the names that the package exports, by the folder that defines them."""
    import scratch_gpt

    found: dict[str, list[str]] = {}
    for name in scratch_gpt.__all__:
        room = getattr(scratch_gpt, name).__module__.split(".")[1]
        found.setdefault(room, []).append(f"`{name}`")
    return table("| folder | names |", [f"| {room} | {', '.join(sorted(found[room]))} |" for room in sorted(found)])
