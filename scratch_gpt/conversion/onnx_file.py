"""Write an ONNX file and compare its outputs with the model's."""

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from ..modeling.modeling_scratch_gpt import (
    ScratchGPTForSequenceClassification,
    ScratchGPTModel,
    ScratchGPTPreTrainedModel,
)
from .load import own_class


TOLERANCE = 1e-4  # largest difference between a model and its ONNX file, relative to the largest output


class Plain(nn.Module):
    """Wrap a model as a function: input_ids (B, T), attention_mask (B, T) -> its first output, without a cache."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)[0]


def write_onnx(model: ScratchGPTPreTrainedModel, file: Path) -> float:
    """Write a model as ONNX, and return the largest difference between its outputs and the model's.

    Inputs: `input_ids` and `attention_mask`, both int64 (batch, sequence), padded on either side. Output: `logits`
    (batch, sequence, vocabulary), or (batch, classes) of a classifier; without a head `last_hidden_state`. The file's
    metadata holds the context length and a classifier's labels. Weights of 2 GB or more are in a `.data` file next to
    it.

    Raises:
        ValueError: the file computes other outputs than the model.
    """
    context = model.config.max_position_embeddings
    model.set_attn_implementation("eager")  # plain operations, with defined outputs for padding too
    ids = torch.zeros(2, min(8, context), dtype=torch.long)
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence", max=context)}
    kind = own_class(model)
    output = "last_hidden_state" if kind is ScratchGPTModel else "logits"
    with _quiet():
        program = torch.onnx.export(
            Plain(model),
            (ids, torch.ones_like(ids)),
            dynamo=True,
            verbose=False,
            dynamic_shapes=(sizes, sizes),
            input_names=["input_ids", "attention_mask"],
            output_names=[output],
        )
    assert program is not None  # true with dynamo=True
    _remove_sources(program.model)
    program.model.metadata_props["context"] = str(context)
    if kind is ScratchGPTForSequenceClassification:
        names = cast(dict[int, str], model.config.id2label)
        program.model.metadata_props["labels"] = json.dumps([names[id] for id in sorted(names)])
    program.save(str(file))
    return _compare(model, file)


def _remove_sources(model: Any) -> None:
    # The exporter records the source file and line of each node.
    graphs = [model.graph, *model.functions.values()]
    for graph in graphs:
        nodes = [*graph.all_nodes()]
        values = [*graph.inputs, *(value for node in nodes for value in node.outputs)]
        for part in (graph, *nodes, *values, *getattr(graph, "initializers", {}).values()):
            part.metadata_props.clear()
            part.doc_string = None
    model.metadata_props.clear()
    model.doc_string = None


@torch.no_grad()
def _compare(model: ScratchGPTPreTrainedModel, file: Path) -> float:
    # Compare on the longest rows, with padding on both sides, and on a single token.
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    context = model.config.max_position_embeddings
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (3, context), generator=draw)
    mask = torch.ones_like(ids)
    mask[1, : context // 2], mask[2, (context + 1) // 2 :] = 0, 0
    worst = 0.0
    for rows, row_mask in ((ids, mask), (ids[:1, :1], mask[:1, :1])):
        output = Plain(model)(rows, row_mask)
        arrays = session.run(None, {"input_ids": rows.numpy(), "attention_mask": row_mask.numpy()})
        difference = (output - torch.from_numpy(arrays[0])).abs()
        if output.dim() == 3:  # outputs at padding are undefined
            difference = difference[row_mask.bool()]
        limit = TOLERANCE * max(1.0, float(output.abs().max()))
        if not float(difference.max()) <= limit:
            raise ValueError(
                f"The ONNX file differs from the model by {float(difference.max()):.2g}, and at most {limit:.2g} is "
                "allowed. The file was deleted."
            )
        worst = max(worst, float(difference.max()))
    return worst


@contextmanager
def _quiet() -> Iterator[None]:
    # The exporter warns about missing libraries and about its own calls.
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


__all__ = ["Plain", "write_onnx"]
