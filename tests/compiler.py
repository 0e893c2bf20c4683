"""The C compiler that decoding in int8 can be compiled by."""

import os
import shutil

import pytest


needs_a_compiler = pytest.mark.skipif(
    not shutil.which((os.environ.get("CC") or "cc").split()[0]), reason="no C compiler: install one, or name it in $CC"
)
IN_C = pytest.param({"quantize": "int8", "compile": True}, marks=needs_a_compiler)
