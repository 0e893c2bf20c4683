"""Compute the costs of training from a config: parameters, floating point operations, bytes, seconds.

D width, F width inside the MLP, L layers, H heads, V vocabulary, C classes, T tokens of a row, N tokens of a batch.

A config is any object with the attributes of `ScratchGPTConfig`. A FLOP is one multiplication or addition of a matrix
product; as in the literature, other operations are not counted. Attention counts the full square of scores, as in PaLM
(Chowdhery et al. 2022, appendix B). Tests compare all of this with the model itself.
"""

import math
import re
from typing import Any, NamedTuple


TOKENS_PER_PARAMETER = 20  # approximate; Hoffmann et al. 2022 ("Chinchilla"), table 3, for training from scratch
LOGITS_BYTES = 2**26  # of the head's logits (modeling/linear_cross_entropy.py)
LORA = {  # lora_targets -> (D x D matrices with LoRA in a block, D x F matrices with LoRA)
    "default": (3, 0),
    "attention": (4, 0),
    "all-linear": (4, 2),
}


class Tune(NamedTuple):
    """The part of a model that is trained; `what` is the recipes' `tune`."""

    what: str = "full"
    lora_rank: int = 16
    lora_targets: str = "default"

    def blocks(self, layers: int) -> int:
        """Return the number of upper blocks that are trained."""
        match = re.fullmatch(r"last-(?:block|(\d+)-blocks)", self.what)
        return int(match[1] or 1) if match else layers if self.what == "full" else 0


FULL = Tune()


def compute_optimal_tokens(parameters: int) -> int:
    """Return the compute-optimal number of tokens to train a model from scratch (Hoffmann et al. 2022)."""
    return TOKENS_PER_PARAMETER * parameters


# --- Parameters --------------------------------------------------------------------------------------------------


def block_matrices(config: Any) -> int:
    """Count the parameters of one block's six matrices: four projections, the MLP."""
    return 4 * config.hidden_size**2 + 2 * config.hidden_size * config.intermediate_size


def block_parameters(config: Any) -> int:
    """Count the parameters of one block: its matrices, their biases, two norms."""
    D, F = config.hidden_size, config.intermediate_size
    return block_matrices(config) + D + 3 * D * config.attention_bias + F + D + 4 * D


def head_parameters(config: Any, classes: int | None = None) -> int:
    """Count the parameters of the head; 0 if it shares the token embedding."""
    if classes is not None:
        return classes * config.hidden_size
    return 0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size


def all_parameters(config: Any, classes: int | None = None) -> int:
    """Count the parameters of the whole model; with `classes` those of a classifier.

    Example:
        >>> from scratch_gpt import ScratchGPTConfig
        >>> all_parameters(ScratchGPTConfig())  # GPT-2's small shape
        124439808
    """
    D = config.hidden_size
    embeddings = (config.vocab_size + config.max_position_embeddings) * D
    return embeddings + config.num_hidden_layers * block_parameters(config) + 2 * D + head_parameters(config, classes)


def trained_parameters(config: Any, tune: Tune = FULL, classes: int | None = None) -> int:
    """Count the trained parameters, including LoRA's (without DoRA's magnitudes)."""
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
    """Count the FLOPs of one block's forward pass on one row: its matrices and the two products of attention."""
    return length * (2 * block_matrices(config) + 4 * length * config.hidden_size)


def head_flops(config: Any, length: int, classes: int | None = None) -> int:
    """Count the FLOPs of the head's forward pass on one row: at all positions, or at one for a classifier."""
    D = config.hidden_size
    return 2 * D * classes if classes is not None else 2 * D * config.vocab_size * length


