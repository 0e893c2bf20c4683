"""Repeat the training runs of "Build a Large Language Model (From Scratch)", as far as they run on a small machine.

    python tests/benchmarks/bench_book.py --data FOLDER --model BASE [--only PART] [--out FILE.json]

FOLDER holds the book's the-verdict.txt, instruction-data.json and instruction-data-with-preference.json, GPT-2's
tokenizer as gpt2-tokenizer/, and classification/sms_spam.tsv. BASE is the folder of a small pretrained model, because
GPT-2's weights are not part of FOLDER. Parts:

changes    single changes to the pretraining of chapter 5 with two small models, whose vocabulary is the tokens of the
           text: 384 wide with 4 layers, and 768 wide (as in the book) with 2; the rate is the book's times 768 / width
pretrain   training/configs/the_verdict.yaml at its full size
classify   the config of chapter 6, from BASE
lora       the config of appendix E, from BASE
instruct   the config of chapter 7, from BASE
prefer     the config of its preference tuning, from the models that `instruct` has tuned

The parts from BASE take the book's learning rate times 768 / the width of BASE. If stopped, run it again: finished
runs are kept in --work. --only runs one part; the others stay as they are in --out.
"""

import argparse
import json
import os
from pathlib import Path

import torch
from runs import REPO, recipe, slug
from torch import nn

from scratch_gpt import ScratchGPTConfig, ScratchGPTForCausalLM, Windows, encode, load_tokenizer
from scratch_gpt.evaluation.statistics import over_seeds
from scratch_gpt.runs.folder import read_metrics


CONFIGS = REPO / "training" / "configs"
GPT2_WIDTH, CONTEXT, RATE, SEED = 768, 256, 4e-4, 123
SHAPES = {
    384: {"num_hidden_layers": 4, "num_attention_heads": 6},
    768: {"num_hidden_layers": 2, "num_attention_heads": 12},
}
TORCH = {"embeddings": 1.0, "linear": "torch"}  # torch's default initialization, as in the book
BOOK = {"beta2": 0.999, "decay": "all"}
BEFORE = "none: GPT-2's initialization, beta2 0.95, decay of matrices only"
NOW = "embeddings of std 1 and beta2 0.999, as in the_verdict.yaml"
CHANGES = {  # name: what differs from the run that this project had as the book's
    BEFORE: {},
    "token and position embeddings of std 1": {"embeddings": 1.0},
    "all of the book": {**TORCH, **BOOK},
    "all of the book, with embeddings of std 0.02": {**TORCH, **BOOK, "embeddings": 0.02},
    "linear layers by torch's default": {"linear": "torch"},
    "only token embeddings of std 1": {"embeddings": 1.0, "positions": 0.02},
    "only position embeddings of std 1": {"positions": 1.0},
    "residual projections not scaled down": {"linear": "not scaled"},
    "dropout 0": {"dropout": 0.0},
    "beta2 0.999": {"beta2": 0.999},
    "decay of all parameters": {"decay": "all"},
    "warm-up of 9 steps": {"warmup": 9},
    "gradients clipped to norm 1": {"clip": 1.0},
    NOW: {"embeddings": 1.0, "beta2": 0.999},
}
AT_768 = [name for name in CHANGES if name.startswith(("none", "all of the book", "embeddings of std 1"))]


# --- Single changes ----------------------------------------------------------------------------------------------


def read_windows(data: Path) -> tuple[dict[str, Windows], int]:
    """Return the windows of the story, its last tenth as validation, and the number of distinct tokens."""
    tokenizer, text = load_tokenizer(data / "gpt2-tokenizer"), (data / "the-verdict.txt").read_text(encoding="utf-8")
    border = int(0.9 * len(text))
    ids = {"train": encode(tokenizer, text[:border]), "validation": encode(tokenizer, text[border:])}
    places = {id: place for place, id in enumerate(sorted({*ids["train"], *ids["validation"]}))}
    streams = {name: torch.tensor([places[id] for id in part]).numpy() for name, part in ids.items()}
    return {name: Windows(stream, CONTEXT, drop_tail=True) for name, stream in streams.items()}, len(places)


def make_model(width: int, vocabulary: int, change: dict) -> ScratchGPTForCausalLM:
    torch.manual_seed(SEED)
    sizes = {"hidden_size": width, **SHAPES[width], "vocab_size": vocabulary, "max_position_embeddings": CONTEXT}
    sizes["drop_rate"] = change.get("dropout", 0.1)
    model = ScratchGPTForCausalLM(ScratchGPTConfig(**sizes, attention_bias=False, tie_word_embeddings=False))
    linear = change.get("linear")
    for module in model.modules():
        if isinstance(module, nn.Linear) and linear == "torch":
            module.reset_parameters()
        elif linear == "not scaled" and getattr(module, "writes_residual", False):
            nn.init.normal_(module.weight, std=0.02)
    std = change.get("embeddings", 0.02)
    nn.init.normal_(model.transformer.embed_tokens.weight, std=std)
    nn.init.normal_(model.transformer.embed_positions.weight, std=change.get("positions", std))
    return model


@torch.no_grad()
def mean_loss(model: ScratchGPTForCausalLM, windows: Windows) -> float:
    model.eval()
    losses = [model(**as_batch(windows, [row])).loss.item() for row in range(len(windows))]
    model.train()
    return sum(losses) / len(losses)


def as_batch(windows: Windows, rows: list[int]) -> dict[str, torch.Tensor]:
    chosen = [windows[row] for row in rows]
    return {name: torch.stack([torch.from_numpy(row[name]) for row in chosen]) for name in chosen[0]}


