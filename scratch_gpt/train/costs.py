"""The numbers of a config -> what training costs: parameters, floating point operations, bytes, seconds.

D width, F width inside the MLP, L layers, H heads, V vocabulary, C classes, T tokens of a row, N tokens of a batch.

A config is anything with the names of `ScratchGPTConfig`. A FLOP is one multiplication or addition of a matrix product
(what lies between them is not counted, as in the literature); attention counts its whole square, as PaLM does
(Chowdhery et al. 2022, appendix B). Tests hold all of this against the model itself.
"""

import math
import re
from typing import Any, NamedTuple


TOKENS_PER_PARAMETER = 20  # Hoffmann et al. 2022 ("Chinchilla"), table 3, about; for a model that begins at random
LOGITS_BYTES = 2**26  # of the head's one table (modeling/linear_cross_entropy.py)
LORA = {  # lora_targets -> (how many matrices D x D have it in a block, how many D x F)
    "default": (3, 0),
    "attention": (4, 0),
    "all-linear": (4, 2),
}


class Tune(NamedTuple):
    """What of a model is trained: `what` as the recipes' `tune`."""

    what: str = "full"
    lora_rank: int = 16
    lora_targets: str = "default"

    def blocks(self, layers: int) -> int:
        """How many of the upper blocks are trained."""
        match = re.fullmatch(r"last-(?:block|(\d+)-blocks)", self.what)
        return int(match[1] or 1) if match else layers if self.what == "full" else 0


FULL = Tune()


def compute_optimal_tokens(parameters: int) -> int:
    """How many tokens a model of this size is best trained on from scratch (Hoffmann et al. 2022)."""
    return TOKENS_PER_PARAMETER * parameters


# --- Parameters --------------------------------------------------------------------------------------------------


def block_matrices(config: Any) -> int:
    """Of one block's six matrices: four projections, the MLP."""
    return 4 * config.hidden_size**2 + 2 * config.hidden_size * config.intermediate_size


def block_parameters(config: Any) -> int:
    """Of one block: its matrices, their biases, two norms."""
    D, F = config.hidden_size, config.intermediate_size
    return block_matrices(config) + D + 3 * D * config.attention_bias + F + D + 4 * D


def head_parameters(config: Any, classes: int | None = None) -> int:
    """Of the head alone: 0 where it is the token embedding."""
    if classes is not None:
        return classes * config.hidden_size
    return 0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size


def all_parameters(config: Any, classes: int | None = None) -> int:
    """Of the whole model; a classifier's where `classes` is given.

    Example:
        >>> from scratch_gpt import ScratchGPTConfig
        >>> all_parameters(ScratchGPTConfig())  # GPT-2's small shape
        124439808
    """
    D = config.hidden_size
    embeddings = (config.vocab_size + config.max_position_embeddings) * D
    return embeddings + config.num_hidden_layers * block_parameters(config) + 2 * D + head_parameters(config, classes)


def trained_parameters(config: Any, tune: Tune = FULL, classes: int | None = None) -> int:
    """Of them those that are trained; LoRA's own (without DoRA's lengths)."""
    D, F, head = config.hidden_size, config.intermediate_size, head_parameters(config, classes)
    if tune.what == "full":
        return all_parameters(config, classes)
    if tune.what == "lora":
        square, wide = LORA[tune.lora_targets]
        of_head = head if classes is not None else 0
        if classes is not None and tune.lora_targets == "all-linear":
            of_head = tune.lora_rank * (D + classes)
        return config.num_hidden_layers * tune.lora_rank * (square * 2 * D + wide * (D + F)) + of_head
    blocks = tune.blocks(config.num_hidden_layers)
    return blocks * block_parameters(config) + (2 * D if blocks else 0) + head


# --- Floating point operations -----------------------------------------------------------------------------------


def block_flops(config: Any, length: int) -> int:
    """One block's forward on one row: its matrices and the two products of attention."""
    return length * (2 * block_matrices(config) + 4 * length * config.hidden_size)


