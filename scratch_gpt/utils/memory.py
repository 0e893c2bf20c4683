"""Where this process' memory lies: what is freed is kept, what is read again and again lies on huge pages.

Both use the C library or Linux, and do nothing on other systems.
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
    """Have the C library keep what is freed, up to 2 GiB at once: the next step asks for the same buffers again.

    glibc hands buffers above some 32 MB back to Linux, which clears every page of them anew each time; an old one
    takes no other limit (refused, it would keep the one it has, 128 KB at first). Under another allocator (tcmalloc)
    this does nothing.
    """
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        any(library.mallopt(M_MMAP_THRESHOLD, limit) for limit in (2**31 - 1, 2**25))  # 0 is a refusal
        library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


@contextmanager
def huge_pages() -> Iterator[None]:
    """Move what the body allocates to huge pages, as far as Linux has some: reading it becomes faster.

    torch asks for them by itself ($THP_MEM_ALLOC_ENABLE); this is for what its libraries allocate.
    """
    before = _whole_pages()
    yield
    if new := _whole_pages() - before:
        madvise = ctypes.CDLL(None).madvise
        madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        for page in new:
            madvise(page * HUGE, HUGE, MADV_COLLAPSE)  # the contents stay; refused, so do the small pages


def _whole_pages() -> set[int]:
    # The huge pages that would hold nothing but this process' own memory: address / HUGE.
    maps, pages = Path("/proc/self/maps"), set()
    for line in maps.read_text(encoding="utf-8", errors="replace").splitlines() if maps.exists() else ():
        places, rights, _, _, inode, *name = line.split(maxsplit=5)
        if rights == "rw-p" and inode == "0" and name in ([], ["[heap]"]):
            start, end = (int(place, 16) for place in places.split("-"))
            pages.update(range(-(-start // HUGE), end // HUGE))
    return pages


__all__ = ["huge_pages", "keep_freed_memory"]
