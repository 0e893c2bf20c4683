"""Run a `Net` (decoder.py) on few rows with one function in C, step.c, built by the machine's compiler.

A step in torch is a thousand operations, and most of them take less time than their call. In C it is one call.
"""

import ctypes
import os
import shlex
import struct
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from .matmul import Matrix


if TYPE_CHECKING:
    from .decoder import Block, Net, Norm

LANES = 16  # numbers in a vector; the widths of fp32 matrices must be multiples of it
FLAGS = ["-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", f"-DLANES={LANES}"]
MATRIX_DTYPES = (torch.float32, torch.int8)  # types of matrices, in the order of step.c
MAX_COMPILED_ROWS = (16, 24)  # for each of MATRIX_DTYPES: C multiplies faster than torch up to this number of rows
# The activations that decoder.py supports, with their numbers in step.c.
ACTIVATIONS = {"gelu_pytorch_tanh": 0, "gelu_new": 0, "gelu": 1, "relu": 2, "silu": 3, "swish": 3}


@cache
def build_step() -> ctypes.CDLL:
    """Build step.c and return it as a library, once per process: a saved one might be for another processor.

    Raises:
        ValueError: the compiler ($CC, otherwise cc) is missing or cannot build it.
    """
    compiler, source = os.environ.get("CC") or "cc", Path(__file__).with_name("step.c")
    remedy = "Set $CC to one with OpenMP, such as gcc, or pass compile=False."
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "step.so"
        command = [*shlex.split(compiler), *FLAGS, "-shared", "-fPIC", str(source), "-o", str(library), "-lm"]
        try:
            subprocess.run(command, check=True, capture_output=True, encoding="utf-8", errors="replace")
        except OSError as error:
            raise ValueError(f"compile needs a C compiler, but {compiler} cannot be run. {remedy}") from error
        except subprocess.CalledProcessError as error:
            lines = [line for line in error.stderr.splitlines() if "error" in line] or [f"status {error.returncode}"]
            raise ValueError(f"compile needs a C compiler, but {compiler} ended with {lines[0]}. {remedy}") from error
        try:
            return ctypes.CDLL(str(library))
        except OSError as error:
            raise ValueError(f"The library that {compiler} built cannot be loaded: {error}. {remedy}") from error


class CompiledNet:
    """Call a `Net` (decoder.py) with a cache in fp32: few rows run in C and give fp32 logits, others run in the Net.

    Args:
        net: on a CPU, with matrices from `lay_out(..., compile=True)`.
        library: from `build_step`.
    """

    def __init__(self, net: "Net", library: ctypes.CDLL):
        self.net, self.library = net, library
        self.floats: list[torch.Tensor] = []  # keeps the tensors alive that the structs point to
        self.blocks = b"".join(self._block(block) for block in net.blocks)
        self.last = self._norm(net.norm) + self._matrix(net.head)
        self.sizes = (len(net.blocks), ACTIVATIONS[net.act], net.head.int8.top if net.head.int8 else 0)
        self.V, self.max_rows = len(net.head.weight), MAX_COMPILED_ROWS[MATRIX_DTYPES.index(net.head.weight.dtype)]
        width = max(len(matrix.weight) for block in net.blocks for matrix in (block.qkv, block.up))
        kinds = [(width, torch.float32)] * 2 + [(1, torch.float32)] * 2 + [(width, torch.uint8)]
        self.buffers = [torch.empty(self.max_rows, width, dtype=dtype, device="cpu") for width, dtype in kinds]

    def __call__(
        self, x: torch.Tensor, key_values: torch.Tensor, past: int, score_mask: torch.Tensor | None, only_last: bool
    ) -> torch.Tensor:
        if only_last or past == 0 or len(x) > self.max_rows:
            return self.net(x, key_values, past, score_mask, only_last)
        _, _, B, H, columns, K = key_values.shape
        T = len(x) // B
        x = x.to(torch.float32, copy=True)  # step.c adds to it
        score_mask = None if score_mask is None else score_mask.float()
        scores, logits = x.new_empty(B, H, past + T), x.new_empty(B, T, self.V)
        mask_rows = 0 if score_mask is None else len(score_mask)
        self.library.step(
            self.blocks,
            self.last,
            *(ctypes.c_void_p(tensor.data_ptr()) for tensor in (x, key_values, logits, scores, *self.buffers)),
            ctypes.c_void_p(None if score_mask is None else score_mask.data_ptr()),
            *map(ctypes.c_int64, (mask_rows, *self.sizes, B, T, H, K, past, columns, torch.get_num_threads())),
        )
        return logits

    # The structs of step.c: each field has 8 bytes, vectors are in fp32.

    def _block(self, block: "Block") -> bytes:
        first = self._norm(block.norm_1) + self._matrix(block.qkv) + self._matrix(block.out)
        return first + self._norm(block.norm_2) + self._matrix(block.up) + self._matrix(block.down)

    def _norm(self, norm: "Norm") -> bytes:
        return struct.pack("2Pd", self._float(norm.weight), self._float(norm.bias), norm.eps)

    def _matrix(self, matrix: Matrix) -> bytes:
        weight, bias, int8 = matrix.weight, matrix.bias, matrix.int8
        if int8 is None:
            zeros = weight.new_zeros(len(weight))
            vectors = (zeros, zeros, zeros if bias is None else bias)
        else:
            vectors = (int8.scales, int8.sums, int8.bias)
        kind = MATRIX_DTYPES.index(weight.dtype)
        return struct.pack("4P3q", weight.data_ptr(), *map(self._float, vectors), *weight.shape, kind)

    def _float(self, vector: torch.Tensor) -> int:
        self.floats.append(vector.float())
        return self.floats[-1].data_ptr()


__all__ = ["ACTIVATIONS", "LANES", "MAX_COMPILED_ROWS", "CompiledNet", "build_step"]
