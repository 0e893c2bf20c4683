"""Run the training steps of a peer in turns: the worker processes of bench_training.py.

    python tests/benchmarks/peers.py '{"peer": "ours", "shape": {...}, "settings": {row: {...}}}'

A worker runs in the peer's environment, so only torch is imported at the top. It prints "ready" when the model is
built. Then each line {"row": ..., "number": n} on stdin is a turn: n steps of that row (forward, backward, the
gradient clipped to norm 1, AdamW, new random tokens each time), answered by a line with the times. Rows of one worker
share its weights and AdamW's state, and differ in their settings.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # (B, T) ids and next ids -> mean loss in nats
Clip = Callable[[list[nn.Parameter], torch.optim.Optimizer, float], object]  # clips the gradient to a norm


@dataclass(frozen=True)
class Shape:
    layers: int
    width: int
    heads: int
    vocabulary: int
    length: int
    batch: int


@dataclass(frozen=True)
class Setting:
    precision: str = "no"  # "bf16" is autocast over fp32 weights; "auto" is the recipes' choice
    fused: bool = False  # AdamW as one operation, or parameter by parameter (torch's default on a CPU)
    compile: bool = False


# --- Peers: a shape -> a model with GPT-2's sizes and no dropout, and its loss -----------------------------------


def reference(shape: Shape) -> tuple[nn.Module, Loss]:
    from reference import GPT

    model = GPT(shape.layers, shape.width, shape.heads, shape.vocabulary, shape.length)
    return model, model


def ours(shape: Shape) -> tuple[nn.Module, Loss]:
    """Build our model with the memory settings, attention and objective of the recipes."""
    from scratch_gpt import ScratchGPTConfig, ScratchGPTForCausalLM
    from scratch_gpt.utils.memory import keep_freed_memory

    keep_freed_memory()
    config = ScratchGPTConfig(
        num_hidden_layers=shape.layers,
        hidden_size=shape.width,
        num_attention_heads=shape.heads,
        vocab_size=shape.vocabulary,
        max_position_embeddings=shape.length,
        **dict.fromkeys(("embed_dropout", "attention_dropout", "resid_dropout"), 0.0),
    )
    model = ScratchGPTForCausalLM(config)
    return model, our_loss(model, shape.length)


def our_loss(model: nn.Module, length: int) -> Loss:
    from scratch_gpt.train.accelerator import best_attention, best_precision
    from scratch_gpt.train.objectives import causal_lm

    model.set_attn_implementation(best_attention("cpu", best_precision("cpu"), length))
    return lambda ids, next_ids: (
        causal_lm.sums(model, {"input_ids": ids, "shift_labels": next_ids})["loss"] / next_ids.numel()
    )


def transformers(shape: Shape) -> tuple[nn.Module, Loss]:
    """Build GPT2LMHeadModel, called with labels as Trainer does."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        n_layer=shape.layers,
        n_embd=shape.width,
        n_head=shape.heads,
        vocab_size=shape.vocabulary,
        n_positions=shape.length,
        **dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), 0.0),
        **dict.fromkeys(("bos_token_id", "eos_token_id")),  # the defaults are outside a small vocabulary
    )
    model = GPT2LMHeadModel(config)
    return model, lambda ids, next_ids: model(input_ids=ids, labels=ids).loss


def litgpt(shape: Shape, tied: bool = False) -> tuple[nn.Module, Loss]:
    """Build litgpt's model as `litgpt pretrain` does: untied head, fp32 logits, cross-entropy in pieces of 128."""
    from litgpt import GPT, Config
    from litgpt.utils import chunked_cross_entropy

    model = GPT(
        Config(
            n_layer=shape.layers,
            n_embd=shape.width,
            n_head=shape.heads,
            vocab_size=shape.vocabulary,
            padded_vocab_size=shape.vocabulary,
            block_size=shape.length,
            parallel_residual=False,
        )
    )
    model.apply(model._init_weights)
    if not tied:
        return model, lambda ids, next_ids: chunked_cross_entropy(model(ids).float(), next_ids)
    model.transformer.wte.weight = model.lm_head.weight
    return model, lambda ids, next_ids: chunked_cross_entropy(model(ids), next_ids, chunk_size=0)


