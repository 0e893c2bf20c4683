"""Replace modules that Hugging Face's mixins import and the source distribution lacks.

`fetch.py` writes one-line modules with the missing names that import from here. The generation and export tests are
not distributed either: their two mixins are empty.
"""

import os

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from transformers import pipeline


__all__ = [
    "_get_distributed_backend",
    "_get_distributed_device_type",
    "_get_rank_device",
    "_set_rank_device",
    "_start_rank_processes",
    "run_distributed",
]


class ExportTesterMixin:
    """Replaces `tests/exporters/test_export.py`."""


class GenerationTesterMixin:
    """Replaces `tests/generation/test_utils.py`."""


# Keywords that every config must keep, with values that differ from the defaults.
config_common_kwargs = {
    "return_dict": False,
    "output_hidden_states": True,
    "output_attentions": True,
    "dtype": "float16",
    "chunk_size_feed_forward": 5,
    "architectures": ["AnyModel"],
    "id2label": {0: "zero", 1: "one", 2: "two"},
    "label2id": {"zero": 0, "one": 1, "two": 2},
    "problem_type": "regression",
}


# --- Several processes on one CPU ----------------------------------------------------------------------------------


def _get_distributed_device_type() -> str:
    return "cpu"


def _get_distributed_backend() -> str:
    return "gloo"


def _get_rank_device(rank: int) -> torch.device:
    return torch.device("cpu")


def _set_rank_device(rank: int) -> None:
    """Do nothing: a CPU has no devices to choose from."""


def _start_rank_processes(function, args: tuple, nprocs: int) -> None:
    """Run `function(rank, *args)` in `nprocs` new processes; raise the first error of any of them."""
    mp.spawn(_quiet, (function, *args), nprocs=nprocs)


def _quiet(rank: int, function, *args) -> None:
    torch.set_num_threads(1)  # the processes share the cores
    function(rank, *args)


def _grouped(rank: int, function, world_size: int, port: int, args: tuple, kwargs: dict) -> None:
    os.environ.update(
        {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
        | {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    )
    store = dist.TCPStore("localhost", port, is_master=False)
    dist.init_process_group(_get_distributed_backend(), store=store, rank=rank, world_size=world_size)
    try:
        function(rank, *args, **kwargs)
    finally:
        dist.destroy_process_group()


def run_distributed(world_size: int):
    """Return a decorator: `run_distributed(n)(f)(*args)` calls `f(rank, *args)` in n processes of one group."""

    def decorate(function):
        def run(*args, **kwargs) -> None:
            server = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)  # picks a free port
            _start_rank_processes(_grouped, (function, world_size, server.port, args, kwargs), world_size)

        return run

    return decorate


# --- Pipelines -----------------------------------------------------------------------------------------------------

EXAMPLES = ["This is a test", "Another, somewhat longer test"]


class _PipelineTests:
    task: str
    options: dict = {}

    def get_test_pipeline(self, model, tokenizer=None, dtype="float32", **processors):
        model = model.to(getattr(torch, dtype))
        return pipeline(self.task, model=model, tokenizer=tokenizer, **self.options), EXAMPLES


class TextGenerationPipelineTests(_PipelineTests):
    """Greedy text continues the prompt, and a padded batch gives the text of each separate prompt."""

    task = "text-generation"
    options = {"max_new_tokens": 5, "do_sample": False}

    def run_pipeline_test(self, pipe, examples):
        alone = [pipe(text) for text in examples]
        assert all(rows[0]["generated_text"].startswith(text) for rows, text in zip(alone, examples, strict=True))
        pipe.tokenizer.padding_side = "left"
        if pipe.model.dtype == torch.float32:  # in half precision a tie may be decided either way
            assert pipe(examples, batch_size=2) == alone


class FeatureExtractionPipelineTests(_PipelineTests):
    """One vector per token."""

    task = "feature-extraction"

    def run_pipeline_test(self, pipe, examples):
        for text in examples:
            (rows,) = pipe(text)
            assert len(rows) == len(pipe.tokenizer(text).input_ids)
            assert {len(row) for row in rows} == {pipe.model.config.hidden_size}


class TextClassificationPipelineTests(_PipelineTests):
    """A label of the model with a probability, the same in a padded batch as alone."""

    task = "text-classification"

    def run_pipeline_test(self, pipe, examples):
        alone = [pipe(text)[0] for text in examples]
        together = pipe(examples, batch_size=2)
        for one, other in zip(alone, together, strict=True):
            assert one["label"] in pipe.model.config.label2id and 0 <= one["score"] <= 1
            assert abs(one["score"] - other["score"]) < (1e-5 if pipe.model.dtype == torch.float32 else 1e-2)


class ZeroShotClassificationPipelineTests(_PipelineTests):
    """The candidate labels are returned with scores that sum to 1."""

    task = "zero-shot-classification"
    options = {"candidate_labels": ["one", "two"]}

    def run_pipeline_test(self, pipe, examples):
        for text in examples:
            answer = pipe(text)
            assert sorted(answer["labels"]) == ["one", "two"] and abs(sum(answer["scores"]) - 1) < 1e-2
