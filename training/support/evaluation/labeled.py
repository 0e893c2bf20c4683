"""Read labeled texts and run a classifier, for classify.py and evaluate.py. Not a recipe itself."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from scratch_gpt import ScratchGPTForSequenceClassification
from scratch_gpt.conversion.load import load_model
from scratch_gpt.data.columns import Columns
from scratch_gpt.data.rows.collate import collate_labeled
from scratch_gpt.data.rows.labels import Examples, LabeledRows, match_labels, read_examples
from scratch_gpt.data.sources.documents import open_rows
from scratch_gpt.data.sources.location import Location
from scratch_gpt.evaluation.classification import (
    classification_metrics,
    classification_tables,
    classify_batches,
    prediction_lines,
    sum_batches,
)
from scratch_gpt.runs.evaluation_file import Measured
from scratch_gpt.tokenization.tokenizer import check_vocabulary, encode_batch, load_tokenizer
from scratch_gpt.train.accelerator import make_accelerator
from scratch_gpt.train.batches import BatchLayout, evaluation_batches
from scratch_gpt.utils.files import write_text
from scratch_gpt.utils.foreign import shown
from scratch_gpt_training.support.commands import command
from scratch_gpt_training.support.evaluation.measurements import is_language_model
from scratch_gpt_training.support.options import dataset_location
from scratch_gpt_training.support.run.output_dir import set_name


if TYPE_CHECKING:
    from scratch_gpt_training.classify import ClassifyRun
    from scratch_gpt_training.evaluate import EvaluateRun


class Classifier(NamedTuple):
    """A trained classifier on its device."""

    model: Any
    tokenizer: Any
    names: list[str]
    max_length: int
    device: Any

    @property
    def has_many(self) -> bool:
        """Whether a text can have several labels, so that each class is a separate decision."""
        return self.model.config.problem_type == "multi_label_classification"


def load_classifier(run: "ClassifyRun | EvaluateRun") -> Classifier:
    """Load the classifier that a run names; ValueError if it is another kind of model."""
    assert run.model is not None
    if is_language_model(run.model, run.model_revision):
        train = command(f"classify --model {run.model} --dataset LABELED.csv")
        raise ValueError(f"{run.model} is a language model, not a classifier. Train one from it: {train}")
    device = make_accelerator(run.device, "no").device
    model: Any = load_model(run.model, run.model_revision, ScratchGPTForSequenceClassification, needs_head=True)
    if model.config.num_labels < 2:
        raise ValueError(f"{run.model} has one output, so it has no classes.")
    tokenizer = load_tokenizer(run.model, run.model_revision)
    check_vocabulary(tokenizer, model.config.vocab_size)
    length = min(run.max_length or tokenizer.model_max_length, model.config.max_position_embeddings)
    names = [model.config.id2label[id] for id in range(model.config.num_labels)]
    return Classifier(model.to(device).eval(), tokenizer, names, length, device)


def parse_column_names(column_names: str | None) -> list[str] | None:
    """Split `label,text` to ["label", "text"]."""
    return None if column_names is None else [name.strip() for name in column_names.split(",")]


def open_labeled(
    run: "ClassifyRun | EvaluateRun", where: Location, text_column: str, least: int = 2
) -> tuple[Examples, dict[str, Any], list[str]]:
    """Return the examples of a data set, their source, and notices about skipped rows.

    Args:
        run: has `label_column`, `label_separator` and `column_names`.
        least: the smallest number of classes allowed.
    """
    hint = "Choose with --label-column or --text-column; a file without a header needs --column-names."
    columns = Columns(((text_column, run.label_column),), hint=hint)
    rows, source, notices = open_rows(where, columns, parse_column_names(run.column_names))
    feature = rows.features[run.label_column]
    names = getattr(getattr(feature, "feature", feature), "names", None)  # of a ClassLabel, or of a list of them
    values = rows[text_column][:], rows[run.label_column][:]
    examples = read_examples(*values, names=names, separator=run.label_separator, least=least)
    return examples, source, notices


def batches_of(classifier: Classifier, rows: Sequence[dict[str, Any]], batch_size: int) -> Iterator[tuple[Any, bool]]:
    """Yield all rows in batches, in order, on the classifier's device."""
    collate = partial(
        collate_labeled, pad_token_id=classifier.tokenizer.pad_token_id or 0, max_length=classifier.max_length
    )  # any id can be the padding, because there is a mask
    return evaluation_batches(rows, collate, BatchLayout(batch_size), classifier.device)


def predicted_lines(
    classifier: Classifier, rows: Sequence[dict[str, Any]], texts: list[str], batch_size: int, labels: Any = None
) -> Iterator[str]:
    """Yield the prediction for each row as JSON; `texts` and `labels` (None if unknown) belong to the rows."""
    batches = (batch for batch, _ in batches_of(classifier, rows, batch_size))
    scores = classify_batches(classifier.model, batches, classifier.has_many)
    return prediction_lines(texts, scores, classifier.names, classifier.has_many, labels)


def measure_labeled(run: "EvaluateRun", classifier: Classifier) -> Measured:
    """Return a classifier's metrics and tables on --dataset, and write NAME-predictions.jsonl."""
    assert run.dataset is not None
    where = dataset_location(run)
    examples, source, notices = open_labeled(run, where, run.text_column, least=1)
    for notice in notices:
        print(shown(notice))
    matched = match_labels(examples, classifier.names, classifier.has_many)
    label2id = {name: id for id, name in enumerate(classifier.names)}
    rows = LabeledRows(matched, partial(encode_batch, classifier.tokenizer), label2id, classifier.max_length)
    sums = sum_batches(classifier.model, batches_of(classifier, rows, run.batch_size))
    lines = predicted_lines(classifier, rows, matched.texts, run.batch_size, matched.labels)
    folder = Path(run.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / f"{set_name(run.dataset)}-predictions.jsonl", "".join(lines))
    protocol = {"kind": "labels", "source": source, "max_length": classifier.max_length, **rows.facts()}
    return Measured(protocol, classification_metrics(sums), classification_tables(sums, classifier.names))


__all__ = [
    "Classifier",
    "load_classifier",
    "measure_labeled",
    "open_labeled",
    "parse_column_names",
    "predicted_lines",
]
