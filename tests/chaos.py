"""Faults, many and for real: a small run is killed, its files are damaged, its disk is filled, its input is bad.

    python tests/chaos.py [--kills 50] [--out tests/benchmarks/chaos.json]

Prints a table of what was tried, recovered, refused and lost. Lost has to be 0.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path

import chaos_folders
import crash
from chaos_folders import Trial

from scratch_gpt.checkpoints import find_checkpoint, find_damage, list_checkpoints


REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO / "training"))  # a run's process takes it over

STORY = "".join(
    f"On day {n} the old sailor {('walked', 'ran', 'swam')[n % 3]} to the shiny sea, and the sun shone on "
    f"{n * 7 % 90} quiet boats.\n"
    for n in range(400)
)


def kills(trial: Trial) -> dict:
    """SIGKILL at random moments, a third of them while something is being written; then resumed once."""
    draw, where, lost, count = random.Random(0), Counter(), 0, trial.kills
    for n in range(count):
        folder, log = trial.home / f"kill-{n}", trial.log
        arguments = [*trial.words, "--output-dir", folder]
        if n % 3:
            crash.kill_after(arguments, log, draw.uniform(0, trial.seconds))
        else:
            draft = f"checkpoints/.writing-step-{2 * draw.randrange(1, 18)}"
            crash.kill_when(arguments, log, partial(_is_there, folder / draft))
        place = crash.where_it_died(folder)
        where[place] += 1
        same = trial.ends_the_same(arguments)
        lost += not same
        print(f"kill {n + 1}/{count} {place}: {'recovered' if same else 'LOST'}", flush=True)
        shutil.rmtree(folder)
    print(f"kills met the run: {dict(where)}")
    return {"tried": count, "recovered": count - lost, "refused": 0, "lost": lost, "where": dict(where)}


def _is_there(path: Path) -> bool:
    return path.exists()


def damages(trial: Trial) -> dict:
    """Each file of the newest checkpoint truncated, bit-flipped, emptied, deleted: fall back and end the same."""
    words, expected, home = trial.words, trial.expected, trial.home
    folder, log = home / "damage", home / "log.txt"
    arguments = [*words, "--output-dir", folder]
    crash.kill_when(arguments, log, lambda: len(list_checkpoints(folder / "checkpoints")) > 1)
    tried = recovered = refused = 0
    ways = {
        "truncated": lambda file: file.write_bytes(file.read_bytes()[:-1]),
        "bit-flipped": lambda file: file.write_bytes(_flip(file.read_bytes())),
        "emptied": lambda file: file.write_bytes(b""),
        "deleted": lambda file: file.unlink(),
    }
    for file in sorted(list_checkpoints(folder / "checkpoints")[-1].iterdir()):
        for name, harm in ways.items():
            copy = home / "copy"
            shutil.copytree(folder, copy)
            arguments = [*words, "--output-dir", copy]
            for k, path in enumerate(reversed(list_checkpoints(copy / "checkpoints"))):
                harm(path / file.name)
                tried += 1
                if k == 0:  # the older one is whole: fall back
                    found, skipped = find_checkpoint(copy / "checkpoints")
                    fell_back = found != path and file.name in skipped[0]
                    if name != "deleted":
                        recovered += fell_back
                        continue
                    shutil.copytree(copy, home / "resumed")
                    arguments[-1] = home / "resumed"
                    ends = crash.finish(arguments, log) == 0
                    recovered += fell_back and ends and not crash.differences(expected, crash.outcome(arguments[-1]))
                    shutil.rmtree(home / "resumed")
                    arguments[-1] = copy
                else:  # none is whole: refuse, and touch nothing
                    before = sorted(copy.rglob("*"))
                    code = crash.finish(arguments, log) if name == "deleted" else _refuses(copy)
                    refused += code == 2 and sorted(copy.rglob("*")) == before
                    break
            shutil.rmtree(copy)
        print(f"damage to {file.name}: {tried} tried, {recovered} fell back, {refused} refused", flush=True)
    return {"tried": tried, "recovered": recovered, "refused": refused, "lost": tried - recovered - refused}


def _flip(content: bytes) -> bytes:
    changed = bytearray(content)
    changed[random.Random(len(content)).randrange(len(content))] ^= 4
    return bytes(changed)


def _refuses(folder: Path) -> int:
    try:
        find_checkpoint(folder / "checkpoints")
    except ValueError:
        return 2
    return 0


def full_disks(trial: Trial, count: int = 5) -> dict:
    """A file system that fills up during the run: said, nothing harmed, and resumed when there is room."""
    words, expected, home = trial.words, trial.expected, trial.home
    recovered = tried = 0
    for n in range(count):
        disk, log = home / f"disk-{n}", home / "log.txt"
        disk.mkdir()
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(disk)]).returncode:
            print("full disks: no right to mount a tmpfs here, not tried")
            break
        tried += 1
        arguments = [*words, "--output-dir", disk / "run"]
        process = crash.start(arguments, log)
        while len(list_checkpoints(disk / "run" / "checkpoints")) < 1 + n % 2:
            time.sleep(0.002)
        with (disk / "ballast").open("wb", buffering=0) as file:
            try:
                while process.is_alive():
                    file.write(b"x" * 4096)
            except OSError:
                pass
        process.join(120)
        whole = all(find_damage(path) is None for path in list_checkpoints(disk / "run" / "checkpoints"))
        (disk / "ballast").unlink()
        ends = crash.finish(arguments, log) == 0
        good = process.exitcode == 2 and whole and ends
        recovered += good and not crash.differences(expected, crash.outcome(disk / "run"))
        print(f"full disk {n + 1}/{count}: {recovered} recovered", flush=True)
        subprocess.run(["umount", "-l", str(disk)], check=True)
    return {"tried": tried, "recovered": recovered, "refused": 0, "lost": tried - recovered}


def bad_inputs(trial: Trial) -> dict:
    """tests/test_bad_input.py: two hundred generated inputs."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        str(REPO / "tests" / "test_bad_input.py"),
    ]
    passed = subprocess.run(command, cwd=REPO).returncode == 0
    return {"tried": 200, "recovered": 0, "refused": 200 if passed else 0, "lost": 0 if passed else 200}


