"""Measure one model on one data set, for evaluation.json, and write its answers. Not a recipe itself."""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from scratch_gpt.conversion.load import load_model
from scratch_gpt.data.columns import CHOICES, CONSTRAINTS, CONVERSATIONS, LAST_WORDS, Columns
from scratch_gpt.data.rows.collate import collate_rows
from scratch_gpt.data.rows.conversations import Messages, encode_prompt, read_conversations, transcript
from scratch_gpt.data.rows.windows import Windows
from scratch_gpt.data.sources.documents import open_documents, open_rows
from scratch_gpt.data.sources.location import Location
from scratch_gpt.data.sources.token_stream import joined_stream, token_stream
from scratch_gpt.evaluation.answers import answer_metrics, exact_match, token_f1
from scratch_gpt.evaluation.answers_page import Answered, answers_page
from scratch_gpt.evaluation.ifeval import constraint_metrics, keep_constraints, read_constraints
from scratch_gpt.evaluation.judge import SCORE, Judge, JudgeError, judge_scores, score_metrics
from scratch_gpt.evaluation.likelihood import (
    choice_metrics,
    choice_pairs,
    last_word_metrics,
    last_word_pairs,
    read_choices,
    score_continuations,
)
from scratch_gpt.evaluation.losses import language_metrics, mean_losses
from scratch_gpt.evaluation.pairwise import PAIR, bradley_terry, judge_pairs, win_rates
from scratch_gpt.evaluation.statistics import over_seeds
from scratch_gpt.finetuning.adapter_files import find_adapter
from scratch_gpt.generation.generate import generate_answers
from scratch_gpt.runs.evaluation_file import Measured
from scratch_gpt.tokenization.chat_templates import choose_format
from scratch_gpt.tokenization.tokenizer import check_vocabulary, encode_batch, end_of_text_id, load_tokenizer
from scratch_gpt.train.accelerator import make_accelerator
from scratch_gpt.train.batches import BatchLayout, evaluation_batches
from scratch_gpt.train.objectives import causal_lm
from scratch_gpt.utils.files import write_text
from scratch_gpt.utils.foreign import read_json, shown
from scratch_gpt.utils.loading import find_file
from scratch_gpt_training.support.options import dataset_location
from scratch_gpt_training.support.run.output_dir import relative, set_name


if TYPE_CHECKING:
    from scratch_gpt_training.evaluate import EvaluateRun


class EvaluatedModel(NamedTuple):
    """A model to evaluate."""

    name: str  # in evaluation.json
    model: Any
    tokenizer: Any
    max_length: int
    device: Any


def load_evaluated(run: "EvaluateRun", name: str, revision: str | None = None) -> EvaluatedModel:
    """Load a model and its tokenizer on the device; ValueError if the options do not fit them."""
    device = make_accelerator(run.device, "no").device
    if is_classifier(name, revision):
        raise ValueError(f"{name} is a classifier, and a language model is needed here.")
    model = load_model(name, revision).to(device).eval()
    tokenizer = load_tokenizer(name, revision)
    check_vocabulary(tokenizer, model.config.vocab_size)
    limit = model.config.max_position_embeddings
    if run.max_length is not None and run.max_length > limit:
        raise ValueError(f"--max-length {run.max_length} is more than the context of {name}, {limit} tokens.")
    max_length = run.max_length or limit
    if run.stride is not None and run.stride > max_length:
        raise ValueError(f"--stride {run.stride} leaves gaps between windows of {max_length}. Give at most that.")
    return EvaluatedModel(relative(name), model, tokenizer, max_length, device)


def is_classifier(name: str, revision: str | None) -> bool:
    """Return whether a saved model is a classifier; False if its files cannot be read, which loading reports."""
    return any(kind == "SEQ_CLS" or kind.endswith("ForSequenceClassification") for kind in saved_kinds(name, revision))


def is_language_model(name: str, revision: str | None) -> bool:
    """Return whether a saved model is a language model; False if its files cannot be read, which loading reports."""
    kinds = saved_kinds(name, revision)
    return any(kind == "CAUSAL_LM" or kind.endswith(("ForCausalLM", "LMHeadModel")) for kind in kinds)


