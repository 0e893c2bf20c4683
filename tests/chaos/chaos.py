"""Try many kinds of faults many times: killed runs, damaged files, full disks, bad input.

    python tests/chaos/chaos.py [KIND ...] [--out tests/benchmarks/chaos.json]

Writes how often each kind was tried, recovered, refused and lost to a file, next to the kinds that are not named, and
prints it as a table. Lost must be 0. To add a kind, add a function to KINDS: it takes a Bench and yields RECOVERED,
REFUSED or LOST for each try. The first line of its docstring is its row in the table.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path


sys.path.extend(str(Path(__file__).resolve().parents[1] / name) for name in ("helpers", ".", "hub"))

import chaos_folders
import chaos_publishing
import conftest  # noqa: F401  # as in the tests: no network, the recipes on the path
import crash
import hostile
from chaos_folders import Trial
from places import REPO
from safetensors.torch import load_file, save_file

from scratch_gpt.train.checkpoints import find_checkpoint, find_damage, list_checkpoints
from scratch_gpt.utils.locks import LOCK
from scratch_gpt_training.support import options as recipe


RECOVERED, REFUSED, LOST = "recovered", "refused", "lost"
KILLS = 25  # tries of each kind that kills a run
DISKS = 5

STORY = "".join(
    f"On day {n} the old sailor {('walked', 'ran', 'swam')[n % 3]} to the shiny sea, and the sun shone on "
    f"{n * 7 % 90} quiet boats.\n"
    for n in range(400)
)


class Bench:
    """A folder for the files of a kind, and runs that several kinds use; each is made at its first use."""

    def __init__(self, home: Path):
        self.home = home
        self.log = home / "log.txt"

    @cached_property
    def words(self) -> list:
        """Return the command line of a run, without its output_dir; a restart uses the same one."""
        (self.home / "story.txt").write_text(STORY)
        return ["--dataset", self.home / "story.txt", *crash.RUN, "--resume", "latest"]

    @cached_property
    def undisturbed(self) -> tuple[dict, float]:
        """Return the outcome of a run without faults, and its seconds."""
        folder = self.home / "undisturbed"
        for _ in range(2):  # the second run is timed, as caches are warm
            shutil.rmtree(folder, ignore_errors=True)
            began = time.monotonic()
            assert crash.finish([*self.words, "--output-dir", folder], self.log) == 0
            seconds = time.monotonic() - began
        return crash.outcome(folder), seconds

    @cached_property
    def interrupted(self) -> Path:
        """Return the folder of a killed run with two checkpoints or more."""
        folder = self.home / "interrupted"
        words = [*self.words, "--output-dir", folder]
        crash.kill_when(words, self.log, lambda: len(list_checkpoints(folder / "checkpoints")) > 1)
        return folder

    @cached_property
    def furnished(self) -> Path:
        """Return a folder with good files of every kind: data, models, an adapter, a run."""
        folder = self.home / "furnished"
        folder.mkdir()
        hostile.furnish(folder)
        return folder

    def resumes(self, folder: Path) -> bool:
        """Return whether a run resumes and ends with the same result, bit for bit, as a run without faults."""
        code = crash.finish([*self.words, "--output-dir", folder], self.log)
        return code == 0 and not crash.differences(self.undisturbed[0], crash.outcome(folder))


# --- Kills -------------------------------------------------------------------------------------------------------


def killed(bench: Bench) -> Iterator[str]:
    """SIGKILL at a random moment; the resumed run is compared bit for bit"""
    draw = random.Random(0)
    seconds = bench.undisturbed[1]
    return _killed(bench, lambda words, folder: crash.kill_after(words, bench.log, draw.uniform(0, seconds)))


def killed_while_saving(bench: Bench) -> Iterator[str]:
    """SIGKILL while a checkpoint is written; the resumed run is compared bit for bit"""
    draw = random.Random(0)

    def kill(words: list, folder: Path) -> None:
        draft = folder / f"checkpoints/.writing-step-{2 * draw.randrange(1, 18)}"
        crash.kill_when(words, bench.log, draft.exists)

    return _killed(bench, kill)


def _killed(bench: Bench, kill: Callable[[list, Path], object]) -> Iterator[str]:
    folder = bench.home / "killed"
    for _ in range(KILLS):
        kill([*bench.words, "--output-dir", folder], folder)
        yield RECOVERED if bench.resumes(folder) else LOST
        shutil.rmtree(folder)


# --- Damaged checkpoints -----------------------------------------------------------------------------------------


def checkpoint_truncated(bench: Bench) -> Iterator[str]:
    """A checkpoint file shortened by one byte (refused if no other checkpoint is intact)"""
    return _damaged(bench, lambda file: file.write_bytes(file.read_bytes()[:-1]))


def checkpoint_bit_flipped(bench: Bench) -> Iterator[str]:
    """A checkpoint file with one flipped bit"""
    return _damaged(bench, lambda file: file.write_bytes(_flip(file.read_bytes())))


def checkpoint_emptied(bench: Bench) -> Iterator[str]:
    """A checkpoint file emptied"""
    return _damaged(bench, lambda file: file.write_bytes(b""))


def checkpoint_deleted(bench: Bench) -> Iterator[str]:
    """A checkpoint file deleted; the resumed run is compared bit for bit"""
    return _damaged(bench, Path.unlink, resume=True)


def _damaged(bench: Bench, harm: Callable[[Path], object], resume: bool = False) -> Iterator[str]:
    # Each file of the newest checkpoint: the run falls back. Then the same file of the older one: the run is refused.
    for name in sorted(file.name for file in list_checkpoints(bench.interrupted / "checkpoints")[-1].iterdir()):
        copy = bench.home / "copy"
        shutil.copytree(bench.interrupted, copy)
        checkpoints = copy / "checkpoints"
        newest, *older = reversed(list_checkpoints(checkpoints))
        harm(newest / name)
        found, skipped = find_checkpoint(checkpoints)
        falls_back = found == older[0] and name in skipped[0]
        if resume:
            whole = shutil.copytree(copy, bench.home / "resumed")
            falls_back = falls_back and bench.resumes(whole)
            shutil.rmtree(whole)
        yield RECOVERED if falls_back else LOST
        for path in older:
            harm(path / name)
        before = _files(copy)
        refused = _refuses(copy, bench if resume else None)
        yield REFUSED if refused and _files(copy) == before else LOST
        shutil.rmtree(copy)


def _files(folder: Path) -> list[Path]:
    # skip the lock of the killed run: the next run takes it over
    return sorted(path for path in folder.rglob("*") if path.name != LOCK)


def _flip(content: bytes) -> bytes:
    changed = bytearray(content)
    changed[random.Random(len(content)).randrange(len(content))] ^= 4
    return bytes(changed)


def _refuses(folder: Path, bench: Bench | None) -> bool:
    if bench is not None:
        return crash.finish([*bench.words, "--output-dir", folder], bench.log) == 2
    try:
        find_checkpoint(folder / "checkpoints")
    except ValueError:
        return True
    return False


# --- Disks -------------------------------------------------------------------------------------------------------


def full_disk(bench: Bench) -> Iterator[str]:
    """A disk that fills up during a run: exit code 2, intact checkpoints, resumed when there is space"""
    for n in range(DISKS):
        disk = bench.home / f"disk-{n}"
        disk.mkdir()
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(disk)]).returncode:
            print("full disks: skipped, mounting a tmpfs is not permitted")
            return
        process = crash.start([*bench.words, "--output-dir", disk / "run"], bench.log)
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
        yield RECOVERED if process.exitcode == 2 and whole and bench.resumes(disk / "run") else LOST
        subprocess.run(["umount", "-l", str(disk)], check=True)


# --- Bad input ---------------------------------------------------------------------------------------------------


def bad_command_line(bench: Bench) -> Iterator[str]:
    """A command line with a wrong option or value: a one-line error and exit code 2"""
    return _tested("test_invalid_command_lines", 100, "training/test_bad_input.py")


def bad_config(bench: Bench) -> Iterator[str]:
    """An invalid --config file"""
    return _tested("test_invalid_configs", 60, "training/test_bad_input.py")


def empty_or_binary_data(bench: Bench) -> Iterator[str]:
    """An empty or binary data file"""
    return _tested("test_invalid_files", 40, "training/test_bad_input.py")


def file_without_content(bench: Bench) -> Iterator[str]:
    """An empty, blank or missing file, for each file that a recipe reads (recovered: not needed)"""
    return _given(bench, "empty", "blank", "a broken link")


def file_cut_in_half(bench: Bench) -> Iterator[str]:
    """Half of a file, for each file that a recipe reads"""
    return _given(bench, "half of it", "cut")


def file_of_other_bytes(bench: Bench) -> Iterator[str]:
    """Binary or zero bytes as a file's content"""
    return _given(bench, "binary", "null bytes")


