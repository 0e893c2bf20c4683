"""Measure the main job as `make train` runs it, from the start of its process to the end: time and scores.

    python tests/benchmarks/bench_main_job.py [--out FILE.json]

Writes the figures and, under the same name, the run's loss.png. The pages quote both.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import yaml


REPO = Path(__file__).resolve().parents[2]


def run_main_job(folder: Path) -> dict:
    """Run it in a new process; return its figures."""
    training = REPO / "training"
    command = [sys.executable, str(training / "pretrain.py"), "--output-dir", str(folder)]
    command += ["--config", str(training / "configs" / "python_docs.yaml")]
    start = time.perf_counter()
    subprocess.run(command, check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    seconds = time.perf_counter() - start
    evaluation = json.loads((folder / "evaluation.json").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    notes = [
        line.removeprefix("# ") for line in (folder / "run.yaml").read_text().splitlines() if line.startswith("# ")
    ]
    facts = yaml.safe_load("\n".join(notes))
    learned = [line for line in lines if "loss" in line]
    return {
        "seconds": seconds,
        "steps": learned[-1]["step"],
        "tokens": learned[-1]["tokens"],
        "parameters": facts["parameters"],
        "precision": facts["precision"],
        "threads": facts["threads"],
        "cpu": torch.cpu.get_capabilities().get("cpu_name"),
        "python": facts["versions"]["python"],
        "before": evaluation["results"]["before/validation"],
        "validation": evaluation["results"]["validation"],
        "evaluations": [
            {k: line[k] for k in ("step", "tokens", "eval_loss")} for line in lines if "eval_loss" in line
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=REPO / "tests" / "benchmarks" / "main_job.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = run_main_job(Path(folder) / "run")
        shutil.copy(Path(folder) / "run" / "loss.png", options.out.with_suffix(".png"))
    options.out.write_text(json.dumps(figures, indent=2) + "\n")
    print(f"{figures['seconds']:.0f} seconds, {figures['validation']['bits_per_byte']:.2f} bits per byte")


if __name__ == "__main__":
    main()