def saved_kinds(name: str, revision: str | None) -> list[str]:
    """Return the architectures in a model's config, or the task of an adapter; empty if they cannot be read."""
    file = find_adapter(name, revision) or find_file(name, "config.json", revision)
    try:
        config = read_json(file) if file else {}
        return [str(kind) for kind in (config.get("task_type"), *(config.get("architectures") or ()))]
    except (OSError, ValueError, AttributeError, TypeError):
        return []


def source_of(run: "EvaluateRun", path: str) -> Location:
    """Return the location of a data set, with the config, split and revision of the run."""
    return dataset_location(run, path)


def open_set(run: "EvaluateRun", path: str, columns: Columns) -> tuple[Any, dict[str, Any]]:
    """Open the rows of a data set with the columns in use; return them and their record, and print notices."""
    rows, record, notices = open_rows(source_of(run, path), columns)
    for notice in notices:
        print(shown(notice))
    return rows, record


def format_metrics(results: dict[str, Any]) -> str:
    """Format metrics as a line: numbers, or mean and spread."""
    pairs = ((key, value if isinstance(value, dict) else {"mean": value}) for key, value in results.items())
    return "  ".join(
        f"{key} {value['mean']:.4f}" + (f" ({value['std']:.4f})" if "std" in value else "") for key, value in pairs
    )


def measure_all(run: "EvaluateRun", subject: EvaluatedModel) -> Iterator[tuple[str, Measured]]:
    """Yield each result as soon as it is known: its name in evaluation.json, and the measurement."""
    if run.dataset is not None:
        yield set_name(run.dataset), measure_text(run, subject)
    for file in run.texts or ():
        yield set_name(file), measure_text(replace(run, dataset=file), subject)
    for file in run.multiple_choice or ():
        yield set_name(file), measure_choices(run, subject, file)
    for file in run.last_word or ():
        yield set_name(file), measure_last_words(run, subject, file)
    if run.ifeval is not None:
        yield set_name(run.ifeval), measure_constraints(run, subject)
    if run.questions is not None:
        answers, name = make_answer_set(run, subject), set_name(run.questions)
        yield name, measure_answers(run, answers)
        if run.judge_url is not None:
            yield f"{name}/judge", measure_judged(run, answers)
        if run.compare:
            yield f"{name}/compare", measure_compared(run, subject, answers)


# --- By likelihood -----------------------------------------------------------------------------------------------


def text_batches(run: "EvaluateRun", subject: EvaluatedModel) -> tuple[Iterable, dict[str, Any]]:
    """Return the windows of --dataset in batches, with each token but the first a target once, and their protocol."""
    assert run.dataset is not None
    documents, source, notices = open_documents(source_of(run, run.dataset), run.text_column)
    for notice in notices:
        print(notice)
    encode = partial(encode_batch, subject.tokenizer)
    if run.joiner is None:
        stream = token_stream(documents, encode, end_of_text_id(subject.tokenizer), "Tokenizing")
    else:
        stream = joined_stream(documents, encode, run.joiner.replace("\\n", "\n"))
    windows = Windows(stream.ids, subject.max_length, run.stride, overlap="context")
    protocol = {
        "source": source,
        "documents": len(documents),
        "bytes": stream.bytes,
        "tokens": len(stream.ids),
        "asked": len(stream.ids) - 1,
        "max_length": subject.max_length,
        "stride": run.stride or subject.max_length,
        "joiner": "EOS after each document" if run.joiner is None else run.joiner,
        "sha256": stream.sha256,
    }
    return evaluation_batches(windows, collate_rows, BatchLayout(run.batch_size), subject.device), protocol


def measure_text(run: "EvaluateRun", subject: EvaluatedModel) -> Measured:
    """Measure loss, perplexity and bits per byte of all documents."""
    batches, details = text_batches(run, subject)
    loss = mean_losses(subject.model, batches, causal_lm)["loss"]
    return Measured({"kind": "text", **details}, language_metrics(loss, details["tokens"] / details["bytes"]))


def measure_choices(run: "EvaluateRun", subject: EvaluatedModel, file: str) -> Measured:
    """Measure the accuracies on a file of multiple-choice questions."""
    rows, source = open_set(run, file, CHOICES)
    tasks = read_choices(rows)
    pairs = choice_pairs(tasks)
    scores = score_continuations(subject.model, subject.tokenizer, pairs, subject.max_length, run.batch_size)
    protocol = {"kind": "multiple choice", "source": source, "rows": len(tasks)}
    return Measured({**protocol, "max_length": subject.max_length}, choice_metrics(tasks, scores))


