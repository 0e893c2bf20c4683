"""A model and held-out data -> evaluation.json: how likely it finds them.

    python training/evaluate.py MODEL --dataset my.txt

MODEL is a folder of ours, a stock GPT-2 folder, an adapter, or one of these on the Hub. What is measured is written to
output_dir/evaluation.json as soon as it is known, beside what stands there of the same model.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from recipe import Source, check_fields, check_model_folder, check_writable, one_clear_line, option, parse, relative


@dataclass(frozen=True)
class EvaluateRun(Source):
    """What to measure, on what, and how."""

    model: str | None = option(None, "Folder or Hub id; may be given as the first word.")
    model_revision: str | None = option(None, "Branch, tag or commit of a Hub model.")
    output_dir: str = option("runs/evaluate", "Where evaluation.json is; what it says of other sets stays.")

    dataset: str | None = option(None, "Text to measure the loss on: python-docs, files, or a Hub dataset id.")
    joiner: str | None = option(None, "What stands between documents (\\n: a new line); by default each ends in EOS.")
    max_length: int | None = option(None, "Tokens that the model sees at most; by default its whole context.")
    stride: int | None = option(None, "New tokens in a window; by default max_length, less gives each more context.")

    batch_size: int = option(8, "Rows in a batch; no result depends on it.")
    seed: int = option(0, "Decides all draws.")
    device: Literal["auto", "cpu", "cuda", "mps"] = option("auto", "Where to compute, in fp32.")


class Subject(NamedTuple):
    """A model that is looked at."""

    name: str
    model: Any
    tokenizer: Any
    max_length: int
    device: Any


def load(run: EvaluateRun, name: str, revision: str | None = None) -> Subject:
    """A model and its tokenizer where it is to be run; ValueError where they do not fit."""
    from scratch_gpt.conversion import load_model
    from scratch_gpt.launch import make_accelerator
    from scratch_gpt.tokenizer import check_vocabulary, load_tokenizer

    device = make_accelerator(run.device, "no").device
    model = load_model(name, revision).to(device).eval()
    tokenizer = load_tokenizer(name, revision)
    check_vocabulary(tokenizer, model.config.vocab_size)
    limit = model.config.max_position_embeddings
    if run.max_length is not None and run.max_length > limit:
        raise ValueError(f"max_length {run.max_length} is more than the context of {name}, {limit} tokens.")
    max_length = run.max_length or limit
    if run.stride is not None and run.stride > max_length:
        raise ValueError(f"stride {run.stride} leaves gaps between windows of {max_length}; give less or as much.")
    return Subject(name, model, tokenizer, max_length, device)


def measure_text(run: EvaluateRun, subject: Subject):
    """Loss, perplexity and bits per byte of all documents; each token but the first is asked once."""
    from functools import partial

    from scratch_gpt.data.collate import collate_rows
    from scratch_gpt.data.sources import describe_source, joined_stream, open_documents, token_stream
    from scratch_gpt.data.windows import Windows
    from scratch_gpt.evaluation import Measured, language_metrics, mean_losses
    from scratch_gpt.objectives import causal_lm
    from scratch_gpt.order import Share, evaluation_batches
    from scratch_gpt.tokenizer import encode_batch, end_of_text_id

    where = (run.dataset, run.dataset_config, run.dataset_split, run.dataset_revision)
    documents = open_documents(*where, run.text_column)
    encode = partial(encode_batch, subject.tokenizer)
    if run.joiner is None:
        stream = token_stream(documents, encode, end_of_text_id(subject.tokenizer), "Tokenizing")
    else:
        stream = joined_stream(documents, encode, run.joiner.replace("\\n", "\n"))
    windows = Windows(stream.ids, subject.max_length, run.stride, overlap="context")
    batches = evaluation_batches(windows, collate_rows, Share(run.batch_size), subject.device)
    loss = mean_losses(subject.model, batches, causal_lm)["loss"]
    protocol = {
        "kind": "text",
        "source": describe_source(*where),
        "documents": len(documents),
        "bytes": stream.bytes,
        "tokens": len(stream.ids),
        "asked": len(stream.ids) - 1,
        "max_length": subject.max_length,
        "stride": run.stride or subject.max_length,
        "joiner": "EOS after each document" if run.joiner is None else run.joiner,
        "sha256": stream.sha256,
    }
    return Measured(protocol, language_metrics(loss, len(stream.ids) / stream.bytes))


def set_name(path: str) -> str:
    """What the results on a file, folder or Hub dataset are called."""
    return Path(path).stem


def check(run: EvaluateRun) -> None:
    """Raise a ValueError for what cannot be meant, before anything is loaded."""
    check_fields(run)
    if run.model is None:
        raise ValueError("Which model? Give its folder or Hub id: python training/evaluate.py MODEL ...")
    check_model_folder(run.model)
    check_writable(Path(run.output_dir))
    if run.dataset is None:
        raise ValueError("There is nothing to measure: give --dataset.")


def main(argv: list[str] | None = None) -> None:
    with one_clear_line(stopped="What was measured until then is written."):
        run = parse(EvaluateRun, argv, positional=("model",))
        check(run)

        from scratch_gpt.evaluation import read_evaluation, record_measured

        file, name = Path(run.output_dir) / "evaluation.json", relative(run.model)
        read_evaluation(file, name)  # refuses a file about another model before anything is computed
        subject = load(run, run.model, run.model_revision)
        jobs = {}  # name of a set -> what measures it
        if run.dataset is not None:
            jobs[set_name(run.dataset)] = measure_text
        for job, measure in jobs.items():
            measured = measure(run, subject)
            record_measured(file, name, job, measured)
            print(f"{job}: {'  '.join(f'{key} {value:.4f}' for key, value in measured.results.items())}")
        print(f"Written: {file}")


if __name__ == "__main__":
    main()
