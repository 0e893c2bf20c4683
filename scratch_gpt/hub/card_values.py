"""Compute the value of each hole of the card, as Markdown, and the card's metadata, from a run's record.

A value is None if no file of the run contains it. hub_card/fields.md lists the holes with their sources.
"""

from collections.abc import Collection
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from ..runs.record import Record, base_model, hub_datasets, is_hub_id, is_on_hub, results, training_speed
from ..utils.wording import plural
from .card import Markup, code, dump, escape
from .eval_results import protocol_of, task_of
from .loading_snippet import load_as_ours, load_code, load_needs


LAYOUTS = ("scratch_gpt", "gpt2", "adapter")
# Our metrics: the Hub's names.
ON_HUB = {"accuracy": "accuracy", "acc": "accuracy", "macro_f1": "f1", "perplexity": "perplexity"}
MAX_TABLE_ROWS = 20  # of a table; further rows are counted

# Fields of run.yaml that are not hyperparameters, or have another place on the card.
NOT_LEARNING = {
    *("output_dir", "overwrite", "resume", "allow_changed", "on_save_error", "async_save", "model", "model_revision"),
    *("dataset", "dataset_config", "dataset_split", "dataset_revision", "text_column", "label_column", "tokenizer"),
    *("column_names", "label_separator", "streaming", "stream_lanes", "manifest", "predict", "push_to_hub"),
    *("language", "encoder"),
    *("learning_rate", "min_learning_rate", "warmup_steps", "max_steps", "epochs", "max_tokens", "max_time"),
    *("eval_every", "eval_batches", "checkpoint_every", "keep", "log_every", "report_to", "sample_prompt"),
    *("device", "mixed_precision", "compile", "gradient_checkpointing", "workers", "expect_processes", "energy"),
    *("hang_timeout", "plan", "plan_devices", "plan_tflops", "preview", "learning_rates", "sweep"),
}
LAYOUT_TEXT = {
    "scratch_gpt": "This folder contains its own code, a few files that you can read completely. Loading it needs "
    '`trust_remote_code=True`. Read the files once, then pin the version that you read with `revision="COMMIT"`. '
    "(The Hub's widget and most servers do not run a model's own code.)",
    "gpt2": "This folder is in the layout of stock GPT-2. transformers loads it without code from this page, and so "
    "do programs that serve or convert GPT-2.",
    "adapter": "This folder holds LoRA weights, not a complete model. [peft](https://github.com/huggingface/peft) "
    "loads them on top of the base model.",
}
LIMITATIONS = {
    "base": "It continues a text in the style of its training data. It was not trained to follow instructions, to "
    "refuse or to be correct. It repeats errors and prejudices of the data, and may repeat passages of them word for "
    "word. Do not use it for answers that people rely on, for advice on health, law or money, to write in a person's "
    "name, or in languages and on subjects that the data do not contain.",
    "classifier": "It assigns one of its classes ({labels}) to every text, also to a text that belongs to none of "
    "them, and it may be just as confident on texts unlike its training data. Do not use it for decisions about "
    "people without a person who checks each one, or if a wrong class does harm. The scores above are for texts "
    "similar to its training data.",
    "chat": "It answers in the style of its training data, and nothing makes the answers correct or safe: it invents "
    "facts, and it was not trained to refuse. Do not use it for answers that people rely on, for advice on health, "
    "law or money, to speak in a person's name, or if nobody reads its answers before they have an effect.",
}


# --- The values --------------------------------------------------------------------------------------------------


def card_values(
    record: Record,
    *,
    repo: str,
    layout: str,
    revision: str | None = None,
    license: str | None = None,
    license_name: str | None = None,
    license_link: str | None = None,
    pictures: Collection[str] = (),
    base: tuple[str, str | None] | None = None,
    base_needs_trust: bool = False,
) -> dict[str, str | None]:
    """Return {hole: Markdown, or None if no file of the run contains the value}.

    Args:
        repo: user/name.
        layout: one of LAYOUTS.
        revision: the branch to publish on; None for main.
        license, license_name, license_link: the license of the weights, as in licenses.check_license.
        pictures: names of the files in assets/.
        base: (Hub id, revision) of the base model; by default the record's.
        base_needs_trust: whether an adapter's base has its own code.
    """
    base = base or base_model(record)
    terms = {"license": license, "license_name": license_name, "license_link": license_link}
    values = {
        "title": repo.split("/")[1],
        "about": _about(record, layout, base),
        "layout": LAYOUT_TEXT[layout],
        "sample": _sample(record),
        "load_needs": load_needs(layout, base_needs_trust),
        "load_code": load_code(record, repo, layout, revision, base_needs_trust),
        "load_as_ours": load_as_ours(record, repo, layout, revision),
        "load_notes": _load_notes(record),
        "evaluation": _evaluation(record),
        "evaluation_protocol": _protocol(record),
        "classes": _classes(record),
        "sources": _sources(record),
        "splits": _splits(record),
        "mixture": _mixture(record),
        "filters": _filters(record),
        "procedure": _procedure(record),
        "hyperparameters": _hyperparameters(record),
        "speed": _speed(record),
        "energy": _energy(record),
        "limits": LIMITATIONS[record.kind].format(labels=", ".join(map(escape, record.labels))),
        "links": _links(record, base),
        "licence": _license(layout, terms),
        "versions": _versions(record),
        "metadata": _metadata(record, repo, layout, terms, base),
    }
    for name, words in PICTURES.items():
        values[f"{name}_picture"] = f"![{words}](assets/{name}.png)" if f"{name}.png" in pictures else None
    return values


