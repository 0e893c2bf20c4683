"""What every test needs before anything is imported: no network, no tokenizer threads, the helpers in reach."""

import os
import sys
from pathlib import Path


os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"  # forked data workers would warn, or hang
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0)):  # they and their processes share the cores
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // workers))
sys.path.insert(0, str(Path(__file__).resolve().parent / "helpers"))
sys.path += [str(Path(__file__).resolve().parent / name) for name in ("benchmarks", "documentation")]

import pytest
import torch


pytest_plugins = ["judge_server"]


@pytest.fixture(autouse=True)
def _seeded():
    """Each test draws the same random numbers, alone or in any order."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _fresh_accelerate():
    """Accelerate remembers a process' first device and precision: each test starts like a new process."""
    from accelerate.state import AcceleratorState, PartialState

    AcceleratorState._reset_state()
    PartialState._reset_state()


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real test data (SCRATCH_GPT_DATA, or shared/data beside this repository)."""
    folder = Path(os.environ.get("SCRATCH_GPT_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("no test data: set SCRATCH_GPT_DATA to a folder that has it (tests/README.md)")
    return folder
