"""Fixtures for the tests of training."""

import subprocess

import pytest
from checkpoint_runs import start


@pytest.fixture(scope="session")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    return start(folder, checkpoint_every=1, keep=99), folder


@pytest.fixture
def small_disk(tmp_path):
    """Mount a file system of 8 MB that reports when it is full."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], capture_output=True)
    if made.returncode:
        pytest.skip("mounting a tmpfs is not permitted")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)