def measure_last_words(run: "EvaluateRun", subject: EvaluatedModel, file: str) -> Measured:
    """Measure accuracy and perplexity of the last words of a file of texts."""
    rows, source = open_set(run, file, LAST_WORDS)
    pairs = last_word_pairs(rows)
    scores = score_continuations(subject.model, subject.tokenizer, pairs, subject.max_length, run.batch_size)
    protocol = {"kind": "last word", "source": source, "rows": len(pairs)}
    return Measured({**protocol, "max_length": subject.max_length}, last_word_metrics(scores))


# --- By answers --------------------------------------------------------------------------------------------------


class AnswerSet(NamedTuple):
    """The rows of --questions, and a model's answers."""

    questions: list[str]  # the prompts; several messages as a transcript
    references: list[str]
    answers: list[list[str]]  # for each seed; a single list without sampling
    protocol: dict[str, Any]

    @property
    def first_protocol(self) -> dict[str, Any]:
        """The protocol of the first seed's answers, the only ones that a judge reads."""
        return self.protocol | ({"seeds": self.protocol["seeds"][:1]} if "seeds" in self.protocol else {})


def answer(
    run: "EvaluateRun", subject: EvaluatedModel, conversations: list[Messages]
) -> tuple[list[list[str]], dict[str, Any]]:
    """Return the answers to all conversations for each seed, and their protocol."""
    prompts = [encode_prompt(subject.tokenizer, messages, run.prompt_format) for messages in conversations]
    seeds = list(range(run.seed, run.seed + run.seeds)) if run.temperature > 0 else [run.seed]
    decoding = {"max_new_tokens": run.max_new_tokens, "temperature": run.temperature}
    make = partial(generate_answers, subject.model, subject.tokenizer, prompts, batch_size=run.batch_size, **decoding)
    sampling = {"seeds": seeds, "batch_size": run.batch_size} if run.temperature > 0 else {}
    too_long = sum(len(prompt) > subject.model.config.max_position_embeddings for prompt in prompts)
    format_name = choose_format(subject.tokenizer, run.prompt_format)
    protocol = {"prompt_format": format_name, "prompts_beyond_the_context": too_long, **decoding, **sampling}
    return [make(seed=seed) for seed in seeds], protocol


def make_answer_set(run: "EvaluateRun", subject: EvaluatedModel) -> AnswerSet:
    """Answer --questions with a model."""
    assert run.questions is not None
    rows, source = open_set(run, run.questions, CONVERSATIONS)
    conversations, empty = read_conversations(rows)
    answers, details = answer(run, subject, conversations)
    protocol = {"source": source, "rows": len(conversations), "empty_rows": len(empty), **details}
    references = [messages[-1]["content"] for messages in conversations]
    return AnswerSet([transcript(messages[:-1]) for messages in conversations], references, answers, protocol)


def measure_answers(run: "EvaluateRun", answer_set: AnswerSet) -> Measured:
    """Measure exact match and token F1 of answers, and write them as lines and as a page."""
    assert run.questions is not None
    metrics = over_seeds([answer_metrics(texts, answer_set.references) for texts in answer_set.answers])
    rows = []
    for n, (question, reference) in enumerate(zip(answer_set.questions, answer_set.references, strict=True)):
        answer_of_seed = {name: texts[n] for name, texts in by_seed(run, answer_set.answers).items()}
        scores = {
            name: f"{'exact, ' * exact_match(text, reference)}F1 {token_f1(text, reference):.2f}"
            for name, text in answer_of_seed.items()
        }
        rows.append(Answered(question, reference, answer_of_seed, scores))
    write_answers(run, set_name(run.questions), rows, metrics)
    return Measured({"kind": "answers", **answer_set.protocol}, metrics)