PICTURES = {  # name of the file in assets/: its content
    "loss": "Loss and learning rate during training",
    "confusion": "Confusion matrix of the test split",
    "parameters": "Number of parameters in each part",
    "attention": "Attention of each head in one sentence",
    "tokens": "Lengths of the vocabulary's tokens",
}


def _about(record: Record, layout: str, base: tuple[str, str | None] | None) -> str:
    config, trained = record.config, record.facts.get("parameters")
    data = ", ".join(dict.fromkeys(escape(source["dataset"]) for source in record.manifest.get("sources", [])))
    labels = ", ".join(map(escape, record.labels))
    description = {
        "base": "A language model",
        "classifier": f"A classifier of texts into {len(record.labels)} classes ({labels})",
        "chat": "A model that follows instructions",
    }[record.kind]
    size = f" of {trained:,} parameters" if trained else ""
    start = f", fine-tuned from {_link(base[0])}" if base else ""
    if not base and record.run.get("model") is None:
        start = ", trained from random weights"
    shape = (
        f"GPT-2's architecture: {config['num_hidden_layers']} layers, {config['hidden_size']} wide, "
        f"{config['num_attention_heads']} heads, {config['max_position_embeddings']:,} tokens of context, "
        f"a vocabulary of {config['vocab_size']:,}."
    )
    return f"{description}{size}{start}{f' on {data}' if data else ''}. {shape}"


def _sample(record: Record) -> str | None:
    texts = [line["sample"] for line in record.metrics if line.get("sample")]
    if record.kind != "base" or not texts:
        return None
    return "A sample of its text:\n\n" + f"> {_one_line(texts[-1], 400)}"


def _load_notes(record: Record) -> str | None:
    length = record.config.get("max_position_embeddings")
    max_length = record.manifest.get("max_length")
    if record.kind == "classifier" and max_length:
        return f"In training, longer texts were cut to {max_length:,} tokens; `truncation=True` does the same here."
    return f"The context is {length:,} tokens, for prompt and answer together." if length else None


def _evaluation(record: Record) -> str | None:
    scores = results(record)
    has_before = any(result.before is not None for result in scores)
    rows = [
        [result.split, result.metric.replace("_", " "), *([_number(result.before)] if has_before else []), str(result)]
        for result in scores
    ]
    return _table(["split", "metric", *(["before training"] if has_before else []), "this model"], rows)


def _protocol(record: Record) -> str | None:
    protocol, scores = record.evaluation.get("protocol", {}), results(record)
    if not scores:
        return None
    lines = []
    if (n := max(result.n for result in scores)) > 1:
        lines.append(f"Mean \u00b1 sample standard deviation of {n} seeds. The weights are those of the first seed.")
    if "step" in protocol:
        lines.append(f"The weights are those of step {protocol['step']:,} ({escape(protocol['chosen_by'])}).")
    if protocol.get("eval_batches"):
        lines.append(
            f"Measured on at most {protocol['eval_batches']:,} batches per process, evenly spaced over the split; the "
            "test split is used completely."
        )
    if any(result.metric == "loss" for result in scores):
        lines.append(
            "The loss is in nats. Each token or text counts once, so the loss does not depend on the batch size."
        )
    return " ".join(lines) or None


def _classes(record: Record) -> str | None:
    table = record.evaluation.get("tables", {}).get("test", {})
    names = ("precision", "recall", "f1")
    if not all(name in table for name in names):
        return None
    return _table(
        ["class", *names], [[label, *(_number(table[name][label]) for name in names)] for label in table["labels"]]
    )


def _sources(record: Record) -> str | None:
    rows = []
    for source in record.manifest.get("sources", []):
        name = source["dataset"]
        title = _link(name, "datasets/") if is_on_hub(source) else escape(name)
        title = Markup(title + (f", {escape(source['config'])}" if source.get("config") else ""))
        for file in source.get("files") or [{}]:
            size = f"{file['bytes']:,}" if "bytes" in file else ""
            version = file.get("sha256") or source.get("prepared") or source.get("revision") or ""
            rows.append([title, file.get("name", ""), size, code(version) if version else ""])
    return _table(["source", "file", "bytes", "SHA-256 or revision"], rows)


