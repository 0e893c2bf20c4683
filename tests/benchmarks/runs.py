"""Run recipes in their own processes, for benchmarks that may be stopped: each run resumes."""

import json
import math
import re
import subprocess
import sys
import time
from pathlib import Path


REPO = Path(__file__).resolve().parents[2]


def recipe(name: str, folder: Path, *arguments: str) -> dict:
    """Run a recipe; return its evaluation.json, and its seconds if it ran without a stop (else NaN)."""
    command = [sys.executable, str(REPO / "training" / f"{name}.py"), "--output-dir", str(folder), *arguments]
    seconds, is_new, start = folder / "seconds.json", not folder.exists(), time.perf_counter()
    if (folder / "evaluation.json").exists():
        print(f"{folder} is a finished run; its scores are used. Remove it to measure again.", flush=True)
    subprocess.run([*command, "--resume", "latest"], check=True)
    if not seconds.exists():
        seconds.write_text(json.dumps(time.perf_counter() - start if is_new else math.nan))
    return {**json.loads((folder / "evaluation.json").read_text()), "seconds": json.loads(seconds.read_text())}


def slug(*words: str) -> str:
    """Return a folder name made of these words."""
    return re.sub(r"\W+", "-", " ".join(words))
