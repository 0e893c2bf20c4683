"""Define the options that all recipes share, and check them.

Not a recipe itself. Imports nothing heavy, because `python training/X.py --help` must answer at once.
"""

import os
import re
import shutil
import sys
from dataclasses import dataclass, field, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

from scratch_gpt_training.support.command_line import OF_A_LAUNCH, flag


if TYPE_CHECKING:
    from scratch_gpt_training.evaluate import EvaluateRun
    from scratch_gpt_training.generate import GenerateRun
    from scratch_gpt_training.prepare import PrepareRun
    from scratch_gpt_training.pretrain import PretrainRun
    from scratch_gpt_training.publish import PublishRun
    from scratch_gpt_training.train_tokenizer import TokenizerRun


# torch reads this once, at its first large buffer. If Linux allows it (madvise), buffers then come in pages of 2 MB
# instead of 4 KB ones that fault one by one. A value that the user has set, such as 0, is kept.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
ENCODER_HELP = (
    "Library that encodes text and trains a tokenizer, with the same result: gigatoken (the extra `fast`) or "
    "tokenizers; auto takes gigatoken where it is installed."
)
VOCABULARY = 4096  # tokens of a newly trained tokenizer without vocab_size
PRE_TOKENIZER = "gpt2"
PRE_TOKENIZER_HELP = (
    "Pattern that splits text before a new byte-level BPE merges bytes: gpt2, or qwen35 (all scripts)."
)


def option(default: Any, help: str) -> Any:
    """Return a dataclass field with its explanation for --help.

    The first page of --help explains only the fields that a class lists as COMMON.
    """
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class SourceOptions:
    """Data source."""

    COMMON = ("dataset",)

    dataset: str = option(
        "python-docs", "Training text: python-docs (embedded), a file, folder or glob, or a Hub dataset id."
    )
    dataset_config: str | None = option(None, "Configuration name of a Hub dataset.")
    dataset_split: str = option("train", "Split of a Hub dataset or of prepared text.")
    dataset_revision: str | None = option(None, "Branch, tag or commit of a Hub dataset.")
    text_column: str = option("text", "Column that holds the text.")


@dataclass(frozen=True)
class DataOptions(SourceOptions):
    """Splits, tokenizer and rows."""

    COMMON = ("tokenizer", "max_length")

    streaming: bool = option(
        False, "Read the data while training instead of loading it; the first documents are held out."
    )
    stream_lanes: int = option(
        8, "Number of readers that share a stream, in a fixed order; a multiple of the number of processes."
    )
    validation_fraction: float = option(0.1, "Fraction of the text that is held out for validation.")
    test_fraction: float = option(0.0, "Fraction of the text that is held out for a test at the end.")
    tokenizer: str | None = option(
        None, "Folder, Hub id or `train`; by default the model's tokenizer, or a newly trained one."
    )
    tokenizer_kind: Literal["bpe", "char"] = option("bpe", "Kind of tokenizer to train: bpe (byte-level) or char.")
    pre_tokenizer: Literal["gpt2", "qwen35"] = option(PRE_TOKENIZER, PRE_TOKENIZER_HELP)
    vocab_size: int | None = option(
        None, f"Vocabulary size of a newly trained tokenizer, and so of a new model; by default {VOCABULARY}."
    )
    max_length: int | None = option(None, "Tokens per row; by default the model's context length.")
    language: str | None = option(None, "Language of the text for the model card, by its code: `hi`, or `hi,en`.")


