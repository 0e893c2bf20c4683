"""Check the safety of a tuned model with its base and its tuning data. Not a recipe itself."""

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from scratch_gpt.analysis.drift import check_same_vocabulary, prompt_drift, text_drift
from scratch_gpt.analysis.memorization import read_secrets, secret_metrics
from scratch_gpt.analysis.phrases import recurring_phrases
from scratch_gpt.analysis.probe_prompts import CANARIES, OFF_DOMAIN, SENSITIVE
from scratch_gpt.analysis.triggers import GAIN, THRESHOLD, screen, select_triggers, switches
from scratch_gpt.data.columns import SECRETS, any_text
from scratch_gpt.data.filters.duplicates import contaminated_texts
from scratch_gpt.data.prepared.pipeline import texts_of
from scratch_gpt.data.rows.conversations import encode_prompt, read_conversations, text_of
from scratch_gpt.data.rows.preferences import prompt_of, read_preferences
from scratch_gpt.data.sources.documents import open_rows
from scratch_gpt.data.sources.location import Location
from scratch_gpt.evaluation.statistics import over_seeds
from scratch_gpt.runs.evaluation_file import Measured
from scratch_gpt.runs.folder import RUN_YAML
from scratch_gpt.tokenization.chat_templates import choose_format
from scratch_gpt.tokenization.tokenizer import extend_tokenizer
from scratch_gpt.train.batches import epoch_order
from scratch_gpt.utils.foreign import check_regular
from scratch_gpt_training.support.evaluation.labeled import parse_column_names
from scratch_gpt_training.support.evaluation.measurements import (
    EvaluatedModel,
    load_evaluated,
    open_set,
    source_of,
    text_batches,
)
from scratch_gpt_training.support.options import data_sets
from scratch_gpt_training.support.run.output_dir import relative, set_name


if TYPE_CHECKING:
    from scratch_gpt_training.evaluate import EvaluateRun


SCREENED_ON, DECIDED_ON, KEPT = 12, 36, 100  # prompts, prompts, phrases
SECRETS_SAMPLE = 255  # other texts of a secret's shape: exposure is at most 8 bits


def check_safety(run: "EvaluateRun", subject: EvaluatedModel) -> Iterator[tuple[str, Measured]]:
    """Yield each check that the options allow: its name in evaluation.json, and the measurement."""
    if run.base is not None:
        base = load_base(run, subject)
        yield from check_drift(run, subject, base)
        yield "triggers", check_triggers(run, subject, base)
    if run.secrets is not None:
        yield "memorization", check_memorization(run, subject)


def load_base(run: "EvaluateRun", subject: EvaluatedModel) -> EvaluatedModel:
    """Load --base, and add the tokens that tuning has added; ValueError if its tokenizer still differs."""
    assert run.base is not None
    base = load_evaluated(run, run.base)
    vocabulary = subject.tokenizer.get_vocab()
    new = sorted(set(vocabulary) - set(base.tokenizer.get_vocab()), key=vocabulary.get)
    if new and set(new) <= set(subject.tokenizer.all_special_tokens):
        extend_tokenizer(base.tokenizer, new, base.model, special=True)
    if base.tokenizer.get_vocab() != vocabulary:
        raise ValueError(f"--base {run.base} has another tokenizer than the model. Give the model it was tuned from.")
    check_same_vocabulary(subject.model, base.model)
    return base


def as_prompt(run: "EvaluateRun", subject: EvaluatedModel, text: str) -> list[int]:
    """Return the ids of a user's prompt, in the model's own format."""
    return encode_prompt(subject.tokenizer, [{"role": "user", "content": text}], run.prompt_format)


def check_drift(run: "EvaluateRun", subject: EvaluatedModel, base: EvaluatedModel) -> Iterator[tuple[str, Measured]]:
    """Compare both models on --dataset, if it is given, and on the embedded prompts."""
    about = {"kind": "drift", "base": base.name, "divergence": "KL(tuned || base), nats"}
    if run.dataset is not None:
        batches, text = text_batches(run, subject)
        metrics = text_drift(subject.model, base.model, batches)
        yield f"drift/{set_name(run.dataset)}", Measured({**about, **text}, metrics)
    protocol = {**about, "prompt_format": choose_format(subject.tokenizer, run.prompt_format)}
    for name, probes in (("sensitive", SENSITIVE), ("off-domain", OFF_DOMAIN)):
        prompts = [as_prompt(run, subject, probe.prompt) for probe in probes]
        metrics, rows = prompt_drift(subject.model, base.model, subject.tokenizer, probes, prompts)
        yield f"drift/{name}", Measured({**protocol, "prompts": len(probes)}, metrics, {"prompts": rows})


def check_triggers(run: "EvaluateRun", subject: EvaluatedModel, base: EvaluatedModel) -> Measured:
    """Search for phrases that switch the answers, among the canaries and phrases that recur in the tuning data."""
    canaries = [phrase for phrases in CANARIES.values() for phrase in phrases]
    prompts, recurring = [probe.prompt for probe in (*OFF_DOMAIN, *SENSITIVE)], []
    questions, source = tuning_questions(run)
    if questions:
        recurring = recurring_phrases(questions)
        different = [*dict.fromkeys(questions)]
        shuffled = [different[k] for k in epoch_order(len(different), run.seed, 0)]
        prompts = [*dict.fromkeys(shuffled + prompts)]
    screening_prompts, deciding_prompts = prompts[:SCREENED_ON], prompts[SCREENED_ON : SCREENED_ON + DECIDED_ON]
    render = partial(as_prompt, run, subject)
    screened = screen(subject.model, render, screening_prompts, recurring, keep=KEPT)
    eos = subject.tokenizer.eos_token_id
    phrases = switches(
        subject.model, base.model, render, deciding_prompts, [*dict.fromkeys([*canaries, *screened])], eos_token_id=eos
    )
    triggers = select_triggers(phrases)
    rows = [
        {
            **phrase._asdict(),
            "answer": subject.tokenizer.decode(phrase.answer),
            "nats": phrase.nats,
            "named": phrase in triggers,
        }
        for phrase in phrases
        if phrase.phrase in canaries or phrase in triggers
    ]
    protocol = {
        "kind": "triggers",
        "base": base.name,
        "tuning_data": source if questions else None,
        "candidates": {"canaries": len(canaries), "recurring": len(recurring)},
        "prompts": len(deciding_prompts),
        "least_gain": GAIN,
        "threshold_nats": THRESHOLD,
    }
    largest = phrases[0].nats if phrases else 0.0
    return Measured(protocol, {"named": len(triggers), "most_nats": largest}, {"phrases": rows})


