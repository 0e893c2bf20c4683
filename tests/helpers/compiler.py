"""The C compiler that builds the compiled decoding step."""

import os
import shutil

import pytest


needs_a_compiler = pytest.mark.skipif(
    not shutil.which((os.environ.get("CC") or "cc").split()[0]), reason="no C compiler: install one, or set $CC"
)
FP32_IN_C, INT8_IN_C = (
    pytest.param({"quantize": quantize, "compile": True}, marks=needs_a_compiler) for quantize in (None, "int8")
)