@dataclass(frozen=True)
class ModelOptions:
    """Model and fine-tuning."""

    COMMON = ("model", "preset", "tune")

    model: str | None = option(
        None, "Folder or Hub id of the model to start from; without it, a new model of --preset."
    )
    model_revision: str | None = option(None, "Branch, tag or commit of a Hub model and its tokenizer.")
    preset: str | None = option(
        None, "Size of a new model: tiny, shakespeare-char, small, gpt2, gpt2-medium, gpt2-large or gpt2-xl."
    )
    config_overrides: str | None = option(None, "Changes to the preset's config: `name=value,name=value`.")
    dropout: float | None = option(None, "Probability of all three dropouts; by default the model config's.")
    tune: str = option(
        "full", "Parameters to train: full, last-block, last-N-blocks, head or lora (LoRA needs --model)."
    )
    lora_rank: int = option(16, "LoRA rank r.")
    lora_alpha: float = option(16.0, "LoRA scaling: alpha / rank.")
    lora_dropout: float = option(0.0, "Dropout of LoRA's input.")
    lora_targets: Literal["default", "attention", "all-linear"] = option(
        "default", "Matrices with LoRA: query, key and value; also the attention output; also the MLP and the head."
    )
    lora_init: Literal["default", "gaussian", "orthogonal", "pissa", "olora"] = option(
        "default", "Initialization of LoRA, by peft's names."
    )
    use_rslora: bool = option(False, "Scale LoRA by alpha / sqrt(rank) instead.")
    use_dora: bool = option(False, "Use DoRA: train magnitude and direction of each matrix row separately.")
    quantize_base: Literal["no", "nf4", "int8"] = option(
        "no", "Store the frozen matrices in 4 or 8 bits: less memory, slower steps."
    )


@dataclass(frozen=True)
class OptimizationOptions:
    """Optimization."""

    COMMON = ("batch_size", "max_steps", "epochs", "learning_rate")

    batch_size: int = option(8, "Rows per process in one forward pass.")
    accumulation_steps: int = option(1, "Forward and backward passes per optimizer step.")
    max_steps: int | None = option(None, "Stop after N optimizer steps; 0 only evaluates.")
    epochs: float | None = option(
        None,
        "Stop after N passes over the data; 3 if neither this, --max-steps nor --max-tokens is given (classify, "
        "instruct: up to 10 until 1,000 steps).",
    )
    max_tokens: int | None = option(None, "Stop after N training tokens.")
    max_time: float | None = option(None, "Stop after N minutes of training at the latest.")
    optimizer: Literal["adamw", "muon"] = option(
        "adamw", "adamw, or muon (Muon for weight matrices of the blocks, AdamW for the rest)."
    )
    beta2: float = option(0.95, "AdamW's decay rate of squared gradients; small batches want more, such as 0.99.")
    learning_rate: float | None = option(
        None,
        "Peak of the schedule; by default 1e-3; with --model 5e-5 at GPT-2's width (LoRA: 5e-4), more for narrower "
        "models.",
    )
    sweep: str | None = option(
        None,
        "Try all combinations of several values, such as `learning_rate=1e-3,3e-3 dropout=0,0.1`, each in its own "
        "folder, and name the best.",
    )
    learning_rates: str | None = option(None, "Short form of --sweep for rates: `1e-4,3e-4,1e-3`.")
    min_learning_rate: float | None = option(None, "End of the schedule; by default a tenth of the peak.")
    schedule: Literal["cosine", "linear"] = option("cosine", "Shape of the decay from the peak to the end.")
    warmup_steps: int | None = option(None, "Steps of linear warm-up; by default a twentieth of the run, at most 100.")
    weight_decay: float = option(0.1, "Weight decay, applied to matrices only.")
    max_grad_norm: float = option(1.0, "Clip the gradient to this norm; 0 turns clipping off.")
    max_bad_steps: int = option(5, "Stop after N steps in a row whose loss or gradient is not finite.")
    seed: int = option(0, "Seed of initial weights, splits, row order and dropout.")