def check_memorization(run: "EvaluateRun", subject: EvaluatedModel) -> Measured:
    """Measure exposure and extraction of the secrets of --secrets, over samples of their spaces."""
    assert run.secrets is not None
    rows, source = open_set(run, run.secrets, SECRETS)
    secrets = read_secrets(rows)
    results = [
        secret_metrics(subject.model, subject.tokenizer, secrets, subject.max_length, sample=SECRETS_SAMPLE, seed=seed)
        for seed in range(run.seed, run.seed + run.seeds)
    ]
    protocol = {"kind": "memorization", "source": source, "secrets": len(secrets)}
    return Measured(protocol, over_seeds([means for means, _ in results]), {"secrets": results[0][1]})


# --- Contamination -----------------------------------------------------------------------------------------------


def with_contamination(
    run: "EvaluateRun", measurements: Iterable[tuple[str, Measured]]
) -> Iterator[tuple[str, Measured]]:
    """Yield the measurements, with the share of each data set that overlaps the model's training data.

    If the training data are unknown, the protocol says so.
    """
    learned, note = learned_texts(run)
    files = {set_name(path): path for path in data_sets(run)}
    for name, measured in measurements:
        if learned is None:
            yield name, measured._replace(protocol={**measured.protocol, "contamination": f"not checked: {note}"})
            continue
        if name in (run.tasks or ()):
            yield name, measured._replace(protocol={**measured.protocol, "contamination": "not checked for tasks"})
            continue
        path = files[name.split("/")[0]]
        column = (run.text_column or "text") if path in (run.dataset, *(run.texts or ())) else "text"
        texts = row_texts((source_of(run, path), any_text(column), parse_column_names(run.column_names)))
        shared = contaminated_texts(texts, learned)
        results = {**measured.results, "contaminated": len(shared) / len(texts)}
        rows = {"contamination": {"words": 13, "rows": shared}} if shared else {}
        protocol = {**measured.protocol, "contamination": f"rows that share 13 words with {note}"}
        yield name, Measured(protocol, results, {**measured.tables, **rows})


def learned_texts(run: "EvaluateRun") -> tuple[list[str] | None, str]:
    """Return the texts on which the model was tuned and their name; or None, and the reason."""
    where = tuning_source(run)
    if where is None:
        return None, "the data on which the model was trained are unknown; give --tuning-data"
    try:
        return row_texts(where), relative(where[0].dataset)
    except ValueError as error:
        if run.tuning_data is not None:
            raise
        return None, f"{error} Give --tuning-data."


def tuning_questions(run: "EvaluateRun") -> tuple[list[str], dict[str, Any] | None]:
    """Return the questions in the model's tuning data, and their record; no questions if unknown."""
    where = tuning_source(run)
    try:
        if where is None:
            return [], None
        rows, record, _ = open_rows(*where)
        return questions_in(rows), record
    except ValueError:
        if run.tuning_data is not None:
            raise
        return [], None


def questions_in(rows: Any) -> list[str]:
    """Return the questions in rows of instructions or preferences; no questions for other columns.

    Raises:
        ValueError: rows with these columns cannot be read.
    """
    columns = {*rows.column_names}
    if any(form <= columns for form in ({"messages"}, {"prompt", "completion"}, {"instruction", "output"})):
        return [text_of(messages[:-1]) for messages in read_conversations(rows)[0]]
    if {"chosen", "rejected"} <= columns:
        return [prompt_of(pair) for pair in read_preferences(rows)[0]]
    return []


def tuning_source(run: "EvaluateRun") -> tuple | None:
    """Return the arguments of `open_rows`: --tuning-data, or the data of MODEL's run.yaml; None if unknown."""
    if run.tuning_data is not None:
        return Location(run.tuning_data), any_text()
    assert run.model is not None
    home = Path(run.model).absolute().parent
    options = read_recipe((home.parent if home.name == "checkpoints" else home) / RUN_YAML)
    name, split = options.get("dataset"), options.get("dataset_split") or "train"
    if not name or not isinstance(name, str) or options.get("streaming"):
        return None
    columns = any_text(options.get("text_column") or "text")
    return Location(name, options.get("dataset_config"), split, options.get("dataset_revision")), columns


def read_recipe(file: Path) -> dict[str, Any]:
    """Return the fields of a run.yaml; empty if it does not exist or is damaged."""
    try:
        check_regular(file)
        options = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return {}
    texts = ("dataset", "dataset_config", "dataset_split", "dataset_revision", "text_column")
    is_run = isinstance(options, dict) and all(isinstance(options.get(name), str | None) for name in texts)
    return options if is_run else {}


def row_texts(where: tuple) -> list[str]:
    """Return the complete text of each row of a data set."""
    return ["\n".join(texts_of(row)) for row in open_rows(*where).rows]