KINDS = {"kills": kills, "damaged files": damages, "full disks": full_disks, "bad inputs": bad_inputs}
KINDS |= chaos_folders.KINDS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--only", nargs="*", default=[*KINDS], choices=KINDS, help="Kinds to try.")
    parser.add_argument("--out", type=Path, default=REPO / "tests" / "benchmarks" / "chaos.json")
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        (home / "story.txt").write_text(STORY)
        words = ["--dataset", home / "story.txt", *crash.RUN, "--resume", "latest"]
        for _ in range(2):  # the second takes the time a warm run takes
            shutil.rmtree(home / "undisturbed", ignore_errors=True)
            began = time.monotonic()
            code = crash.finish([*words, "--output-dir", home / "undisturbed"], home / "log.txt")
            assert code == 0, (home / "log.txt").read_text()[-2000:]
            seconds = time.monotonic() - began
        trial = Trial(words, crash.outcome(home / "undisturbed"), seconds, home, options.kills)
        table = {}
        for name in options.only:
            print(f"--- {name}", flush=True)
            table[name] = KINDS[name](trial)
    if set(options.only) == set(KINDS):
        options.out.write_text(json.dumps(table, indent=2) + "\n")
    width = max(map(len, table))
    keys = ("tried", "recovered", "refused", "lost")
    print(" " * width + "".join(f"{key:>10}" for key in keys))
    for name, row in table.items():
        print(f"{name:>{width}}" + "".join(f"{row[key]:>10}" for key in keys))
    print(f"{len(table)} kinds" + "".join(f", {sum(row[key] for row in table.values())} {key}" for key in keys))
    sys.exit(any(row["lost"] for row in table.values()))


if __name__ == "__main__":
    main()
