"""The rooms (folders) of the package: their purpose and the imports that are allowed in them."""

import ast
from typing import NamedTuple

from places import REPO


class Room(NamedTuple):
    """The imports allowed in a folder of scratch_gpt/ and its subfolders."""

    ours: set[str]  # other rooms
    others: set[str]  # packages, at the top of a file or inside a function
    inside: set[str] = frozenset()  # packages that are optional or slow to import: inside functions only


ROOMS = {
    "modeling": Room(set(), {"torch", "transformers", "huggingface_hub"}),
    "utils": Room(set(), {"psutil", "torch", "transformers"}, {"matplotlib", "numpy", "pyarrow"}),
    "runs": Room({"utils"}, {"yaml"}, {"codecarbon"}),
    "tokenization": Room({"utils"}, {"numpy", "tokenizers", "transformers"}, {"gigatoken"}),
    "finetuning": Room({"utils"}, {"safetensors", "torch"}, {"bitsandbytes", "peft", "transformers"}),
    "data": Room(
        {"tokenization", "utils"},
        {"datasets", "filelock", "numpy", "pyarrow", "torch", "transformers"},
        {"py3langid", "rensa"},
    ),
    "train": Room({"runs", "utils"}, {"accelerate", "numpy", "psutil", "safetensors", "torch"}),
    "conversion": Room(
        {"finetuning", "modeling", "runs", "tokenization", "train", "utils"},
        {"safetensors", "torch", "transformers"},
        {"gguf", "onnxruntime"},
    ),
    "generation": Room({"tokenization", "utils"}, {"torch", "transformers"}),
    "evaluation": Room(
        {"data", "generation", "tokenization", "train", "utils"},
        {"numpy", "torch", "transformers"},
        {"langdetect", "lm_eval"},
    ),
    "analysis": Room(
        {"conversion", "evaluation", "generation", "modeling", "tokenization", "train", "utils"},
        {"torch", "transformers"},
        {"PIL"},
    ),
    "hub": Room(
        {"conversion", "finetuning", "modeling", "runs", "tokenization", "train", "utils"},
        {"huggingface_hub", "safetensors", "torch", "transformers", "yaml"},
    ),
}
# Packages that may be imported in one folder only.
ONLY_IN = {"datasets": "data/sources", "filelock": "data/sources", "accelerate": "train", "tokenizers": "tokenization"}


def purpose(room: str) -> str:
    """Return the first line of the docstring of a room's __init__.py."""
    tree = ast.parse((REPO / "scratch_gpt" / room / "__init__.py").read_text(encoding="utf-8"))
    return ast.get_docstring(tree).splitlines()[0]


def rooms_table() -> str:
    """Return a Markdown table with a row for each room."""
    rows = [
        f"| [{name}/]({name}) | {purpose(name)} | {', '.join(sorted(room.ours)) or '-'} |"
        for name, room in ROOMS.items()
    ]
    return "\n".join(["| `scratch_gpt/` | purpose | may import |", "|---|---|---|", *rows])