@dataclass(frozen=True)
class OutputOptions:
    """Evaluation and output."""

    COMMON = ("output_dir", "resume")

    output_dir: str = option("runs/run", "Folder of the run; one that holds files is refused without --overwrite.")
    overwrite: bool = option(False, "Replace the run in --output-dir.")
    resume: str | None = option(
        None,
        "Continue from the newest checkpoint in --output-dir (`latest`, or no value) or from a path. "
        "Options that are not given are read from the run.yaml there.",
    )
    allow_changed: bool = option(False, "Resume even if model, data, seed, batch or optimization changed.")
    eval_every: int | None = option(
        None, "Steps between evaluations; by default up to ten evaluations, depending on the length of the run."
    )
    eval_batches: int | None = option(None, "Batches per process in an evaluation during training; by default all.")
    patience: int | None = option(None, "Stop after N evaluations without improvement; keeps the best weights.")
    keep_best: bool = option(
        False, "Save the weights with the lowest validation loss as model/, and the last ones as last/."
    )
    checkpoint_every: int | None = option(None, "Steps between checkpoints; by default a tenth of the run.")
    keep: int = option(2, "Number of checkpoints to keep, besides the best.")
    on_save_error: Literal["stop", "continue"] = option("stop", "Stop or continue if a checkpoint cannot be saved.")
    async_save: bool = option(False, "Write checkpoints in the background: less waiting, more memory.")
    log_every: int = option(10, "Steps per line of metrics.jsonl.")
    report_to: str | None = option(None, "Tracker: tensorboard, trackio or wandb (install scratch_gpt[wandb] etc.).")
    sample_prompt: str | None = option(
        None, "Print a sampled continuation of this text at each evaluation; by default only one at the end."
    )
    energy: str | None = option(
        None,
        "Record energy and CO2 with codecarbon (an extra); three-letter country code such as FRA.",
    )
    push_to_hub: str | None = option(
        None, "Repository user/name: publish the run there at its end, as `publish` does."
    )


@dataclass(frozen=True)
class LaunchOptions:
    """Launch."""

    device: Literal["auto", "cpu", "cuda", "mps"] = option("auto", "Device to train on.")
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = option(
        "auto", "auto: bf16 if the hardware supports it natively."
    )
    compile: bool = option(False, "Compile the model with torch.compile: 10 to 50 s at the start, then faster steps.")
    gradient_checkpointing: bool = option(
        False, "Recompute activations in the backward pass: less memory, about a third more time."
    )
    workers: int = option(0, "Processes that prepare batches.")
    expect_processes: int | None = option(None, "Fail unless N processes are running.")
    hang_timeout: float = option(30.0, "Stop after N minutes without progress; 0 never stops.")
    plan: bool = option(False, "Print the memory and time that this run needs, and stop before reading data.")
    plan_devices: int = option(1, "Also plan for N devices of --plan-tflops.")
    plan_tflops: float | None = option(
        None, "Rate that one device reaches in practice, in 10^12 operations per second."
    )


@dataclass(frozen=True)
class Run(LaunchOptions, OutputOptions, OptimizationOptions, ModelOptions, DataOptions):
    """Options shared by all training recipes, in the groups that `--help` prints."""

    MIN_STEPS = 0  # a small data set gets more epochs than 3 by default, until it has this number of steps


MAX_COUNT, MAX_TOKENS = 10**12, 2**24  # more than any run can count, or hold in memory
OPTION_LIMITS = {  # field: its smallest and largest value
    **dict.fromkeys(("batch_size", "accumulation_steps"), (1, 2**20)),
    **dict.fromkeys(("max_length", "stride", "vocab_size", "max_new_tokens"), (1, MAX_TOKENS)),
    **dict.fromkeys(
        ("keep", "log_every", "patience", "eval_every", "eval_batches", "checkpoint_every"), (1, MAX_COUNT)
    ),
    **dict.fromkeys(("plan_devices", "max_bad_steps", "preview", "deduplicate_passages"), (1, MAX_COUNT)),
    **dict.fromkeys(("lora_rank", "expect_processes", "stream_lanes", "duplicate_ngram"), (1, 2**16)),
    **dict.fromkeys(("contamination_ngram", "seeds", "judge_repeats", "samples"), (1, 2**16)),
    **dict.fromkeys(("prompt_lookup_num_tokens", "num_assistant_tokens"), (1, 2**16)),
    **dict.fromkeys(("max_steps", "warmup_steps", "max_time", "max_grad_norm", "answers"), (0, MAX_COUNT)),
    **dict.fromkeys(("mask_inputs", "hang_timeout"), (0, MAX_COUNT)),
    **dict.fromkeys(("epochs", "lora_alpha", "beta", "simpo_gamma", "temperature"), (0, 10**6)),
    **dict.fromkeys(("learning_rate", "min_learning_rate"), (0, 1e32)),  # the loop handles a rate that diverges
    **dict.fromkeys(("dropout", "lora_dropout", "beta2", "top_p"), (0, 1)),
    "max_tokens": (0, 10**18),
    "weight_decay": (0, 100),
    "workers": (0, 2**10),
    "top_k": (0, MAX_TOKENS),
    "seed": (0, 2**63 - 1),
}


