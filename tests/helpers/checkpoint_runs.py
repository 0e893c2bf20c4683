"""Runs that are stopped and resumed, for the tests of checkpoints."""

import pytest
import torch
from crash import exact
from tiny import tiny_model
from tiny_run import run

from scratch_gpt.train.checkpoints import CHECKPOINT_FILES, find_checkpoint


# Dropout, accumulation, 24 rows in steps of 9 (an epoch ends within a step), metrics that cover several checkpoints.
OPTIONS = {"batch_size": 3, "accumulation_steps": 3, "steps": 8, "eval_every": 3, "every": 1, "log_every": 4}
DROPOUT = {"resid_dropout": 0.1, "attention_dropout": 0.1}


def start(folder, **options):
    return run(folder, **{**OPTIONS, "model": tiny_model(**DROPOUT).train(), **options})


def resume(folder, **options):
    path, skipped = find_checkpoint(folder / "checkpoints")
    return start(folder, model=tiny_model(seed=7, **DROPOUT).train(), resume_from=path, **options), skipped


def assert_same(one, other):
    assert all(torch.equal(one[0][name], other[0][name]) for name in one[0])
    assert one[1] == other[1]
    assert exact(one[2]) == exact(other[2])


def files_of(folder, step):
    """Return the bytes of the optimizer's and the weights' files."""
    return [(folder / "checkpoints" / f"step-{step}" / name).read_bytes() for name in CHECKPOINT_FILES[:2]]


def fill(folder):
    """Fill the disk and check that nothing more can be written."""
    with (folder / "ballast").open("wb", buffering=0) as file:
        with pytest.raises(OSError):
            while True:
                file.write(b"x" * 4096)
    with pytest.raises(OSError):
        (folder / "proof").write_bytes(b"x" * 4096)
    (folder / "proof").unlink(missing_ok=True)
