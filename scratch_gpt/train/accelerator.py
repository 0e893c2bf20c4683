"""An environment -> the Accelerator that was asked for, and the signals that end a run in good order."""

import os
import platform
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import get_int_from_env, parse_flag_from_env

from ..utils.memory import keep_freed_memory


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
    file = Path("/proc/cpuinfo")
    text = file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""
    names = re.findall(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return f"{names[0] if names else platform.machine()} ({torch.backends.cpu.get_cpu_capability()})"


# --- What `accelerate launch` asks for ---------------------------------------------------------------------------

_OFF = ("false", "0", "no", "off", "f", "n")
_TRUTH = ("true", "1", "yes", "on", "t", "y", *_OFF)
_FP8 = "The recipes train in fp32, bf16 or fp16."
_COMPILE = "To compile the model, leave out dynamo and pass compile=True to the recipe."
_DDP_OR_FSDP = "Several processes train with DDP or FSDP2: see the launch files cpu_2, gpu_ddp and gpu_fsdp2."
_DEEPSPEED = f"DeepSpeed is not supported. {_DDP_OR_FSDP}"
_MEGATRON = f"Megatron-LM is not supported. {_DDP_OR_FSDP}"
_PARALLELISM = f"Tensor, context and sequence parallelism are not supported. {_DDP_OR_FSDP}"
_DEVICES = "The recipes train on CPUs, CUDA devices and Apple's MPS, without cloud launchers."
_FSDP = "Use the launch file gpu_fsdp2 (configs/accelerate)."
_RECOMPUTE = "To compute activations twice, pass gradient_checkpointing=True to the recipe."

# Each variable that `accelerate launch` sets from its options and config file -> the values that a run obeys (None for
# any), and what to do instead of another value. A name that ends with an underscore stands for all that begin with it.
VARIABLES: dict[str, tuple[tuple[str, ...] | None, str]] = {
    "ACCELERATE_USE_CPU": (_TRUTH, ""),
    "ACCELERATE_DEBUG_MODE": (_TRUTH, ""),
    "ACCELERATE_CPU_AFFINITY": (_TRUTH, ""),
    "ACCELERATE_TORCH_DEVICE": ((), "Choose with device=, and one of several GPUs with CUDA_VISIBLE_DEVICES."),
    "ACCELERATE_MIXED_PRECISION": (("no", "bf16", "fp16"), _FP8),
    "ACCELERATE_FP8_": ((), _FP8),
    "ACCELERATE_DYNAMO_BACKEND": (("no",), _COMPILE),
    "ACCELERATE_DYNAMO_MODE": (("default",), _COMPILE),
    "ACCELERATE_DYNAMO_USE_FULLGRAPH": (_OFF, _COMPILE),
    "ACCELERATE_DYNAMO_USE_DYNAMIC": (_OFF, _COMPILE),
    "ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION": (_OFF, _COMPILE),
    "ACCELERATE_USE_DEEPSPEED": (_OFF, _DEEPSPEED),
    "ACCELERATE_DEEPSPEED_": ((), _DEEPSPEED),
    "ACCELERATE_CONFIG_DS_FIELDS": ((), _DEEPSPEED),
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": (("1",), "Pass accumulation_steps to the recipe."),
    "ACCELERATE_GRADIENT_CLIPPING": ((), "Pass max_grad_norm to the recipe."),
    "ACCELERATE_USE_MEGATRON_LM": (_OFF, _MEGATRON),
    "MEGATRON_LM_": ((), _MEGATRON),
    "ACCELERATE_USE_PARALLELISM_CONFIG": (_OFF, _PARALLELISM),
    "PARALLELISM_CONFIG_": ((), _PARALLELISM),
    "ACCELERATE_USE_SAGEMAKER": (_OFF, _DEVICES),
    "ACCELERATE_SAGEMAKER_DISTRIBUTED_TYPE": (_OFF, _DEVICES),
    "ACCELERATE_IN_TPU_POD": (_OFF, _DEVICES),
    "ACCELERATE_DOWNCAST_BF16": (_OFF, _DEVICES),
    "XLA_USE_BF16": (_OFF, _DEVICES),
    "XLA_DOWNCAST_BF16": (_OFF, _DEVICES),
    "ACCELERATE_USE_IPEX": (_OFF, _DEVICES),
    "ACCELERATE_USE_XPU": (_OFF, _DEVICES),
    "ACCELERATE_USE_FSDP": (_TRUTH, ""),
    "FSDP_VERSION": (("2",), _FSDP),
    "FSDP_SHARDING_STRATEGY": (("full_shard",), _FSDP),
    "FSDP_RESHARD_AFTER_FORWARD": (_TRUTH, _FSDP),
    "FSDP_OFFLOAD_PARAMS": (_OFF, f"Offloading to the CPU is not supported. {_FSDP}"),
    "FSDP_AUTO_WRAP_POLICY": (("transformer_based_wrap", "size_based_wrap", "no_wrap"), _FSDP),
    "FSDP_TRANSFORMER_CLS_TO_WRAP": (("ScratchGPTBlock",), _FSDP),
    "FSDP_MIN_NUM_PARAMS": (None, ""),
    "FSDP_BACKWARD_PREFETCH": (("no_prefetch",), _FSDP),
    "FSDP_FORWARD_PREFETCH": (_OFF, _FSDP),
    "FSDP_STATE_DICT_TYPE": (("full_state_dict", "sharded_state_dict"), _FSDP),
    "FSDP_USE_ORIG_PARAMS": (_TRUTH, _FSDP),
    "FSDP_CPU_RAM_EFFICIENT_LOADING": (_TRUTH, _FSDP),
    "FSDP_SYNC_MODULE_STATES": (_TRUTH, _FSDP),
    "FSDP_ACTIVATION_CHECKPOINTING": (_OFF, _RECOMPUTE),
    "FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD": (_OFF, _RECOMPUTE),
    "FSDP_IGNORED_MODULES": ((), _FSDP),
}


def check_launch(expect_processes: int | None = None) -> None:
    """Raise a ValueError if the environment asks for something that a run would not do. Every process checks it alone.

    Args:
        expect_processes: 1 allows a process that was launched alone although it was to be one of several.
    """
    for pattern, (allowed, instead) in VARIABLES.items():
        names = [pattern] if not pattern.endswith("_") else sorted(filter(lambda n: n.startswith(pattern), os.environ))
        for name in names:
            value = os.environ.get(name)
            if value is None or allowed is None or value in allowed or value.lower() in allowed:
                continue
            words = {_OFF: "false", _TRUTH: "true or false"}.get(allowed) or " or ".join(allowed)
            must = f"must be {words}" if allowed else "is not supported"
            raise ValueError(f"This launch sets {name} to {value!r}; it {must}. {instead}".rstrip())
    if "WORLD_SIZE" in os.environ:
        return
    if get_int_from_env(["PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"], 1) > 1:
        raise ValueError("mpirun started several processes, which is not supported. Start them with torchrun.")
    if {"MASTER_ADDR", "ACCELERATE_MIXED_PRECISION"} <= set(os.environ) and expect_processes != 1:
        raise ValueError(
            "`accelerate launch` was asked for several processes or machines and started this process alone: on CPUs "
            "it always does. Start them with torchrun, or with the launch file cpu_2 (configs/accelerate); or pass "
            "expect_processes=1."
        )


def make_accelerator(
    device: str = "auto",
    mixed_precision: str = "auto",
    expect_processes: int | None = None,
    report_to: str | None = None,
    output_dir: Path | None = None,
) -> Accelerator:
    """The Accelerator of this launch.

    With mixed_precision "auto" the launch's own precision is obeyed, and "no" there, which every launch says that is
    not told otherwise, leaves the choice to `best_precision`.

    Raises:
        ValueError: a device that is not there, another number of processes than was asked for, or a variable that asks
            for what a run would not do.
    """
    check_launch(expect_processes)
    available = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if parse_flag_from_env("ACCELERATE_USE_CPU"):  # what `use_cpu: true` in a launch file becomes
        available = "cpu"
    device = available if device == "auto" else device
    if device not in ("cpu", available):
        raise ValueError(
            f"device={device!r} is not available: this machine has {available}. Pass device={available!r}."
        )
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if expect_processes is not None and launched != expect_processes:
        raise ValueError(
            f"expect_processes is {expect_processes}, but {launched} started. (`accelerate launch --cpu "
            "--num_processes N` always starts one.) Launch as the README shows for several processes, or pass "
            f"expect_processes={launched}."
        )
    launch_precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if mixed_precision == "auto":
        mixed_precision = best_precision(device) if launch_precision == "no" else launch_precision
    if mixed_precision == "fp16" and device == "cpu":
        raise ValueError("mixed_precision='fp16' needs a GPU; on a CPU pass 'bf16' or 'no'.")
    if parse_flag_from_env("ACCELERATE_USE_FSDP"):
        if device != "cuda" or "LOCAL_RANK" not in os.environ:
            raise ValueError(
                "The launch asks for FSDP, and Accelerate would train without it: it shards on GPUs only, and only in "
                "processes that a launcher started. Use another launch file (configs/accelerate)."
            )
        if "FSDP_VERSION" not in os.environ:
            raise ValueError(f"The launch asks for FSDP version 1, which is not supported. {_FSDP}")
    if device == "cpu":
        keep_freed_memory()
    accelerator = Accelerator(
        cpu=device == "cpu",
        mixed_precision=mixed_precision,
        log_with=report_to,
        project_dir=str(output_dir) if report_to else None,
    )
    if accelerator.num_processes > 1:
        _groups.append(torch.distributed.group.WORLD)
    if accelerator.num_processes != launched:
        raise ValueError(f"{launched} processes were launched, but they do not form one group of {launched}.")
    if accelerator.device.type != device:
        raise ValueError(f"The device is {device}, but Accelerate chose {accelerator.device.type}. {_DEVICES}")
    if launch_precision not in ("no", mixed_precision):
        text = f"The launch's mixed precision {launch_precision} is not used: this run's own is {mixed_precision}."
        accelerator.print(text, file=sys.stderr)
    return accelerator


def sum_over_processes(accelerator: Accelerator, tensor: torch.Tensor) -> torch.Tensor:
    """Return the sum of a tensor over all processes, on each of them."""
    return cast(torch.Tensor, accelerator.reduce(tensor, "sum"))


@contextmanager
def uncompiled(model: Any) -> Iterator[None]:
    """Without torch.compile, which would compile again for an evaluation and each length of what is generated."""
    compiled, model._compiled_call_impl = model._compiled_call_impl, None
    try:
        yield
    finally:
        model._compiled_call_impl = compiled


__all__ = [
    "VARIABLES",
    "best_attention",
    "best_precision",
    "check_launch",
    "compile_options",
    "describe_device",
    "make_accelerator",
    "sum_over_processes",
    "uncompiled",
]
