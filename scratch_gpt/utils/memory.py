"""Tune this process' memory: keep freed memory for reuse, and move memory that is read often to huge pages.

Both need the C library or Linux, and do nothing on other systems.
"""

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
MADV_COLLAPSE = 25  # linux/mman.h, since Linux 6.1
HUGE = 2**21  # bytes of a huge page


def keep_freed_memory() -> None:
    """Make the C library keep freed memory, up to 2 GiB at once, because the next step needs the same buffers.

    glibc returns buffers above about 32 MB to Linux, which clears every page each time. An old glibc refuses a limit
    above 32 MB and would keep its current one (128 KB at first), so 32 MB is set there. Under another allocator
    (tcmalloc) this does nothing.
    """
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        any(library.mallopt(M_MMAP_THRESHOLD, limit) for limit in (2**31 - 1, 2**25))  # 0: the limit is refused
        library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


@contextmanager
def huge_pages() -> Iterator[None]:
    """Move memory that the body allocates to huge pages, if Linux has free ones, so that reading it is faster.

    torch can use huge pages for its own memory ($THP_MEM_ALLOC_ENABLE); this covers the memory of its libraries.
    """
    before = _whole_pages()
    yield
    if new := _whole_pages() - before:
        madvise = ctypes.CDLL(None).madvise
        madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        for page in new:
            madvise(page * HUGE, HUGE, MADV_COLLAPSE)  # keeps the content; if it fails, small pages remain


def _whole_pages() -> set[int]:
    # Return the huge pages (address / HUGE) that would hold only this process' private memory.
    maps, pages = Path("/proc/self/maps"), set()
    for line in maps.read_text(encoding="utf-8", errors="replace").splitlines() if maps.exists() else ():
        places, rights, _, _, inode, *name = line.split(maxsplit=5)
        if rights == "rw-p" and inode == "0" and name in ([], ["[heap]"]):
            start, end = (int(place, 16) for place in places.split("-"))
            pages.update(range(-(-start // HUGE), end // HUGE))
    return pages


__all__ = ["huge_pages", "keep_freed_memory"]
