"""The memory allocator that the best setting of a benchmark preloads."""

import ctypes.util


# The file name for LD_PRELOAD, or None if tcmalloc is not installed.
TCMALLOC = ctypes.util.find_library("tcmalloc_minimal") or ctypes.util.find_library("tcmalloc")