def _splits(record: Record) -> str | None:
    rows = []
    for name, facts in record.manifest.get("splits", {}).items():
        counts = [f"{facts[key]:,}" if key in facts else "" for key in ("documents", "rows", "tokens", "bytes")]
        rows.append([name, *counts, code(facts["sha256"]) if "sha256" in facts else ""])
    return _table(["split", "documents", "rows", "tokens", "bytes", "SHA-256 of the rows"], rows)


def _mixture(record: Record) -> str | None:
    shares = (record.manifest.get("mixture") or {}).get("actual")
    text = shares and ", ".join(f"{escape(name)} {share:.1%}" for name, share in shares.items())
    return text and f"Mixed by tokens: {text}."


def _filters(record: Record) -> str | None:
    rows = [
        [name, f"{counts['in']:,}", f"{counts['removed']:,}"]
        for name, counts in record.manifest.get("filters", {}).items()
    ]
    return _table(["filter", "rows in", "removed"], rows)


def _procedure(record: Record) -> str | None:
    facts, run = record.facts, record.run
    if "steps" not in facts:
        return None
    steps = [line for line in record.metrics if line.get("loss") is not None]
    batch = run["batch_size"] * run["accumulation_steps"] * facts.get("processes", 1)
    amount = f", {steps[-1]['tokens']:,} tokens" if steps else ""
    amount += f" ({steps[-1]['epoch']:.2f} epochs)" if steps and "epoch" in steps[-1] else ""  # not for a stream
    rate = facts["schedule"]
    optimizer = "Muon and AdamW" if run.get("optimizer") == "muon" else "AdamW"
    shape = "linearly" if rate.get("shape") == "linear" else "along a cosine"
    return (
        f"{plural(steps[-1]['step'] if steps else facts['steps'], 'step')} of {plural(batch, 'row')}{amount} "
        f"with {optimizer}. The learning rate rises over {rate['warmup_steps']:,} steps to {rate['peak']:g}, then "
        f"falls {shape} to {rate['floor']:g}."
    )


def _hyperparameters(record: Record) -> str | None:
    fields = {name: value for name, value in record.run.items() if name not in NOT_LEARNING}
    if record.run.get("tune") != "lora":
        fields = {name: value for name, value in fields.items() if not name.startswith(("lora_", "use_", "quantize_"))}
    if record.facts.get("trained_parameters") != record.facts.get("parameters"):
        fields["trained_parameters"] = f"{record.facts['trained_parameters']:,}"
    unset = (None, False, "no", "none", "")  # and 0, except for a seed
    rows = [[code(name), str(value)] for name, value in fields.items() if value not in unset or name == "seed"]
    return _table(["field", "value"], rows)


def _speed(record: Record) -> str | None:
    rate, facts = training_speed(record), record.facts
    if rate is None:
        return None
    hardware = escape(facts.get("hardware") or facts.get("device"))
    precision = escape("fp32" if facts.get("precision") == "no" else facts.get("precision"))
    processes = _count(facts["processes"], "process", "processes")
    return (
        f"{rate[0]:,.0f} tokens per second (median) on {hardware}, {processes} with "
        f"{plural(facts['threads'], 'thread', 'threads')}, {precision}; {rate[1]:,.1f} minutes of training steps."
    )


def _energy(record: Record) -> str | None:
    if not record.emissions:
        return None
    row, hours = record.emissions[-1], _total(record, "duration") / 3600
    watts = {part: 1000 * _total(record, f"{part}_energy") / hours for part in ("cpu", "ram", "gpu")}
    cpu = f"CPU {watts['cpu']:.3g} W, {escape(row.get('cpu_power_is') or 'read or estimated')}"
    gpu = f"; GPU {watts['gpu']:.3g} W, read from its driver" if watts["gpu"] else ""
    country, minutes = escape(row["country_name"]), 60 * hours
    return (
        f"{_total(record, 'energy_consumed'):.3g} kWh, {_grams(record):g} g CO2 equivalent with the electricity of "
        f"{country}, for the whole machine over {minutes:,.1f} minutes ({cpu}; memory {watts['ram']:.3g} W, estimated "
        f"from its size{gpu}). Measured with codecarbon {escape(row['codecarbon_version'])}."
    )


def _total(record: Record, column: str) -> float:
    return sum(float(row[column] or 0) for row in record.emissions)  # one row for each launch of the run


def _grams(record: Record) -> float:
    return float(f"{1000 * _total(record, 'emissions'):.3g}")