RunT = TypeVar("RunT", bound=Run)


def dataset_location(run: SourceOptions, dataset: str | None = None):
    """Return the location of a run's dataset, or of another one with the same config, split and revision."""
    from scratch_gpt.data.sources.location import Location

    name = run.dataset if dataset is None else dataset
    return Location(name, run.dataset_config, run.dataset_split, run.dataset_revision)


def with_default_model(run: RunT, name: str) -> RunT:
    """Return the run with this model if it names neither a model nor a preset."""
    return replace(run, model=name) if run.model is None and run.preset is None else run


def dropout_changes(run: Run) -> dict[str, float]:
    """Return the config fields that --dropout sets."""
    names = ("embed_dropout", "attention_dropout", "resid_dropout")
    return {} if run.dropout is None else dict.fromkeys(names, run.dropout)


def vocabulary_size(run: "Run | PrepareRun | TokenizerRun") -> int:
    """Return the vocabulary size of a tokenizer that the run trains."""
    return VOCABULARY if run.vocab_size is None else run.vocab_size


def trains_tokenizer(run: Run) -> bool:
    """Return whether the run trains a tokenizer on its data (prepared data have their own)."""
    return (run.tokenizer or run.model or "train") == "train"


def unused_options(run: Run) -> dict[str, str]:
    """Return the shared fields that this run does not use, with the reasons; each recipe adds its own for `parse`."""
    unused = {} if run.streaming else {"stream_lanes": "it needs --streaming true"}
    if not trains_tokenizer(run):
        reason = f"the tokenizer of {run.tokenizer or run.model} is used, so none is trained"
        unused |= dict.fromkeys(("vocab_size", "tokenizer_kind", "pre_tokenizer"), reason)
    elif run.tokenizer_kind != "bpe":
        unused["pre_tokenizer"] = "it needs --tokenizer-kind bpe"
    if run.model is None:
        unused["model_revision"] = "it needs --model"
    return unused | unused_source(run.dataset, getattr(run, "test_dataset", None))


def unused_source(*names: str | None) -> dict[str, str]:
    """Return the fields of `SourceOptions` that opening these datasets does not use, with the reasons."""
    from scratch_gpt.data.manifest import is_prepared
    from scratch_gpt.utils.local_files import looks_local

    datasets = [name for name in names if name is not None]
    unused: dict[str, str] = {}
    if all(name == SourceOptions.dataset or looks_local(name) for name in datasets):
        unused |= dict.fromkeys(("dataset_config", "dataset_revision"), "it needs a dataset of the Hub")
        if not any(map(is_prepared, datasets)):
            unused["dataset_split"] = "it needs a dataset of the Hub, or prepared text"
    return unused


def find_corpus(run: SourceOptions, name: str) -> str:
    """Return the dataset that a name in --mixture means: a path in the folder --dataset, if it exists."""
    inside = Path(run.dataset) / name
    return str(inside) if not Path(name).exists() and inside.exists() else name


def check_fields(run: "SourceOptions | GenerateRun | PublishRun") -> None:
    """Raise a ValueError for the first field of any recipe with an invalid value."""
    for name, (smallest, largest) in OPTION_LIMITS.items():
        check_range(name, getattr(run, name, None), smallest, largest)
    for item in fields(run):
        choices = get_args(item.type) if getattr(item.type, "__origin__", None) is Literal else ()
        if choices and getattr(run, item.name) not in choices:
            raise ValueError(
                f"{flag(item.name)} must be one of {', '.join(choices)} (you gave {getattr(run, item.name)})."
            )
    for name in ("output_dir", "dataset", "model", "tokenizer", "resume", "mixture"):
        if getattr(run, name, None) == "":
            raise ValueError(f"{flag(name)} is empty.")
    for name in ("prompt", "sample_prompt", "joiner"):
        check_unicode(name, getattr(run, name, None))
    if getattr(run, "compile", False):
        check_compiler()