def file_of_another_kind(bench: Bench) -> Iterator[str]:
    """A list, a number or null instead of an object, or wrong types in every field"""
    return _given(bench, "a list", "a number", "null", "fields of another kind")


def nested_file(bench: Bench) -> Iterator[str]:
    """JSON or YAML nested 100,000 levels deep, or a number with 9,999 digits"""
    return _given(bench, "nested", "nested objects", "huge number")


def invalid_unicode(bench: Bench) -> Iterator[str]:
    """Unpaired surrogates in data and records"""
    return _given(bench, "half surrogate")


def not_a_file(bench: Bench) -> Iterator[str]:
    """A folder or a named pipe instead of a file"""
    return _given(bench, "a folder", "a pipe")


def adapter_field(bench: Bench) -> Iterator[str]:
    """Each field of adapter_config.json set to four wrong values (recovered: peft ignores the field)"""
    return _changed_fields(bench, "adapter", "adapter_config.json", "generate {bad} the --max-new-tokens 1")


def config_field(bench: Bench) -> Iterator[str]:
    """Each field of a model's config.json set to four wrong values"""
    return _changed_fields(bench, "chat", "config.json", "generate {bad} the --max-new-tokens 1")


def tokenizer_field(bench: Bench) -> Iterator[str]:
    """Each field of tokenizer.json set to four wrong values"""
    return _changed_fields(bench, "chat", "tokenizer.json", "generate {bad} the --max-new-tokens 1")


