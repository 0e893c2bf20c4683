"""A Net in int8 -> the same for few rows by one function in C, int8_step.c, which the machine's own compiler builds.

A step by torch is a thousand operations, most of them shorter than their calling. In C there is one call.
"""

import ctypes
import os
import shlex
import struct
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch
from torch import nn


FLAGS = ["-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC"]
MANY = 24  # rows above which oneDNN multiplies faster
ACTIVATIONS = {"gelu_pytorch_tanh": 0, "gelu_new": 0, "gelu": 1, "relu": 2, "silu": 3, "swish": 3}  # as in C


@cache
def build() -> ctypes.CDLL:
    """int8_step.c as a library, built in a second, once a process: one that was kept might be of another processor.

    Raises:
        ValueError: no compiler ($CC, otherwise cc), or one that does not build it.
    """
    compiler, source = os.environ.get("CC") or "cc", Path(__file__).with_name("int8_step.c")
    way_out = "put one with OpenMP, such as gcc, into $CC, or leave compile out"
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "int8_step.so"
        command = [*shlex.split(compiler), *FLAGS, str(source), "-o", str(library), "-lm"]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
            return ctypes.CDLL(str(library))
        except subprocess.CalledProcessError as error:
            said = [line for line in error.stderr.splitlines() if "error" in line] or [f"status {error.returncode}"]
            raise ValueError(f"compile needs a C compiler, and {compiler} ends with {said[0]}: {way_out}.") from error
        except OSError as error:
            raise ValueError(f"compile needs a C compiler, and {compiler} is none here: {way_out}.") from error


class CompiledNet:
    """A `Net` (decoding.py), called as it is: few rows go by C, a prompt and many rows by the Net itself.

    Args:
        net: on a CPU in fp32, its matrices as `lay_out` makes them for this.
        library: of `build`.
    """

    def __init__(self, net: nn.Module, library: ctypes.CDLL):
        self.net, self.library = net, library
        self.blocks = b"".join(_block(block) for block in net.blocks)
        self.last = _norm(net.norm) + _matrix(net.head)
        self.sizes = (len(net.blocks), ACTIVATIONS[net.act], net.head.int8.top)
        self.V = len(net.head.int8.codes)
        widest = max(len(one.int8.codes) for block in net.blocks for one in (block.qkv, block.up))
        floats = [torch.empty(MANY, width) for width in (widest, widest, 1, 1)]
        self.room = [*floats, torch.empty(MANY, widest, dtype=torch.uint8)]

    def __call__(
        self, x: torch.Tensor, kept: torch.Tensor, past: int, hide: torch.Tensor | None, only_last: bool
    ) -> torch.Tensor:
        _, _, B, H, columns, K = kept.shape
        T = len(x) // B
        if only_last or past == 0 or len(x) > MANY:
            return self.net(x, kept, past, hide, only_last)
        x, scores, logits = x.clone(), x.new_empty(B, H, past + T), x.new_empty(B, T, self.V)  # x is added to
        hidden_rows = 0 if hide is None else len(hide)
        self.library.step(
            *(self.blocks, self.last),
            *(ctypes.c_void_p(one.data_ptr()) for one in (x, kept, logits, scores, *self.room)),
            ctypes.c_void_p(None if hide is None else hide.data_ptr()),
            *map(ctypes.c_int64, (hidden_rows, *self.sizes, B, T, H, K, past, columns, torch.get_num_threads())),
        )
        return logits


# --- The structs of int8_step.c, each of whose fields is 8 bytes -------------------------------------------------


def _block(block) -> bytes:
    first = _norm(block.norm_1) + _matrix(block.qkv) + _matrix(block.out)
    return first + _norm(block.norm_2) + _matrix(block.up) + _matrix(block.down)


def _norm(norm) -> bytes:
    return struct.pack("2Pd", norm.weight.data_ptr(), norm.bias.data_ptr(), norm.eps)


def _matrix(matrix) -> bytes:
    int8 = matrix.int8
    tensors = (int8.codes, int8.scales, int8.sums, int8.bias)
    return struct.pack("4P2q", *(one.data_ptr() for one in tensors), *int8.codes.shape)


__all__ = ["ACTIVATIONS", "CompiledNet", "build"]
