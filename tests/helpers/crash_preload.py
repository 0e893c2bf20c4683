"""Import the libraries once, in the process from which crash.py forks its runs."""

import datasets  # noqa: F401
import matplotlib.figure  # noqa: F401

import scratch_gpt.data.rows.streams  # noqa: F401
import scratch_gpt.generation.generate  # noqa: F401
import scratch_gpt.tokenization.tokenizer  # noqa: F401
from scratch_gpt_training import pretrain  # noqa: F401
from scratch_gpt_training.support.run import runner  # noqa: F401
