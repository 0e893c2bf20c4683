"""An environment -> the Accelerator that was asked for, and the signals that end a run in good order."""

import os
import platform
import re
import signal
import threading
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, parse_flag_from_env

from .allocation import keep_freed_memory


# Process groups stay until the interpreter ends. Freed earlier, by a DDP model that holds the last reference, a gloo
# group waits for its threads with Python's lock held, and one of them may be waiting for that lock: a hang at the very
# end of a run (seen once with torch 2.13, on a machine under load).
_groups: list = []


def best_precision(device: str) -> str:
    """What the device does well: "bf16" where it is native, else "no", which is fp32."""
    if device == "cpu":
        able = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.9 has none: fp32 there
        return "bf16" if able.get("avx512_bf16") or able.get("amx_bf16") else "no"
    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    return "no"


def best_attention(device: str, precision: str, max_length: int) -> str:
    """The attention backend that is fastest for rows of so many tokens: "sdpa", or "eager" for short rows in bf16.

    On a CPU torch's fused kernel takes 1.1 (256 tokens) to 3 times (64) as long there as plain matrix products, and
    1.6 times less at 512 (AVX-512 with bf16, torch 2.13). Both give the same numbers but for rounding.
    """
    return "eager" if device == "cpu" and precision == "bf16" and max_length <= 256 else "sdpa"


def compile_options() -> dict[str, bool]:
    """Of torch.compile on a CPU: tanh by the exponential, 1e-7 from torch's own, so that GELU takes half the time."""
    from torch._inductor import list_options  # slow, and only who compiles needs it

    return {name: True for name in ("cpp.use_decompose_tanh",) if name in list_options()}  # not in every version


def describe_device(device: torch.device) -> str:
    """`NVIDIA H200`; of a CPU its model, where the system tells, and what it computes with."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    told = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*:\s*(.+)$", told.read_text(), re.MULTILINE) if told.exists() else []
    return f"{names[0] if names else platform.machine()} ({torch.backends.cpu.get_cpu_capability()})"


def make_accelerator(
    device: str = "auto",
    mixed_precision: str = "auto",
    expect_processes: int | None = None,
    report_to: str | None = None,
    output_dir: Path | None = None,
) -> Accelerator:
    """The Accelerator of this launch.

    Raises:
        ValueError: a device that is not there, another number of processes than was asked for, or FSDP asked for and
            not given.
    """
    found = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if parse_flag_from_env("ACCELERATE_USE_CPU"):  # what `use_cpu: true` in a launch file becomes
        found = "cpu"
    device = found if device == "auto" else device
    if device not in ("cpu", found):
        raise ValueError(f"device {device} was asked for, but this machine has {found}. Give --device {found}.")
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if expect_processes is not None and launched != expect_processes:
        raise ValueError(
            f"expect_processes is {expect_processes}, but {launched} started. (`accelerate launch --cpu "
            "--num_processes N` always starts one.) Launch as the README shows for several processes, or give "
            f"--expect-processes {launched}."
        )
    if mixed_precision == "fp16" and device == "cpu":
        raise ValueError("mixed_precision fp16 needs a GPU; on a CPU give bf16 or no.")
    if device == "cpu":
        keep_freed_memory()
    accelerator = Accelerator(
        cpu=device == "cpu",
        mixed_precision=best_precision(device) if mixed_precision == "auto" else mixed_precision,
        log_with=report_to,
        project_dir=str(output_dir) if report_to else None,
    )
    if accelerator.num_processes > 1:
        _groups.append(torch.distributed.group.WORLD)
    if accelerator.num_processes != launched:
        raise ValueError(f"{launched} processes were launched, but they do not form one group of {launched}.")
    if parse_flag_from_env("ACCELERATE_USE_FSDP") and accelerator.distributed_type != DistributedType.FSDP:
        raise ValueError(
            f"The launch asks for FSDP, and Accelerate gives {accelerator.distributed_type.value} without a word: it "
            "shards on GPUs only. Launch with another file of training/configs/accelerate/."
        )
    return accelerator


class StopSignals:
    """`with StopSignals() as stop:` - a first SIGTERM or SIGINT is remembered in `stop.received`, not obeyed.

    A second SIGINT ends the process at once. Outside the main thread signals are left alone.
    """

    def __init__(self):
        self.received: signal.Signals | None = None
        self.before: dict[int, object] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self.before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, _frame) -> None:
        self.received = signal.Signals(number)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # even in the middle of a long operation


__all__ = [
    "StopSignals",
    "best_attention",
    "best_precision",
    "compile_options",
    "describe_device",
    "make_accelerator",
]
