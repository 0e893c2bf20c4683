"""Run checks.py with several versions of transformers and print a table of the results.

    python tests/compatibility/run.py [VERSION ...] [--report-only] [--out FILE.json]

A version is installed with its own dependencies into a folder below .compatibility/, which comes before the
environment's packages; torch, accelerate and peft are the environment's. Without versions, those in VERSIONS are run.
"newest" is the newest release, whatever the constraints are. If a check fails, the exit code is 1, or with
--report-only 0.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path


HERE = Path(__file__).resolve().parent
FOLDER = HERE.parents[1] / ".compatibility"
NEWEST = "newest"
VERSIONS = ("5.6.2", "5.12.1", "5.16.1", "5.19.0", "5.23.0", NEWEST)


def install(version: str) -> Path:
    """Install one version below .compatibility/ and return its folder; RuntimeError if pip cannot.

    A complete folder is used again, except for the newest release, which may have changed.
    """
    target, complete = FOLDER / version, FOLDER / version / ".complete"
    if complete.exists() and version != NEWEST:
        return target
    shutil.rmtree(target, ignore_errors=True)
    what = "transformers" if version == NEWEST else f"transformers=={version}"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    done = subprocess.run([*pip, "--target", str(target), what], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"pip could not install {what}: {' '.join(done.stderr.split())[-300:]}")
    complete.touch()
    return target


def check(root: Path, packages: Path | None = None) -> dict:
    """Run checks.py on the folders of `root` in a new process and return its report.

    Args:
        packages: Folder with the transformers to use; by default that of the environment.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HOME": str(root / "home"), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment |= {} if packages is None else {"PYTHONPATH": str(packages)}
    command = [sys.executable, HERE / "checks.py", root]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise RuntimeError(f"checks.py ended with exit code {done.returncode}: {done.stderr[-1000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def make_folders(root: Path) -> None:
    """Write the folders with the environment's transformers, in a new process."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    subprocess.run([sys.executable, HERE / "folders.py", root], env=environment, check=True, capture_output=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("versions", nargs="*", default=VERSIONS, help="releases of transformers, or newest")
    parser.add_argument("--report-only", action="store_true", help="exit with 0 even if checks fail")
    parser.add_argument("--out", type=Path, help="write the table as JSON, for the pages")
    given = parser.parse_args()
    rows, failed = [], False
    with tempfile.TemporaryDirectory() as root:
        make_folders(Path(root))
        for version in given.versions:
            try:
                report = check(Path(root), install(version))
                faults = {name: why for name, why in report["checks"].items() if why}
                found = report["versions"]
                rows.append({"asked": version, **found, "checks": len(report["checks"]), "failed": faults})
                says = "; ".join(f"{name}: {why}" for name, why in faults.items()) or "all passed"
                print(f"transformers {found['transformers']}, huggingface_hub {found['huggingface_hub']}: {says}")
                failed |= bool(faults)
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                print(f"transformers {version}: {error}")
                failed = True
    if given.out is not None and not failed:
        given.out.write_text(json.dumps({"date": date.today().isoformat(), "versions": rows}, indent=1) + "\n")
    sys.exit(1 if failed and not given.report_only else 0)


if __name__ == "__main__":
    main()
