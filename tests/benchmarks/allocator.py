"""The allocator that a bench's best setting preloads."""

import ctypes.util


# A file's name for LD_PRELOAD, or None where it is not installed.
TCMALLOC = ctypes.util.find_library("tcmalloc_minimal") or ctypes.util.find_library("tcmalloc")
