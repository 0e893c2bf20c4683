"""A recipe in a process of its own, for benches that may be stopped: run again, each goes on where it was."""

import json
import math
import re
import subprocess
import sys
import time
from pathlib import Path


REPO = Path(__file__).resolve().parents[2]


def recipe(name: str, folder: Path, *arguments: str) -> dict:
    """What the recipe left in evaluation.json, and its seconds where it was not stopped in between (else NaN)."""
    command = [sys.executable, str(REPO / "training" / f"{name}.py"), "--output-dir", str(folder), *arguments]
    seconds, is_new, start = folder / "seconds.json", not folder.exists(), time.perf_counter()
    if (folder / "evaluation.json").exists():
        print(f"{folder} holds a finished run, whose figures are taken: remove it to measure anew.", flush=True)
    subprocess.run([*command, "--resume", "latest"], check=True)
    if not seconds.exists():
        seconds.write_text(json.dumps(time.perf_counter() - start if is_new else math.nan))
    return {**json.loads((folder / "evaluation.json").read_text()), "seconds": json.loads(seconds.read_text())}


def slug(*words: str) -> str:
    """A folder's name."""
    return re.sub(r"\W+", "-", " ".join(words))