def train(windows: dict[str, Windows], vocabulary: int, width: int, change: dict) -> dict:
    """Train for ten epochs of nine steps, as the book does, and return the losses after the last step."""
    model, rate = make_model(width, vocabulary, change).train(), RATE * GPT2_WIDTH / width
    parameters = [*model.parameters()]
    is_decayed = [change.get("decay") == "all" or parameter.dim() > 1 for parameter in parameters]
    groups = [
        {"params": [p for p, yes in zip(parameters, is_decayed, strict=True) if yes == kind], "weight_decay": decay}
        for kind, decay in ((True, 0.1), (False, 0.0))
    ]
    betas = (0.9, change.get("beta2", 0.95))
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], rate, betas, fused=True)
    step = 0
    for _ in range(10):
        order = torch.randperm(len(windows["train"])).tolist()
        for start in range(0, len(order) - 1, 2):
            step += 1
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1, step / change.get("warmup", 1))
            optimizer.zero_grad()
            model(**as_batch(windows["train"], order[start : start + 2])).loss.backward()
            if "clip" in change:
                nn.utils.clip_grad_norm_(parameters, change["clip"])
            optimizer.step()
    return {"steps": step, **{name: mean_loss(model, rows) for name, rows in windows.items()}}


def changes(options) -> dict:
    windows, vocabulary = read_windows(options.data)
    runs: dict[str, dict] = {f"{width}": {} for width in SHAPES}
    for width, name in [*((384, name) for name in CHANGES), *((768, name) for name in AT_768)]:
        file = options.work / "changes" / f"{slug(name)}{'' if width == 384 else '-768'}.json"
        if not file.exists():
            if options.done_only:
                continue
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(train(windows, vocabulary, width, CHANGES[name])))
            print(width, name, file.read_text(), flush=True)
        runs[f"{width}"][name] = json.loads(file.read_text())
    return {"vocabulary": vocabulary, "seed": SEED, "windows": len(windows["train"]), "runs": runs}


# --- The recipes -------------------------------------------------------------------------------------------------


def pretrain(options) -> dict:
    """Run the config of chapter 5 at its full size; the training loss is that of its last epoch, with dropout."""
    data = ["--dataset", str(options.data / "the-verdict.txt"), "--tokenizer", str(options.data / "gpt2-tokenizer")]
    fields = ["--config", str(CONFIGS / "the_verdict.yaml"), "--checkpoint-every", "1000"]
    folder = options.work / "verdict-124m"
    found = recipe("pretrain", folder, *data, *fields, "--eval-every", "90")
    lines = [line for line in read_metrics(folder / "metrics.jsonl") if "loss" in line]
    return {
        "precision": "fp32",
        "seed": 123,
        "training": {line["step"]: line["loss"] for line in lines},
        "validation": found["results"]["validation"]["loss"],
    }


def tune(options, verb: str, config: str, rate: float, seed: int, *more: str) -> dict:
    """Run a config from the base at the book's rate for its width; return the results of all splits."""
    width = ScratchGPTConfig.from_pretrained(options.model).hidden_size
    rates = [
        "--learning-rate",
        f"{rate * GPT2_WIDTH / width:g}",
        "--min-learning-rate",
        f"{rate * GPT2_WIDTH / width:g}",
    ]
    few = ["--eval-every", "1000", "--checkpoint-every", "1000"]
    fields = ["--config", str(CONFIGS / f"{config}.yaml"), *rates, *few, "--seed", f"{seed}", *more]
    return recipe(verb, options.work / f"{config}-{seed}", *fields)["results"]


def summary(options, results: list[dict]) -> dict:
    return {"seeds": options.seeds, **over_seeds(results)}


def classify(options, config: str, rate: float) -> dict:
    data = ["--model", options.model, "--dataset", str(options.data / "classification" / "sms_spam.tsv")]
    more = [*data, "--column-names", "label,text"]
    found = [tune(options, "classify", config, rate, seed, *more) for seed in options.seeds]
    return summary(options, [{"accuracy": each["test"]["accuracy"]} for each in found])


def instruct(options) -> dict:
    more = ["--model", options.model, "--dataset", str(options.data / "instruction-data.json"), "--answers", "1"]
    found = [tune(options, "instruct", "book_instruct", 5e-5, seed, *more) for seed in options.seeds]
    return summary(options, [{"before": each["before/test"]["loss"], "after": each["test"]["loss"]} for each in found])


def prefer(options) -> dict:
    found = []
    for seed in options.seeds:
        model = ["--model", str(options.work / f"book_instruct-{seed}" / "model")]
        more = [*model, "--dataset", str(options.data / "instruction-data-with-preference.json")]
        found.append(tune(options, "prefer", "book_preferences", 5e-6, seed, *more)["test"])
    return summary(options, [{name: each[name] for name in ("loss", "accuracy", "margin")} for each in found])


PARTS = {
    "changes": changes,
    "pretrain": pretrain,
    "classify": lambda options: classify(options, "book_classify", 5e-5),
    "lora": lambda options: classify(options, "book_lora", 8e-4),
    "instruct": instruct,
    "prefer": prefer,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the book's files")
    parser.add_argument("--model", help="folder of the small base")
    parser.add_argument("--only", choices=PARTS, help="run one part; by default all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[123, 124, 125])
    parser.add_argument(
        "--done-only", action="store_true", help="changes: write the finished runs, and start no other"
    )
    parser.add_argument("--work", type=Path, default=Path("runs/book"), help="folder of the runs")
    parser.add_argument("--out", type=Path, default=REPO / "tests" / "benchmarks" / "book.json")
    options = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    found = json.loads(options.out.read_text()) if options.out.exists() else {}
    for name in [options.only] if options.only else PARTS:
        found[name] = PARTS[name](options)
        print(json.dumps({name: found[name]}, indent=2), flush=True)
        options.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
