"""Prepare every test before anything is imported: no network, no tokenizer threads, helpers on the path."""

import os
import sys
from pathlib import Path


os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"  # forked data workers would warn, or hang
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0)):  # tests and their processes share the cores
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // workers))
sys.path.insert(0, str(Path(__file__).resolve().parent / "helpers"))
sys.path += [str(Path(__file__).resolve().parent / name) for name in ("benchmarks", "documentation")]

import pytest
import torch
from hypothesis import HealthCheck, settings


# How long examples take depends on what else the machine does.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")
pytest_plugins = ["judge_server"]


@pytest.fixture(autouse=True)
def _seeded():
    """Seed the random generators, so that a test draws the same numbers in any order."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _fresh_accelerate():
    """Reset the device and precision that Accelerate keeps for a process, so that each test starts like a new one."""
    from accelerate.state import AcceleratorState, PartialState

    AcceleratorState._reset_state()
    PartialState._reset_state()


@pytest.fixture(scope="session")
def data() -> Path:
    """Return the folder of real test data (SCRATCH_GPT_DATA, or shared/data next to this repository)."""
    folder = Path(os.environ.get("SCRATCH_GPT_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("no test data: set SCRATCH_GPT_DATA to its folder (tests/README.md)")
    return folder