def llms_from_scratch(shape: Shape, fast: bool = False) -> tuple[nn.Module, Loss]:
    """Build the book's model, or its faster form (`fast`) with a tied head as in the others."""
    from llms_from_scratch.ch04 import GPTModel, GPTModelFast

    config = {
        "n_layers": shape.layers,
        "emb_dim": shape.width,
        "n_heads": shape.heads,
        "vocab_size": shape.vocabulary,
        "context_length": shape.length,
        "drop_rate": 0.0,
        "qkv_bias": False,
    }
    model = (GPTModelFast if fast else GPTModel)(config)
    if fast:
        nn.init.normal_(model.tok_emb.weight, std=0.02)
        model.out_head.weight = model.tok_emb.weight
    return model, lambda ids, next_ids: F.cross_entropy(model(ids).flatten(0, 1), next_ids.flatten())


PEERS = {
    "reference": reference,
    "ours": ours,
    "transformers": transformers,
    "litgpt": litgpt,
    "litgpt tied": lambda shape: litgpt(shape, tied=True),
    "llms-from-scratch": llms_from_scratch,
    "llms-from-scratch fast": lambda shape: llms_from_scratch(shape, fast=True),
}


# --- Turns -------------------------------------------------------------------------------------------------------


def clip_by_torch(parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer, max_norm: float) -> None:
    nn.utils.clip_grad_norm_(parameters, max_norm)


