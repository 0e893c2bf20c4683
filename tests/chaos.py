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
from functools import partial
from pathlib import Path

import chaos_publishing
import crash

from scratch_gpt.checkpoints import find_checkpoint, find_damage, list_checkpoints


REPO = Path(__file__).resolve().parent.parent

STORY = "".join(
    f"On day {n} the old sailor {('walked', 'ran', 'swam')[n % 3]} to the shiny sea, and the sun shone on "
    f"{n * 7 % 90} quiet boats.\n"
    for n in range(400)
)


def kills(count: int, words: list, expected: dict, seconds: float, home: Path) -> dict:
    """SIGKILL at random moments, a third of them while something is being written; then resumed once."""
    draw, where, lost = random.Random(0), {}, 0
    for n in range(count):
        folder, log = home / f"kill-{n}", home / "log.txt"
        arguments = [*words, "--output-dir", folder]
        if n % 3:
            crash.kill_after(arguments, log, draw.uniform(0, seconds))
        else:
            draft = f"checkpoints/.writing-step-{2 * draw.randrange(1, 18)}"
            crash.kill_when(arguments, log, partial(_is_there, folder / draft))
        place = crash.where_it_died(folder)
        where[place] = where.get(place, 0) + 1
        same = crash.finish(arguments, log) == 0 and not crash.differences(expected, crash.outcome(folder))
        lost += not same
        print(f"kill {n + 1}/{count} {place}: {'recovered' if same else 'LOST'}", flush=True)
        shutil.rmtree(folder)
    return {"tried": count, "recovered": count - lost, "refused": 0, "lost": lost, "where": where}


def _is_there(path: Path) -> bool:
    return path.exists()


def damages(words: list, expected: dict, home: Path) -> dict:
    """Each file of the newest checkpoint truncated, bit-flipped, emptied, deleted: fall back and end the same."""
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


def full_disks(words: list, expected: dict, home: Path, count: int = 5) -> dict:
    """A file system that fills up during the run: said, nothing harmed, and resumed when there is room."""
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


def bad_inputs() -> dict:
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
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
            assert crash.finish([*words, "--output-dir", home / "undisturbed"], home / "log.txt") == 0
            seconds = time.monotonic() - began
        expected = crash.outcome(home / "undisturbed")
        table = {
            "kills": kills(options.kills, words, expected, seconds, home),
            "damaged files": damages(words, expected, home),
            "full disks": full_disks(words, expected, home),
            "bad inputs": bad_inputs(),
        }
        for name, kind in chaos_publishing.KINDS.items():
            table[name] = chaos_publishing.count(kind, home / "undisturbed", home / name)
            print(f"{name}: {table[name]}", flush=True)
    options.out.write_text(json.dumps(table, indent=2) + "\n")
    print(f"{'':>22} {'tried':>9} {'recovered':>9} {'refused':>9} {'lost':>9}")
    for name, row in table.items():
        print(f"{name:>22}" + "".join(f"{row[key]:>10}" for key in ("tried", "recovered", "refused", "lost")))
    print(f"kills met the run: {table['kills']['where']}")
    sys.exit(any(row["lost"] for row in table.values()))


if __name__ == "__main__":
    main()