def row_flops(config: Any, length: int, tune: Tune = FULL, classes: int | None = None) -> int:
    """Count the FLOPs of forward and backward on one row of `length` tokens, without recomputation.

    The backward pass has two products for each one of the forward pass: the gradient of the input, needed above the
    lowest trained part, and the gradient of the weights, needed for trained weights.
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
    """Return the bytes per token that one block keeps for the backward pass, without 16-bit copies of its weights.

    Args:
        half: matrix products run in 16 bits under autocast.
        flash: attention by SDPA, which keeps no (T, T) table, except on a CPU with dropout of the attention weights.
        recompute: gradient checkpointing, which keeps only the input of the block.
    """
    D, F, H = config.hidden_size, config.intermediate_size, config.num_attention_heads
    if recompute:
        return 4 * D
    # In fp32: the inputs and statistics of both norms. In the type of the products: one input for q, k and v (three
    # copies under autocast), three for attention, one each for o_proj and up_proj, and GELU's input and output.
    size = 8 * D + 16
    size += 2 * (8 * D + 2 * F) if half else 4 * (6 * D + 2 * F)
    if config.resid_dropout:
        size += 2 * D * ((2 if half else 4) if on_cpu else 1)  # two masks
    weights_dropped = config.attention_dropout > 0
    if flash and not (on_cpu and weights_dropped):
        return size + 4 * H
    if flash:  # torch's plain form, in fp32
        return size + 12 * H * length + (6 * D if half else 0)
    table = (2 if half else 4) * (1 + 2 * weights_dropped)  # softmax; with dropout also the mask and the product
    return size + H * length * table


class Memory(NamedTuple):
    """Bytes of one process, without the program itself and the rows of data."""

    weights: int
    gradients: int  # of trained parameters and of a tied embedding's second use; doubled with several processes
    optimizer: int  # AdamW has two moments; Muon has one for a block's matrices
    activations: int  # of one micro-batch, with 16-bit copies of the weights
    logits: int  # the head's logits and gradients
    peak: int  # on a CPU more than the sum; elsewhere less, because not all exist at the same time


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
    """Return the memory of a training step in fp32 or mixed precision (weights, gradients and moments in fp32).

    Muon for LoRA's matrices is counted as AdamW.
    """
    D, L, N = config.hidden_size, config.num_hidden_layers, batch_size * length
    parameters, trained = all_parameters(config, classes), trained_parameters(config, tune, classes)
    keeping = L if tune.what in ("full", "lora") else tune.blocks(L)  # blocks below are not differentiated
    of_block = N * block_activations(config, length, half=half, flash=flash, on_cpu=on_cpu)
    per_block = N * block_activations(config, length, half=half, flash=flash, on_cpu=on_cpu, recompute=recompute)
    width = 2 if half else 4
    matrices = 2 * block_matrices(config) if half else 0
    activations = int(keeping * (per_block + matrices) + N * 8 * D)  # and the final norm's input and output
    head = config.vocab_size * D
    if classes is not None:
        logits, d_head = 0, 0
    else:
        table = min(LOGITS_BYTES, N * config.vocab_size * width)
        d_head = 4 * head if head_parameters(config) == 0 and tune.what == "full" else 4 * head_parameters(config)
        d_head = d_head if tune.what != "lora" else 0
        logits = int(table + d_head + 4 * N * D + (2 * head if half else 0))
    twice = d_head if config.tie_word_embeddings and tune.what == "full" else 0  # summed with the embedding's gradient
    gradients = 4 * trained * (2 if processes > 1 else 1) + twice
    accumulated = 4 * trained if accumulates else 0
    # The uppermost block is differentiated while all activations are in memory. Afterwards a GPU's allocator reuses
    # their memory for the gradients. A CPU's keeps freed memory (utils/memory.py), but in blocks of other sizes.
    start_of_backward = activations + int(of_block) + logits
    changing = start_of_backward + gradients if on_cpu else max(start_of_backward + accumulated, gradients)
    weights = 4 * (parameters + (trained if tune.what == "lora" else 0))
    moments = 8 * trained - (4 * tune.blocks(L) * block_matrices(config) if optimizer == "muon" else 0)
    peak = int(weights + moments + changing)
    return Memory(weights, gradients, moments, activations, logits, peak)


# --- Seconds -----------------------------------------------------------------------------------------------------


class Rehearsal(NamedTuple):
    """The measurements of a probe on rows of `length` tokens, forward and backward (machine_probe.py)."""

    rows: int
    length: int
    shallow: float  # seconds of a complete model with one block
    block: float  # seconds of each further block
    update: float  # seconds of clipping and AdamW, per parameter
    block_update: float = 0.0  # additional seconds of Muon, per block


def step_seconds(
    config: Any,
    rehearsal: Rehearsal,
    batch_size: int,
    length: int,
    accumulation_steps: int = 1,
    tune: Tune = FULL,
    classes: int | None = None,
) -> float:
    """Estimate the seconds of one optimizer step: scale the measured times by the ratio of FLOPs."""
    L, deep = config.num_hidden_layers, block_flops(config, length) / block_flops(config, rehearsal.length)
    head = [head_flops(config, n, classes) + block_flops(config, n) for n in (length, rehearsal.length)]
    rows = batch_size / rehearsal.rows
    micro_batch = rows * (rehearsal.shallow * head[0] / head[1] + (L - 1) * rehearsal.block * deep)
    share = row_flops(config, length, tune, classes) / row_flops(config, length, FULL, classes)
    update = rehearsal.update * trained_parameters(config, tune, classes) + rehearsal.block_update * tune.blocks(L)
    return accumulation_steps * micro_batch * share + update


def rehearsal_shape(batch_size: int, length: int, config: Any, flops: float) -> tuple[int, int]:
    """Return a shape (rows, tokens of a row) to measure: at most the given one, and at most `flops`.

    `flops` counts one block and the head. A row has at least 128 tokens, or `length` if that is less. A shortened row
    gives an overestimate, because the fixed costs of a step are scaled like the others.
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