def head_flops(config: Any, length: int, classes: int | None = None) -> int:
    """The head's forward on one row: every position is scored, or of a classifier one."""
    D = config.hidden_size
    return 2 * D * classes if classes is not None else 2 * D * config.vocab_size * length


def row_flops(config: Any, length: int, tune: Tune = FULL, classes: int | None = None) -> int:
    """Forward and backward on one row of `length` tokens, nothing computed twice.

    The backward has two products for each of the forward: by the input, which all above the lowest trained part need,
    and by the weights, which those need that are trained.
    """
    L = config.num_hidden_layers
    block, head = block_flops(config, length), head_flops(config, length, classes)
    if tune.what == "full":
        return 3 * (L * block + head)
    if tune.what == "lora":
        return 2 * (L * block + head) + 6 * length * (trained_parameters(config, tune))
    blocks = tune.blocks(L)
    head_is_trained = head_parameters(config, classes) > 0
    return L * block + head + blocks * 2 * block + head * ((blocks > 0) + head_is_trained)


# --- Bytes -------------------------------------------------------------------------------------------------------


def block_activations(
    config: Any, length: int, *, half: bool, flash: bool = True, on_cpu: bool = True, recompute: bool = False
) -> float:
    """Bytes that one block keeps of one token for the backward; its weights in 16 bits (`half`) not counted.

    Args:
        half: matrix products under autocast in 16 bits.
        flash: attention by SDPA, which keeps no (T, T) table (on a CPU but for dropout of the weights).
        recompute: gradient checkpointing keeps what goes into the block.
    """
    D, F, H = config.hidden_size, config.intermediate_size, config.num_attention_heads
    if recompute:
        return 4 * D
    # Both norms' inputs and statistics in fp32; in the products' type each product's input: of q, k and v one (under
    # autocast three copies), of attention three, of o_proj, of up_proj, GELU's and its result.
    size = 8 * D + 16
    size += 2 * (8 * D + 2 * F) if half else 4 * (6 * D + 2 * F)
    if config.resid_dropout:
        size += 2 * D * ((2 if half else 4) if on_cpu else 1)  # two masks
    weights_dropped = config.attention_dropout > 0
    if flash and not (on_cpu and weights_dropped):
        return size + 4 * H
    if flash:  # torch's plain form, in fp32
        return size + 12 * H * length + (6 * D if half else 0)
    table = (2 if half else 4) * (1 + 2 * weights_dropped)  # softmax; with dropout the mask and what is multiplied
    return size + H * length * table


class Memory(NamedTuple):
    """Bytes of one process, but for the program itself and the rows of data."""

    weights: int
    gradients: int  # of what is trained, and of a tied embedding's second use; with several processes twice
    optimizer: int  # AdamW's two moments; Muon has one of a block's matrices
    activations: int  # of one micro-batch, and the 16-bit weights of its products
    logits: int  # the head's table and its gradients
    peak: int  # on a CPU all of them and more, elsewhere they are not all there at once


