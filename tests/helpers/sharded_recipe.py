"""Run the pretrain recipe on CPU processes with Accelerate's FSDP2, which Accelerate offers on GPUs only."""

import sys

import accelerate
from accelerate.state import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

from scratch_gpt_training import pretrain


def sharding(**options) -> accelerate.Accelerator:
    """Return an Accelerator configured as training/configs/accelerate/gpu_fsdp2.yaml configures it on GPUs."""
    accelerator = accelerate.Accelerator(**options)
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        reshard_after_forward=True,
        auto_wrap_policy="TRANSFORMER_BASED_WRAP",
        transformer_cls_names_to_wrap=["ScratchGPTBlock"],
        state_dict_type="FULL_STATE_DICT",
        cpu_ram_efficient_loading=True,
    )
    accelerator.state._shared_state.update(distributed_type=DistributedType.FSDP, fsdp_plugin=plugin)
    PartialState._shared_state.update(distributed_type=DistributedType.FSDP)
    assert accelerator.is_fsdp2
    return accelerator


if __name__ == "__main__":
    from scratch_gpt.train import accelerator as launch

    launch.Accelerator = sharding
    pretrain.main(sys.argv[1:])