def measure_constraints(run: "EvaluateRun", subject: EvaluatedModel) -> Measured:
    """Measure IFEval's strict and loose accuracies, and write the answers as lines and as a page."""
    assert run.ifeval is not None
    table, source = open_set(run, run.ifeval, CONSTRAINTS)
    prompts = read_constraints(table)
    answers, details = answer(run, subject, [[{"role": "user", "content": row["prompt"]}] for row in prompts])
    results = [keep_constraints(prompts, texts) for texts in answers]
    metrics = over_seeds([constraint_metrics(result) for result in results])
    rows = []
    for n, row in enumerate(prompts):
        answer_of_seed = {name: texts[n] for name, texts in by_seed(run, answers).items()}
        notes = {}
        for name, result in by_seed(run, results).items():
            pairs = zip(row["instruction_id_list"], result[n].strict, strict=True)
            notes[name] = ", ".join(f"{rule} {'kept' if is_kept else 'broken'}" for rule, is_kept in pairs)
        rows.append(Answered(row["prompt"], None, answer_of_seed, notes))
    write_answers(run, set_name(run.ifeval), rows, metrics)
    return Measured({"kind": "IFEval", "source": source, "rows": len(prompts), **details}, metrics)


def by_seed(run: "EvaluateRun", values: list) -> dict[str, Any]:
    """Return {name of the seed: value}."""
    return (
        {f"seed {run.seed + k}": value for k, value in enumerate(values)} if len(values) > 1 else {"answer": values[0]}
    )


def write_answers(run: "EvaluateRun", name: str, rows: list[Answered], values: dict[str, Any]) -> None:
    """Write NAME-answers.jsonl and NAME.html."""
    folder = Path(run.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(row._asdict(), ensure_ascii=False) + "\n" for row in rows)
    write_text(folder / f"{name}-answers.jsonl", "".join(lines))
    write_text(folder / f"{name}.html", answers_page(f"{relative(run.model)} on {name}", rows, format_metrics(values)))


# --- By a judge --------------------------------------------------------------------------------------------------


def measure_judged(run: "EvaluateRun", answer_set: AnswerSet) -> Measured:
    """Return a judge's scores of the first seed's answers, with the spread over its repeats."""
    assert run.questions is not None
    with open_judge(run, f"{set_name(run.questions)}-judge.jsonl") as judge:
        scores = judge_scores(
            judge, answer_set.questions, answer_set.references, answer_set.answers[0], run.judge_repeats
        )
    metrics, unclear = score_metrics(scores)
    by = {"judge": run.judge_model, "judge_url": run.judge_url, "repeats": run.judge_repeats, "prompt": SCORE}
    protocol = {"kind": "judge", **answer_set.first_protocol, **by, "replies_without_score": unclear}
    return Measured(protocol, over_seeds(metrics), {"scores": scores})


def measure_compared(run: "EvaluateRun", subject: EvaluatedModel, answer_set: AnswerSet) -> Measured:
    """Return a judge's win rates and strengths of several models' answers (the first seed's), in both orders."""
    assert run.questions is not None and run.compare is not None
    answers, once = {subject.name: answer_set.answers[0]}, replace(run, seeds=1)
    for name in run.compare:
        if relative(name) not in answers:
            answers[relative(name)] = make_answer_set(once, load_evaluated(run, name)).answers[0]
    texts = zip(answer_set.questions, answer_set.references, strict=True)
    rows = [Answered(*text, {name: replies[n] for name, replies in answers.items()}) for n, text in enumerate(texts)]
    write_answers(run, f"{set_name(run.questions)}-compared", rows, {})
    with open_judge(run, f"{set_name(run.questions)}-compared-judge.jsonl") as judge:
        verdicts = judge_pairs(judge, answer_set.questions, answers)
    strengths = bradley_terry(verdicts)
    by = {"judge": run.judge_model, "judge_url": run.judge_url, "models": [*answers], "prompt": PAIR}
    tables = {"pairs": win_rates(verdicts), "bradley_terry": strengths}
    protocol = {"kind": "comparison", **answer_set.first_protocol, **by}
    return Measured(protocol, {"bradley_terry": strengths[subject.name]}, tables)


@contextmanager
def open_judge(run: "EvaluateRun", name: str) -> Iterator[Judge]:
    """Open the judge; each prompt and reply is written to the file `name` at once."""
    assert run.judge_url is not None and run.judge_model is not None
    with (Path(run.output_dir) / name).open("w", encoding="utf-8") as lines:

        def keep(line: dict[str, Any]) -> None:
            print(json.dumps(line, ensure_ascii=False), file=lines, flush=True)

        try:
            yield Judge(run.judge_url, run.judge_model, keep)
        except JudgeError as error:
            advice = f"Earlier results are in {run.output_dir}/evaluation.json, the judge's replies in {name}."
            raise JudgeError(f"{error} {advice}") from error
