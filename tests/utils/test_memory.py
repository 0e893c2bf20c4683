"""Test memory: freed memory is kept, and moving to huge pages does not change the content."""

import mmap
import platform
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from scratch_gpt.utils.memory import (
    HUGE,
    M_MMAP_THRESHOLD,
    M_TRIM_THRESHOLD,
    MADV_COLLAPSE,
    huge_pages,
    keep_freed_memory,
)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these settings")
def test_a_buffer_allocated_again_causes_page_faults_only_once():
    import resource

    def faults(size: int = 2**26) -> int:  # pages of 4 KB
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        bytearray(b"x") * size
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    keep_freed_memory()
    faults()
    assert faults() < 2**26 / 4096 / 100


def test_a_limit_that_an_old_glibc_refuses_is_lowered(monkeypatch):
    limits = {}

    def mallopt(which, most):
        if which == M_MMAP_THRESHOLD and most > 2**25:
            return 0
        limits[which] = most
        return 1

    monkeypatch.setattr("scratch_gpt.utils.memory.ctypes.CDLL", lambda _: SimpleNamespace(mallopt=mallopt))
    monkeypatch.setattr("scratch_gpt.utils.memory.platform.libc_ver", lambda: ("glibc", "2.31"))
    keep_freed_memory()
    assert limits == {M_MMAP_THRESHOLD: 2**25, M_TRIM_THRESHOLD: 2**31 - 1}


def huge_kilobytes(address: int) -> int:
    """Return the kilobytes in huge pages of the mapping around an address."""
    maps = re.split(
        r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    for one in filter(None, maps):
        start, end = (int(place, 16) for place in one.split()[0].split("-"))
        if start <= address < end:
            return int(re.search(r"^AnonHugePages:\s*(\d+) kB", one, re.MULTILINE)[1])
    raise AssertionError("no mapping contains the address")


def collapses() -> bool:
    """Return whether Linux moves memory to huge pages on request, and not always."""
    linux = re.match(r"(\d+)\.(\d+)", platform.release()) if platform.system() == "Linux" else None
    enabled = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    known = linux and tuple(map(int, linux.groups())) >= (6, 1) and enabled.exists()
    return bool(known) and "[always]" not in enabled.read_text(encoding="utf-8")


@pytest.mark.skipif(not collapses(), reason="needs Linux 6.1 or newer, with huge pages on request")
def test_memory_allocated_inside_is_moved_to_huge_pages_unchanged():
    written = torch.randint(256, (2**26,), dtype=torch.uint8)
    with huge_pages():
        memory = mmap.mmap(-1, len(written), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        there = torch.frombuffer(memory, dtype=torch.uint8).copy_(written)
        before = huge_kilobytes(there.data_ptr())  # neighbors in the same mapping
    assert huge_kilobytes(there.data_ptr()) - before > len(written) / 1024 / 2
    assert torch.equal(there, written)


def test_memory_allocated_before_is_not_moved(monkeypatch):
    asked = []
    library = SimpleNamespace(madvise=lambda *words: asked.append(words))
    monkeypatch.setattr("scratch_gpt.utils.memory.ctypes.CDLL", lambda _: library)
    monkeypatch.setattr("scratch_gpt.utils.memory._whole_pages", iter([{1, 2}, {2, 3}]).__next__)
    with huge_pages():
        pass
    assert asked == [(3 * HUGE, HUGE, MADV_COLLAPSE)]
