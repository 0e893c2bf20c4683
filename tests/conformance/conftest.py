"""Make the fetched tests importable, with their marks and offline tiny models."""

import os
import sys
import tempfile
from pathlib import Path


HERE = Path(__file__).resolve().parent
FETCHED = HERE.parents[1] / ".conformance"
# Marks used by Hugging Face's mixins.
MARKS = (
    *("is_pipeline_test", "is_training_test", "is_tensor_parallel_test", "is_expert_parallel_test", "is_fsdp_test"),
    *("flash_attn_test", "flash_attn_3_test", "flash_attn_4_test", "all_flash_attn_test"),
    *("accelerate_tests", "torch_compile_test", "slow", "generate"),
)

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for models of a few thousand weights, threads only add time
_tiny_models = tempfile.TemporaryDirectory()  # the pipeline mixin looks for its models and their list here
os.environ["TRANSFORMERS_TINY_MODEL_PATH"] = _tiny_models.name
sys.path[:0] = [str(FETCHED), str(HERE)]  # `tests` is then Hugging Face's package, also in processes that tests start


def pytest_configure(config) -> None:
    for name in MARKS:
        config.addinivalue_line("markers", f"{name}: set by Hugging Face's mixins")
