"""Imported once by the process that crash.py's runs are forked from."""

import datasets  # noqa: F401
import matplotlib.figure  # noqa: F401

import scratch_gpt.data.streams  # noqa: F401
import scratch_gpt.generation  # noqa: F401
import scratch_gpt.tokenizer  # noqa: F401
from scratch_gpt_training import pretrain  # noqa: F401
from scratch_gpt_training.support.run import runner  # noqa: F401
