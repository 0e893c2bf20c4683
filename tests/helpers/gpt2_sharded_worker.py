"""Load GPT-2's files on two processes, sharded, and compare with the unsharded model: `gpt2_sharded_worker.py FOLDER`.

Process 0 prints, for each way to shard, the largest difference of the logits and the shards that are views.
"""

import sys

import torch
import torch.distributed as dist
from tiny import some_ids
from transformers.distributed import DistributedConfig

from scratch_gpt import ScratchGPTForCausalLM


@torch.no_grad()
def main(folder: str) -> None:
    dist.init_process_group("gloo")
    expected = ScratchGPTForCausalLM.from_pretrained(folder)(some_ids()).logits
    for kind in ("tp_size", "fsdp_size"):
        config = DistributedConfig(**{kind: 2})
        model = ScratchGPTForCausalLM.from_pretrained(folder, distributed_config=config)
        shards = {name: p.to_local() if hasattr(p, "to_local") else p for name, p in model.named_parameters()}
        size = sum(shard.numel() for shard in shards.values())
        views = [
            name
            for name, shard in shards.items()
            if not shard.is_contiguous() or shard.untyped_storage().nbytes() != shard.nbytes
        ]
        difference = (model(some_ids()).logits - expected).abs().max().item()
        is_sharded = size < 0.6 * model.num_parameters()
        if dist.get_rank() == 0:
            print(kind, is_sharded, difference < 1e-5, views or None, model.config.name_or_path == folder)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