def record_field(bench: Bench) -> Iterator[str]:
    """Each field of a run's evaluation.json set to four wrong values"""
    words = f"evaluate {bench.furnished}/chat --dataset {bench.furnished}/data.txt --device cpu --output-dir {{bad}}"
    return _changed_fields(bench, "run", "evaluation.json", words)


def weights_not_finite(bench: Bench) -> Iterator[str]:
    """One weight of a tensor set to NaN or infinity"""
    bad = bench.home / "weights"
    shutil.copytree(bench.furnished / "chat", bad)
    weights = load_file(bad / "model.safetensors")
    for name, tensor in weights.items():
        for value in (float("nan"), float("inf")):
            harmed = tensor.clone()
            harmed.view(-1)[-1] = value
            save_file({**weights, name: harmed}, bad / "model.safetensors", metadata={"format": "pt"})
            yield hostile.outcome("generate", [bad, "the", "--max-new-tokens", "1"])[0]


def chat_template(bench: Bench) -> Iterator[str]:
    """A chat template that raises an error or never ends"""
    return _tested("test_a_template_that_fails_is_one_line", 16)


def number_out_of_bounds(bench: Bench) -> Iterator[str]:
    """A numeric option below its minimum, above its maximum, or NaN"""
    for name, (least, most) in recipe.OPTION_LIMITS.items():
        for value in (least - 1, most * 2 + 1, float("nan")):
            try:
                recipe.check_range(name, value, least, most)
            except ValueError:
                yield REFUSED
            else:
                yield LOST


def _given(bench: Bench, *kinds: str) -> Iterator[str]:
    (bench.home / "bad").mkdir(exist_ok=True)
    for slot, kind in hostile.attempts(every=True):
        if kind in kinds:
            yield hostile.attempt(bench.furnished, bench.home / "bad", slot, kind)[0]


