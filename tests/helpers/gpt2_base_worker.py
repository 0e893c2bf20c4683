"""Train every recipe from a GPT-2 folder in a launch: `gpt2_base_worker.py BASE OUT ACCUMULATION`.

OUT/NAME is the run folder of each entry of RUNS. The pretraining run is resumed once from its step 2, as OUT/resumed.
"""

import os
import shutil
import sys
import time
from pathlib import Path

from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState

from scratch_gpt_training import classify, instruct, prefer, pretrain


COMMON = [
    "--device",
    "cpu",
    "--mixed-precision",
    "no",
    "--dropout",
    "0",
    "--learning-rate",
    "1e-3",
    "--batch-size",
    "2",
]
COMMON += ["--max-steps", "4", "--checkpoint-every", "2", "--keep", "9", "--eval-every", "4", "--warmup-steps", "0"]
RECIPES = {
    "pretrain": (pretrain, ["--dataset", "{base}/story.txt", "--max-length", "32"]),
    "classify": (classify, ["--dataset", "{base}/labeled.jsonl"]),
    "instruct": (instruct, ["--dataset", "{base}/instructions.json", "--answers", "0"]),
    "prefer": (prefer, ["--dataset", "{base}/pairs.jsonl"]),
}
RUNS = {f"{name}-{tune}": (name, tune) for name in RECIPES for tune in ("full", "last-block")}


def run(name: str, tune: str, base: str, folder: Path, accumulation: str, *more: str) -> None:
    """Run a recipe in the processes of this launch, as if they were new."""
    recipe, words = RECIPES[name]
    AcceleratorState._reset_state()
    PartialState._reset_state()
    words = [word.format(base=base) for word in words]
    how = ["--model", f"{base}/gpt2", "--tune", tune, "--accumulation-steps", accumulation]
    recipe.main([*words, *COMMON, *how, "--output-dir", str(folder), *more])


def main(base: str, out: Path, accumulation: str) -> None:
    for key, (name, tune) in RUNS.items():
        run(name, tune, base, out / key, accumulation)
    resumed, ready = out / "resumed", out / "resumed-is-ready"
    if os.environ.get("RANK", "0") == "0":
        shutil.copytree(out / "pretrain-full", resumed)
        for path in (resumed / "checkpoints" / "step-4", resumed / "model"):
            shutil.rmtree(path)
        (resumed / "evaluation.json").unlink()
        ready.touch()
    while not ready.exists():
        time.sleep(0.05)
    run("pretrain", "full", base, resumed, accumulation, "--resume", "latest")


if __name__ == "__main__":
    # Otherwise the process group of the next run hangs on the launcher's store.
    Accelerator.end_training = lambda self: None
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