def _links(record: Record, base: tuple[str, str | None] | None) -> str | None:
    lines = []
    if base:
        lines.append(f"- Base model: {_link(base[0])}{f' at {code(base[1])}' if base[1] else ''}")
    lines += [f"- Dataset: {_link(name, 'datasets/')}" for name in hub_datasets(record)]
    return "\n".join(lines) or None


def _license(layout: str, terms: dict[str, str | None]) -> str | None:
    name, link = terms["license_name"] or terms["license"], terms["license_link"]
    lines = [f"Weights: {escape(name)}{f', {escape(link)}' if link else ''}."] if name else []
    lines += ["Code files (`*.py`): scratch_gpt, Apache 2.0."] if layout == "scratch_gpt" else []
    return " ".join(lines) or None


def _versions(record: Record) -> str | None:
    versions = record.facts.get("versions")
    return versions and ", ".join(f"{escape(name)} {escape(number)}" for name, number in versions.items())


def _metadata(
    record: Record, repo: str, layout: str, terms: dict[str, str | None], base: tuple[str, str | None] | None
) -> str:
    task = "text-classification" if record.kind == "classifier" else "text-generation"
    scores, sources = results(record), record.manifest.get("sources", [])
    data = {
        "dataset_type": sources[0]["dataset"] if sources else "unknown",
        "dataset_name": ", ".join(dict.fromkeys(source["dataset"] for source in sources)) or "unknown",
    }
    evaluations = [
        EvalResult(
            task_type=task,
            **_dataset_of(record, result.split, data),
            metric_type=ON_HUB.get(result.metric, result.metric),
            metric_name=result.metric.replace("_", " "),
            metric_value=result.value if result.std is None else str(result),
        )
        for result in scores
    ]
    base = base if base and is_hub_id(base[0]) else None
    languages = record.facts.get("languages") or []
    extra: dict[str, Any] = {**terms, "language": languages[0] if len(languages) == 1 else languages or None}
    if base:
        extra["base_model_relation"] = "adapter" if layout == "adapter" else "finetune"
    if record.emissions:
        extra["co2_eq_emissions"] = {"emissions": _grams(record), "source": "codecarbon"}
    card = ModelCardData(
        base_model=base[0] if base else None,
        datasets=hub_datasets(record) or None,
        eval_results=evaluations or None,
        library_name="peft" if layout == "adapter" else "transformers",
        metrics=sorted({ON_HUB[result.metric] for result in scores if result.metric in ON_HUB}) or None,
        model_name=repo.split("/")[1],
        pipeline_tag=task,
        tags=["scratch-gpt", *(["conversational"] if record.kind == "chat" else [])],
        **extra,
    )
    content = card.to_dict()
    content.pop("model_name", None)  # it is in model-index
    return dump(content)


def _dataset_of(record: Record, split: str, training_data: dict[str, str]) -> dict[str, Any]:
    # Return the dataset of a result: a split of the training data, or the set that `evaluate` has measured.
    if (task := task_of(record, split)) is not None:
        dataset = task["dataset"]
        names = {"dataset_type": dataset["id"], "dataset_name": split, "dataset_split": dataset.get("split")}
        return {**names, "dataset_config": dataset.get("config")}
    source = protocol_of(record, split).get("source")
    if isinstance(source, dict) and isinstance(source.get("dataset"), str):
        return {"dataset_type": source["dataset"], "dataset_name": split}
    return {**training_data, "dataset_split": split}


# --- Markdown ----------------------------------------------------------------------------------------------------


def _link(name: str, kind: str = "") -> Markup:
    # Link to a repository on the Hub; kind is "" or "datasets/"
    return Markup(f"[{name}](https://huggingface.co/{kind}{name})") if is_hub_id(name) else escape(name)


def _table(header: list[str], rows: list[list[str]]) -> str | None:
    # Omit empty columns, and rows after the first MAX_TABLE_ROWS.
    if not rows:
        return None
    used = [n for n in range(len(header)) if any(row[n] for row in rows)]
    cells = [[escape(row[n]) for n in used] for row in rows]
    lines = [[header[n] for n in used], ["---"] * len(used), *cells[:MAX_TABLE_ROWS]]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return text + (f"\n\nand {len(rows) - MAX_TABLE_ROWS:,} more." if len(rows) > MAX_TABLE_ROWS else "")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.5g}"


def _count(number: Any, noun: str, plural_noun: str) -> str:
    return f"{escape(number)} {noun if number == 1 else plural_noun}"


def _one_line(text: str, limit: int) -> str:
    words = " ".join(text.split())
    return escape(words if len(words) <= limit else f"{words[:limit].rsplit(' ', 1)[0]} ...")


__all__ = ["LAYOUTS", "PICTURES", "card_values"]
