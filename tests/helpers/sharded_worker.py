"""Save a model sharded over two processes, load it sharded and unsharded, and print whether training is the same."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from tiny import some_ids, tiny_model
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from scratch_gpt.train.checkpoints import load_checkpoint, take_snapshot, write_checkpoint
from scratch_gpt.train.optimizers import adamw


STATE = {"share": {}, "progress": {"step": 3, "tokens": 0, "position": 0}, "record": {}}


def make_unsharded(seed: int):
    model = tiny_model(seed=seed).train()
    return model, adamw(model, 1e-2, 0.1)


def make_sharded(seed: int):
    model = tiny_model(seed=seed).train()
    mesh = init_device_mesh("cpu", (2,))
    for layer in model.transformer.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model, adamw(model, 1e-2, 0.1)


def after_a_step(model, optimizer, seed: int):
    ids = some_ids(4, seed=seed)
    model(ids, labels=ids).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return take_snapshot(model, optimizer, STATE, "")


def are_equal(one, other) -> bool:
    parts = ((one.weights, other.weights), (one.optimizer, other.optimizer))
    return all(a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a) for a, b in parts)


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    is_main = dist.get_rank() == 0
    straight_run = make_sharded(0)
    for seed in range(3):
        snapshot = after_a_step(*straight_run, seed)
    if is_main:
        write_checkpoint(folder, snapshot)
    dist.barrier()
    resumed = make_sharded(5)
    load_checkpoint(folder / "step-3", *resumed)
    straight, again = after_a_step(*straight_run, 9), after_a_step(*resumed, 9)
    dist.barrier()
    dist.destroy_process_group()
    if is_main:
        unsharded = make_unsharded(7)
        load_checkpoint(folder / "step-3", *unsharded)
        print("sharded" if straight.weights and are_equal(straight, again) else "sharded differs")
        print("whole" if are_equal(straight, after_a_step(*unsharded, 9)) else "whole differs")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