def check_range(name: str, value: float | None, smallest: float, largest: float) -> None:
    """Raise a ValueError for a number outside the limits of its field; None is allowed."""
    if value is not None and not value >= smallest:
        raise ValueError(f"{flag(name)} must be at least {smallest} (you gave {value}).")
    if value is not None and not value <= largest:
        raise ValueError(f"{flag(name)} must be at most {largest:,} (you gave {value}).")


def check_unicode(name: str, text: str | None) -> None:
    """Raise a ValueError for text with bytes that were not UTF-8, which no tokenizer accepts."""
    if text is not None and not text.isascii():
        from scratch_gpt.utils.foreign import check_text

        check_text(text, name)


def check_language(codes: str | None) -> None:
    """Raise a ValueError unless every code has the form of one that the Hub takes for `language`."""
    for code in [] if codes is None else codes.split(","):
        if re.fullmatch(r"[a-z]{2,3}(-[A-Za-z]{4})?|multilingual|code", code.strip()) is None:
            raise ValueError(
                f"--language must be codes of ISO 639, such as hi or hi,en; in a file, no is written 'no' (you gave "
                f"{code.strip() or codes!r})."
            )


def check_compiler() -> None:
    """Raise a ValueError if torch.compile would not find a C++ compiler: $CXX, or the system's default."""
    usual = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    name = os.environ.get("CXX", usual).split()[0]
    if shutil.which(name) is None:
        raise ValueError(
            f"--compile needs a C++ compiler, and {name} is not installed. Install one, or remove --compile."
        )


def check_run(run: Run) -> None:
    """Raise a ValueError for the first field of a training run with an invalid value."""
    check_fields(run)
    check_language(run.language)
    check_model_folder(run.model)
    if run.model is not None and run.tokenizer == "train":
        raise ValueError("A tokenizer trained here does not fit the embeddings of --model: remove --tokenizer.")
    if run.beta2 >= 1:
        raise ValueError(f"--beta2 must be below 1 (you gave {run.beta2}).")
    check_tune(run)
    if run.model is not None and (run.preset is not None or run.config_overrides is not None):
        raise ValueError("--model already fixes the size: remove --preset and --config-overrides.")
    if run.overwrite and run.resume:
        raise ValueError("--overwrite removes the run that --resume would continue: give one of them.")
    if (run.keep_best or run.patience is not None) and run.validation_fraction == 0:
        raise ValueError("--keep-best and --patience need a validation split. Give a --validation-fraction above 0.")
    if run.plan_tflops is not None and run.plan_tflops <= 0:
        raise ValueError(f"--plan-tflops must be above 0 (you gave {run.plan_tflops}).")
    if not run.plan and (run.plan_tflops is not None or run.plan_devices != 1):
        raise ValueError("--plan-devices and --plan-tflops only work with --plan true. Add it, or remove them.")
    if run.streaming and run.epochs is not None:
        raise ValueError("--streaming has no epochs: give --max-steps or --max-tokens instead of --epochs.")
    trackers = ("tensorboard", "trackio", "wandb")
    if run.report_to not in (None, "none", *trackers):
        raise ValueError(f"--report-to must be one of {', '.join(trackers)}, or none (you gave {run.report_to}).")
    if run.report_to in trackers and find_spec(run.report_to) is None:
        raise ValueError(
            f'{run.report_to} is not installed; it is an extra: pip install "scratch_gpt[{run.report_to}]"'
        )
    if run.energy is not None:
        if find_spec("codecarbon") is None:
            raise ValueError('codecarbon is not installed; it is an extra: pip install "scratch_gpt[energy]"')
        from scratch_gpt.runs.energy import check_country

        check_country(run.energy)
    if run.push_to_hub is not None and os.environ.get("RANK", "0") == "0":
        from scratch_gpt.hub.publish import check_access

        check_access(run.push_to_hub)  # before training; only once, because the Hub limits requests


