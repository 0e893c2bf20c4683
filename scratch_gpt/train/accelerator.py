"""Make the Accelerator of a launch, and check the variables that `accelerate launch` sets."""

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


# Keep process groups until the interpreter ends. If a DDP model holds the last reference to a gloo group and frees it
# earlier, the group waits for its threads while it holds Python's lock, and one of them may be waiting for that lock:
# the run hangs at its very end (seen once with torch 2.13, on a machine under load).
_groups: list = []


def best_precision(device: str) -> str:
    """Return "bf16" if the device supports it natively, else "no" (fp32)."""
    if device == "cpu":
        capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.9 lacks it: fp32 there
        return "bf16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "no"
    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    return "no"


def best_attention(device: str, precision: str, max_length: int) -> str:
    """Return the fastest attention backend for rows of `max_length` tokens: "eager" for short bf16 rows on a CPU.

    There torch's fused kernel takes 3 times as long as plain matrix products at 64 tokens and 1.1 times at 256; at 512
    it is 1.6 times faster (AVX-512 with bf16, torch 2.13). Both give the same numbers up to rounding.
    """
    return "eager" if device == "cpu" and precision == "bf16" and max_length <= 256 else "sdpa"


def compile_options() -> dict[str, bool]:
    """Return the options of torch.compile for a CPU: compute tanh from the exponential.

    The result differs from torch's tanh by 1e-7, and GELU takes half the time.
    """
    from torch._inductor import list_options  # slow to import, and needed only to compile

    return {name: True for name in ("cpp.use_decompose_tanh",) if name in list_options()}  # not in every version


def describe_device(device: torch.device) -> str:
    """Return the name of a device, such as `NVIDIA H200`; for a CPU its model, if known, and its instruction set."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    file = Path("/proc/cpuinfo")
    text = file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""
    names = re.findall(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return f"{names[0] if names else platform.machine()} ({torch.backends.cpu.get_cpu_capability()})"


# --- The environment variables of `accelerate launch` ------------------------------------------------------------

_OFF = ("false", "0", "no", "off", "f", "n")
_TRUTH = ("true", "1", "yes", "on", "t", "y", *_OFF)
_FP8 = "The recipes train in fp32, bf16 or fp16."
_COMPILE = "To compile the model, remove dynamo from the launch and pass compile=True to the recipe."
_DDP_OR_FSDP = "Several processes train with DDP or FSDP2: see the launch files cpu_2, gpu_ddp and gpu_fsdp2."
_DEEPSPEED = f"DeepSpeed is not supported. {_DDP_OR_FSDP}"
_MEGATRON = f"Megatron-LM is not supported. {_DDP_OR_FSDP}"
_PARALLELISM = f"Tensor, context and sequence parallelism are not supported. {_DDP_OR_FSDP}"
_DEVICES = "The recipes train on CPUs, CUDA devices and Apple's MPS, without cloud launchers."
_FSDP = "Use the launch file gpu_fsdp2 (configs/accelerate)."
_RECOMPUTE = "To recompute activations, pass gradient_checkpointing=True to the recipe."

# Each variable that `accelerate launch` sets from its options and config file -> the values that a run supports (None
# for any), and the advice for other values. A name that ends with an underscore covers all names that begin with it.
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
    """Raise a ValueError if the environment requests something that a run does not support.

    Every process checks its environment separately.

    Args:
        expect_processes: 1 allows a single process although the launch requests several.
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
            "The launch requests several processes or machines, but `accelerate launch` started a single process, as "
            "it always does on CPUs. Start them with torchrun, or with the launch file cpu_2 (configs/accelerate); or "
            "pass expect_processes=1."
        )


def make_accelerator(
    device: str = "auto",
    mixed_precision: str = "auto",
    expect_processes: int | None = None,
    report_to: str | None = None,
    output_dir: Path | None = None,
) -> Accelerator:
    """Return the Accelerator of this launch.

    With mixed_precision "auto" the precision of the launch is used. If that is "no", the default of every launch,
    `best_precision` chooses.

    Raises:
        ValueError: the device is not available, the number of processes is not `expect_processes`, or a variable
            requests something that a run does not support.
    """
    check_launch(expect_processes)
    available = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if parse_flag_from_env("ACCELERATE_USE_CPU"):  # set by `use_cpu: true` in a launch file
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
                "The launch requests FSDP, but Accelerate would train without it: FSDP needs GPUs, and processes that "
                "a launcher started. Use another launch file (configs/accelerate)."
            )
        if "FSDP_VERSION" not in os.environ:
            raise ValueError(f"The launch requests FSDP version 1, which is not supported. {_FSDP}")
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
        text = f"The launch's mixed precision {launch_precision} is ignored: this run uses {mixed_precision}."
        accelerator.print(text, file=sys.stderr)
    return accelerator


def sum_over_processes(accelerator: Accelerator, tensor: torch.Tensor) -> torch.Tensor:
    """Return the sum of a tensor over all processes, on each of them."""
    return cast(torch.Tensor, accelerator.reduce(tensor, "sum"))


@contextmanager
def uncompiled(model: Any) -> Iterator[None]:
    """Run the body without torch.compile, which would compile again for an evaluation and each generated length."""
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
