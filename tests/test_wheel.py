"""Test the installed package: the wheel is complete, and the command works outside the clone."""

import os
import shutil
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import pytest
from places import REPO


PARTS = ("scratch_gpt", "training", "hub_card", "pyproject.toml", "README.md", "LICENSE")
SMALL = ["--dataset", "my.txt", "--preset", "tiny", "--vocab-size", "300", "--max-length", "32", "--batch-size", "2"]
SMALL += ["--max-steps", "2", "--eval-batches", "1"]


def pip(*words) -> None:
    done = subprocess.run([sys.executable, "-m", "pip", *map(str, words)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def sources(folder: Path) -> dict[str, Path]:
    """Return the files of the clone that the wheel needs, by their names in the wheel."""
    names = {"training": "scratch_gpt_training", "hub_card": "scratch_gpt/hub_card"}
    found = {}
    for part in ("scratch_gpt", "training", "hub_card"):
        for file in (folder / part).rglob("*"):
            name = Path(names.get(part, part), file.relative_to(folder / part)).as_posix()
            if file.is_file() and "__pycache__" not in name and file.suffix != ".ipynb":
                found[name] = file
    return found


def test_the_wheel_is_complete_and_its_command_trains_generates_and_publishes(tmp_path):
    if find_spec("setuptools") is None:
        pytest.skip("setuptools, which builds the wheel, is not installed")
    clone, place, work = tmp_path / "clone", tmp_path / "installed", tmp_path / "work"
    for part in PARTS:
        source = REPO / part
        ignore = shutil.ignore_patterns("__pycache__")
        clone.mkdir(exist_ok=True)
        shutil.copytree(source, clone / part, ignore=ignore) if source.is_dir() else shutil.copy(source, clone)
    pip("wheel", "--no-deps", "--no-build-isolation", "--no-cache-dir", "--wheel-dir", tmp_path, clone)
    (wheel,) = tmp_path.glob("scratch_gpt-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    assert {name: file.read_bytes() for name, file in sources(REPO).items()}.items() <= content.items()

    pip("install", "--no-compile", "--no-deps", "--no-index", "--target", place, wheel)
    work.mkdir()
    (work / "my.txt").write_text("The sun shines on the sea, and every effort moves you on. " * 60)
    environment = {**os.environ, "PYTHONPATH": str(place), "PYTHONSAFEPATH": "1"}
    script = next((place / ("Scripts" if os.name == "nt" else "bin")).glob("scratch-gpt*"))

    def run(*words: str) -> str:
        done = subprocess.run(
            [script, *words], cwd=work, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=300
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "look-inside" in run("--help")
    said = run("pretrain", "--accelerate_config", "cpu_1", *SMALL, "--output-dir", "runs/mine")
    assert said.split("Next:\n")[1].splitlines() == [
        '  scratch-gpt generate --model runs/mine/model --prompt "The"',
        "  scratch-gpt pretrain --dataset YOUR.txt --output-dir runs/mine",
        "  scratch-gpt publish runs/mine --repo USER/NAME --dry-run",
    ]
    with ThreadPoolExecutor() as pool:
        written = pool.submit(run, "generate", "runs/mine/model", "The sun", "--max-new-tokens", "3")
        card = pool.submit(run, "publish", "runs/mine", "--repo", "user/name", "--dry-run")
        assert written.result().startswith("The sun") and "# name" in card.result()
    code = (work / "runs" / "mine" / "published" / "config.json").read_text()
    assert '"model_type": "gpt2"' in code and str(place) not in code