def memory(
    config: Any,
    batch_size: int,
    length: int,
    *,
    half: bool,
    flash: bool = True,
    on_cpu: bool = True,
    recompute: bool = False,
    accumulates: bool = False,
    processes: int = 1,
    tune: Tune = FULL,
    classes: int | None = None,
    optimizer: str = "adamw",
) -> Memory:
    """The peak of a training step in fp32 or mixed precision (weights, gradients and the optimizer's moments in fp32).

    Muon of LoRA's matrices is counted as AdamW.
    """
    D, L, N = config.hidden_size, config.num_hidden_layers, batch_size * length
    parameters, trained = all_parameters(config, classes), trained_parameters(config, tune, classes)
    keeping = L if tune.what in ("full", "lora") else tune.blocks(L)  # what is below is not differentiated
    of_block = N * block_activations(config, length, half=half, flash=flash, on_cpu=on_cpu)
    per_block = N * block_activations(config, length, half=half, flash=flash, on_cpu=on_cpu, recompute=recompute)
    width = 2 if half else 4
    matrices = 2 * block_matrices(config) if half else 0
    activations = int(keeping * (per_block + matrices) + N * 8 * D)  # and the final norm's input and result
    head = config.vocab_size * D
    if classes is not None:
        logits, d_head = 0, 0
    else:
        table = min(LOGITS_BYTES, N * config.vocab_size * width)
        d_head = 4 * head if head_parameters(config) == 0 and tune.what == "full" else 4 * head_parameters(config)
        d_head = d_head if tune.what != "lora" else 0
        logits = int(table + d_head + 4 * N * D + (2 * head if half else 0))
    twice = d_head if config.tie_word_embeddings and tune.what == "full" else 0  # summed with the embedding's own
    gradients = 4 * trained * (2 if processes > 1 else 1) + twice
    accumulated = 4 * trained if accumulates else 0
    # While all activations are there the uppermost block is differentiated. Afterwards a GPU's allocator has their
    # room for the gradients; a CPU's, which keeps what is freed (allocation.keep_freed_memory), has it in other sizes.
    start_of_backward = activations + int(of_block) + logits
    changing = start_of_backward + gradients if on_cpu else max(start_of_backward + accumulated, gradients)
    weights = 4 * (parameters + (trained if tune.what == "lora" else 0))
    moments = 8 * trained - (4 * tune.blocks(L) * block_matrices(config) if optimizer == "muon" else 0)
    peak = int(weights + moments + changing)
    return Memory(weights, gradients, moments, activations, logits, peak)


# --- Seconds -----------------------------------------------------------------------------------------------------


class Rehearsal(NamedTuple):
    """What a probe has measured on rows of `length` tokens, forward and backward (machine_probe.py)."""

    rows: int
    length: int
    shallow: float  # seconds of a whole model of one block
    block: float  # seconds of one block more
    update: float  # seconds of clipping and AdamW, for one parameter
    block_update: float = 0.0  # seconds that Muon takes longer, for one block


def step_seconds(
    config: Any,
    rehearsal: Rehearsal,
    batch_size: int,
    length: int,
    accumulation_steps: int = 1,
    tune: Tune = FULL,
    classes: int | None = None,
) -> float:
    """How long one optimizer step takes: what was rehearsed, scaled by the FLOPs that it has more or fewer."""
    L, deep = config.num_hidden_layers, block_flops(config, length) / block_flops(config, rehearsal.length)
    head = [head_flops(config, n, classes) + block_flops(config, n) for n in (length, rehearsal.length)]
    rows = batch_size / rehearsal.rows
    micro_batch = rows * (rehearsal.shallow * head[0] / head[1] + (L - 1) * rehearsal.block * deep)
    share = row_flops(config, length, tune, classes) / row_flops(config, length, FULL, classes)
    update = rehearsal.update * trained_parameters(config, tune, classes) + rehearsal.block_update * tune.blocks(L)
    return accumulation_steps * micro_batch * share + update


def rehearsal_shape(batch_size: int, length: int, config: Any, flops: float) -> tuple[int, int]:
    """(rows, tokens of a row), at most these, of which one block and the head take at most `flops`, or 128 tokens.

    A shape that is cut short overestimates: what a step does once, however many its tokens, is scaled with them.
    """

    def cost(length: int) -> int:
        return 3 * (block_flops(config, length) + head_flops(config, length))

    if cost(length) <= flops:
        return max(1, min(batch_size, int(flops / cost(length)))), length
    return 1, max(min(length, 128), 2 ** int(math.log2(length * flops / cost(length)) if flops else 0))


__all__ = [
    "FULL",
    "Memory",
    "Rehearsal",
    "Tune",
    "all_parameters",
    "block_activations",
    "block_flops",
    "block_matrices",
    "compute_optimal_tokens",
    "head_flops",
    "memory",
    "rehearsal_shape",
    "row_flops",
    "step_seconds",
    "trained_parameters",
]