def make_step(
    model: nn.Module,
    loss_of: Loss,
    optimizer: torch.optim.Optimizer,
    setting: Setting,
    clip: Clip = clip_by_torch,
    options: dict | None = None,
):
    """Return a function (ids, next_ids) -> loss that trains a step; several settings may share a model's state.

    Args:
        options: Options of torch.compile.
    """
    if setting.precision == "auto":
        from scratch_gpt.train.accelerator import best_precision

        setting = Setting(best_precision("cpu"), setting.fused, setting.compile)
    loss_of = torch.compile(loss_of, options=options) if setting.compile else loss_of
    parameters = list(model.parameters())

    def step(ids: torch.Tensor, next_ids: torch.Tensor) -> torch.Tensor:
        for group in optimizer.param_groups:
            group["fused"], group["foreach"] = setting.fused, False
        with torch.autocast("cpu", torch.bfloat16, enabled=setting.precision == "bf16"):
            loss = loss_of(ids, next_ids)
        loss.backward()
        clip(parameters, optimizer, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def make_optimizer(model: nn.Module, learning_rate: float = 1e-4) -> torch.optim.AdamW:
    """Return AdamW with the groups of nanoGPT, Trainer and our recipes: matrices decay, vectors do not."""
    groups = [
        {"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95))


def take_turns(peer: str, shape: Shape, settings: dict[str, Setting]):
    """Return a function (row, number of steps) -> times of the turn."""
    torch.manual_seed(0)
    model, loss_of = PEERS[peer](shape)
    model.train()
    optimizer = make_optimizer(model)
    more = {}
    if peer == "ours":
        from scratch_gpt.train.accelerator import compile_options
        from scratch_gpt.train.optimizers import clip_gradients

        more = {"clip": clip_gradients, "options": compile_options()}
    steps = {row: make_step(model, loss_of, optimizer, setting, **more) for row, setting in settings.items()}
    facts = {"threads": torch.get_num_threads(), "parameters": sum(p.numel() for p in model.parameters())}

    def turn(row: str, number: int) -> dict:
        batches = [torch.randint(shape.vocabulary, (shape.batch, shape.length + 1)) for _ in range(number)]
        start, busy = time.perf_counter(), time.process_time()
        for ids in batches:
            loss = steps[row](ids[:, :-1].contiguous(), ids[:, 1:].contiguous())
        taken = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - busy}
        return {**taken, "loss": loss.item(), **facts}

    return turn


# --- Limits of the machine ---------------------------------------------------------------------------------------


def measure_ceilings(seconds: float = 0.7, size: int = 2048, buffer_bytes: int = 2**29):
    """Return a turn that measures the machine: best matrix product in GFLOP/s, best sum of a large buffer in GB/s."""
    squares = {name: torch.randn(size, size, dtype=dtype) for name, dtype in TYPES.items()}
    buffer = torch.ones(buffer_bytes // 4)
    work = {name: (lambda m=m: m @ m, 2 * size**3 / 1e9) for name, m in squares.items()}
    work["memory"] = (buffer.sum, buffer_bytes / 1e9)

    def turn(row: str, number: int) -> dict:
        start, busy, rates = time.perf_counter(), time.process_time(), {}
        for name, (run, amount) in work.items():
            best, begun = 0.0, time.perf_counter()
            while time.perf_counter() < begun + seconds:
                before = time.perf_counter()
                run()
                best = max(best, amount / (time.perf_counter() - before))
            rates[name] = best
        taken = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - busy}
        return {**taken, **rates, "threads": torch.get_num_threads()}

    return turn


TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


# --- Matrix products of a step -----------------------------------------------------------------------------------


PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm")


def measure_products(shape: Shape):
    """Return a turn of ours out of the box that measures seconds, matrix products and the ceiling of each step.

    torch's profiler times the products; the ceiling is the mean of those before and after the step.
    """
    from torch.profiler import profile

    take = take_turns("ours", shape, {"ours": Setting("auto", fused=True)})
    look = measure_ceilings(seconds=0.2)

    def turn(row: str, number: int) -> dict:
        take("ours", 1)  # warms up
        steps, ceiling = [], look(row, 1)["bf16"]
        for _ in range(number):
            with profile() as seen:
                taken = take("ours", 1)
            products = sum(event.self_cpu_time_total for event in seen.key_averages() if event.key in PRODUCTS)
            before, ceiling = ceiling, look(row, 1)["bf16"]
            found = {"step_seconds": taken["seconds"], "products_seconds": products / 1e6}
            steps.append({**found, "bf16": (before + ceiling) / 2})
        return {"steps": steps}

    return turn


# --- Equal losses ------------------------------------------------------------------------------------------------


def compare_losses(shape: Shape, learning_rate: float = 6e-4, warmup_steps: int = 50):
    """Return a turn that trains `reference` in fp32 and ours as the recipes do, with equal weights and text (bytes).

    Both have a warm-up: without it, or at a rate of 1e-3, the loss of the plain form jumps by nats within the first
    steps, and differences by rounding grow without limit.
    """
    import sysconfig
    import tempfile
    from itertools import islice
    from pathlib import Path

    from reference import GPT

    from scratch_gpt import import_checkpoint
    from scratch_gpt.data.sources.python_docs import python_documentation
    from scratch_gpt.train.optimizers import adamw, clip_gradients

    documents = islice(python_documentation(sysconfig.get_path("stdlib"), "any"), 20)
    text = torch.tensor(list("\n".join(row["text"] for row in documents).encode()))

    def turn(row: str, number: int) -> dict:
        torch.manual_seed(0)
        plain = GPT(shape.layers, shape.width, shape.heads, shape.vocabulary, shape.length)
        with tempfile.TemporaryDirectory() as folder:
            arguments = {"n_layer": shape.layers, "n_head": shape.heads, "n_embd": shape.width, "bias": True}
            sizes = {"vocab_size": shape.vocabulary, "block_size": shape.length, "dropout": 0.0}
            torch.save({"model": plain.state_dict(), "model_args": arguments | sizes}, Path(folder) / "ckpt.pt")
            model = import_checkpoint(Path(folder) / "ckpt.pt").train()
        starts = torch.randint(len(text) - shape.length - 1, (number, shape.batch))
        optimizers = [make_optimizer(plain), adamw(model, learning_rate, 0.1)]
        steps = [
            make_step(plain, plain, optimizers[0], Setting()),
            make_step(
                model, our_loss(model, shape.length), optimizers[1], Setting("auto", fused=True), clip_gradients
            ),
        ]
        losses = []
        for n, places in enumerate(starts, 1):
            for group in (group for optimizer in optimizers for group in optimizer.param_groups):
                group["lr"] = learning_rate * min(1, n / warmup_steps)
            ids = torch.stack([text[place : place + shape.length + 1] for place in places.tolist()])
            losses.append([step(ids[:, :-1].contiguous(), ids[:, 1:].contiguous()).item() for step in steps])
        differences = [abs(mine - theirs) / theirs for theirs, mine in losses]
        return {"largest_difference": max(differences), "first": losses[0], "last": losses[-1], "steps": number}

    return turn


def main() -> None:
    given = json.loads(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w")  # output of libraries goes to stderr
    os.dup2(2, 1)
    shape = Shape(**given["shape"]) if given["shape"] else None
    if given["peer"] == "ceilings":
        turn = measure_ceilings(**given["settings"])
    elif given["peer"] == "products":
        turn = measure_products(shape)
    elif given["peer"] == "losses":
        turn = compare_losses(shape)
    else:
        settings = {row: Setting(**setting) for row, setting in given["settings"].items()}
        turn = take_turns(given["peer"], shape, settings)
    answers.write("ready\n")
    answers.flush()
    for line in sys.stdin:
        answers.write(json.dumps(turn(**json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