def _changed_fields(bench: Bench, folder: str, name: str, words: str) -> Iterator[str]:
    bad = bench.home / "changed"
    shutil.copytree(bench.furnished / folder, bad)
    fields = json.loads((bad / name).read_text(encoding="utf-8"))
    for field in fields:
        for value in ([], {"a": [1]}, "nonsense", -7):
            (bad / name).write_text(json.dumps({**fields, field: value}), encoding="utf-8")
            kind, *rest = words.format(bad=bad).split()
            yield hostile.outcome(kind, rest)[0]
    shutil.rmtree(bad)


def _tested(test: str, count: int, file: str = "training/test_hostile.py") -> Iterator[str]:
    # Run a test that tries `count` inputs.
    words = ["-q", "-p", "no:cacheprovider", f"{REPO / 'tests' / file}::{test}"]
    passed = subprocess.run([sys.executable, "-m", "pytest", *words], cwd=REPO).returncode == 0
    yield from [REFUSED if passed else LOST] * count


KINDS: list[Callable[[Bench], Iterator[str]]] = [
    killed,
    killed_while_saving,
    checkpoint_truncated,
    checkpoint_bit_flipped,
    checkpoint_emptied,
    checkpoint_deleted,
    full_disk,
    bad_command_line,
    bad_config,
    empty_or_binary_data,
    file_without_content,
    file_cut_in_half,
    file_of_other_bytes,
    file_of_another_kind,
    nested_file,
    invalid_unicode,
    not_a_file,
    adapter_field,
    config_field,
    tokenizer_field,
    record_field,
    weights_not_finite,
    chat_template,
    number_out_of_bounds,
]


def _of_folders(kind: Callable[[Trial], dict]) -> Callable[[Bench], Iterator[str]]:
    # Adapt a kind that counts its own tries.
    def tries(bench: Bench) -> Iterator[str]:
        counts = kind(Trial(bench.words, *bench.undisturbed, bench.home))
        for result in (RECOVERED, REFUSED, LOST):
            yield from [result] * counts[result]

    tries.__name__, tries.__doc__ = kind.__name__, kind.__doc__
    return tries


def _of_publishing(kind: chaos_publishing.Kind) -> Callable[[Bench], Iterator[str]]:
    def tries(bench: Bench) -> Iterator[str]:
        bench.undisturbed  # noqa: B018  # creates the run to publish
        home = bench.home / kind.__name__
        home.mkdir()
        yield from kind(bench.home / "undisturbed", home)

    tries.__name__, tries.__doc__ = kind.__name__, kind.__doc__
    return tries


KINDS += map(_of_folders, chaos_folders.KINDS.values())
KINDS += map(_of_publishing, chaos_publishing.KINDS.values())


def main() -> None:
    kinds = {kind.__name__: kind for kind in KINDS}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"By default all: {', '.join(kinds)}.")
    parser.add_argument("--out", type=Path, default=REPO / "tests" / "benchmarks" / "chaos.json")
    options = parser.parse_args()
    if unknown := {*options.kinds} - {*kinds}:
        parser.error(f"unknown kinds: {', '.join(sorted(unknown))}")
    table = json.loads(options.out.read_text()) if options.out.exists() and options.kinds else {}
    with tempfile.TemporaryDirectory() as home:
        bench = Bench(Path(home))
        for name in options.kinds or kinds:
            counts: Counter[str] = Counter()
            for result in kinds[name](bench):
                counts[result] += 1
                print(f"{name} {counts.total()}: {result}", flush=True)
            columns = {"tried": counts.total(), **{key: counts[key] for key in (RECOVERED, REFUSED, LOST)}}
            table[name] = {"fault": kinds[name].__doc__, **columns}
            table = {name: table[name] for name in kinds if name in table}
            options.out.write_text(json.dumps(table, indent=1) + "\n")
    for row in table.values():
        print(*(f"{row[key]:>6} {key}" for key in ("tried", RECOVERED, REFUSED, LOST)), f" {row['fault']}")
    print(f"{len(table)} kinds, {sum(row['tried'] for row in table.values()):,} tries")
    sys.exit(any(row["lost"] for row in table.values()))


if __name__ == "__main__":
    main()