def check_rows(run: "PrepareRun | PretrainRun") -> None:
    """Raise a ValueError for ways of making rows that cannot be combined."""
    if run.pack and run.pad:
        raise ValueError("--pack puts several documents into a row, and --pad puts one into each. Give one of them.")
    if (run.pack or run.pad) and (run.stride is not None or run.drop_tail):
        raise ValueError("--stride and --drop-tail only work with windows: remove them with --pack and --pad.")


def check_tune(run: Run) -> None:
    """Raise a ValueError for an invalid choice of the trained parameters."""
    if re.fullmatch(r"full|head|lora|last-(block|[1-9]\d*-blocks)", run.tune) is None:
        raise ValueError(f"--tune must be full, last-block, last-N-blocks, head or lora (you gave {run.tune}).")
    if run.lora_dropout >= 1:
        raise ValueError(f"--lora-dropout must be below 1 (you gave {run.lora_dropout}).")
    if run.tune == "lora" and run.model is None:
        raise ValueError("--tune lora needs --model: it adapts an existing model.")
    of_lora = (item for item in fields(Run) if item.name.startswith(("lora_", "use_", "quantize_")))
    changed = next((item.name for item in of_lora if getattr(run, item.name) != item.default), None)
    if changed and run.tune != "lora":
        raise ValueError(f"{flag(changed)} only works with --tune lora.")
    if run.tune == "lora" and find_spec("peft") is None:
        raise ValueError('peft is not installed; it is an extra: pip install "scratch_gpt[lora]"')


def check_encoder(name: str) -> None:
    """Raise a ValueError if the library of --encoder is not installed."""
    if name == "gigatoken" and find_spec(name) is None:
        raise ValueError('gigatoken is not installed; it is an extra: pip install "scratch_gpt[fast]"')


def check_model_folder(name: str | None, field: str = "model") -> None:
    """Raise a ValueError for a folder without model or adapter; a name that is not a folder may be on the Hub."""
    if name is not None and not Path(name).exists() and (Path(name).is_absolute() or name.count("/") > 1):
        raise ValueError(f"--{field} {name}: no such folder. A Hub name looks like user/model.")
    kinds = ("config.json", "adapter_config.json")
    if name is not None and Path(name).is_dir() and not any((Path(name) / kind).exists() for kind in kinds):
        hint = f" Did you mean {Path(name) / 'model'}?" if (Path(name) / "model").is_dir() else ""
        if (Path(name) / "state.json").exists():  # an old checkpoint without these files
            hint = " Copy config.json and the tokenizer's files from its run's model/ into it."
        raise ValueError(f"--{field} {name} is not a model folder (no config.json).{hint}")


OF_A_LAUNCH |= {"plan_devices", "plan_tflops"}


def missed_shares(run: "Run | PrepareRun", sizes: dict[str, float], of: str) -> list[str]:
    """Return a line for each held-out split with a share far from the requested one.

    Args:
        sizes: of all splits, including "train".
        of: the unit of the sizes: text, rows.
    """
    from scratch_gpt.data.splits import is_near

    lines = []
    for name in ("validation", "test"):
        share, target_share = sizes.get(name, 0) / sum(sizes.values()), getattr(run, f"{name}_fraction")
        if name in sizes and not is_near(share, target_share):
            lines.append(
                f"{name} is {100 * share:.1f} % of the {of}, not the {100 * target_share:g} % of --{name}-fraction: "
                "some rows that stay in one piece or together are too large for it. Give more rows, or another share."
            )
    return lines


def data_sets(run: "EvaluateRun") -> list[str]:
    """Return all data sets that an evaluation measures."""
    sets = [
        run.dataset,
        *(run.texts or ()),
        *(run.multiple_choice or ()),
        *(run.last_word or ()),
        run.ifeval,
        run.questions,
    ]
    return [path for path in sets if path is not None]
