"""Export a run or model folder as one file that runs without PyTorch: ONNX for onnxruntime, GGUF for llama.cpp.

Both formats keep the model's context length and hold nothing that identifies this machine. An ONNX file is compared
with the model before it gets its name. It has no KV cache, so each new token costs a pass over the complete text.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ..runs.folder import replace_folder
from ..tokenization.tokenizer import load_tokenizer
from ..utils.extras import require_extra
from ..utils.files import DRAFT, remove
from ..utils.loading import ADAPTER_CONFIG
from ..utils.locks import hold
from .gguf_file import write_gguf
from .load import load_any_head
from .onnx_file import write_onnx


EXPORT_FOLDER = "exports"
EXPORT_KINDS = ("onnx", "gguf", "gguf-f16")


class Exported(NamedTuple):
    """A file that was written, and its largest difference from the model's outputs if that was measured."""

    file: Path
    difference: float | None = None


def export(folder: str | Path, *, kind: str, say: Callable[[str], None] = print) -> Exported:
    """Write `folder/exports/KIND/model.onnx` or `model-*.gguf` atomically, replacing an older export.

    Args:
        folder: a run (its `model` is exported), or a model folder in our layout or GPT-2's.
        kind: "onnx" (fp32; any of our heads), "gguf" (fp32) or "gguf-f16" (matrices in 16 bits).
        say: is called with a line if a lock of a process that has ended is taken over.

    Raises:
        ValueError: not a model, a run that another process is writing, a model that the format cannot represent, or a
            file with other outputs than the model.
        ImportError: the extra is not installed.
    """
    if kind not in EXPORT_KINDS:
        raise ValueError(f"export is {kind!r}; it must be one of {', '.join(EXPORT_KINDS)}.")
    top = Path(folder)
    source = top / "model" if (top / "model" / "config.json").is_file() else top
    _check_source(source)
    packages = ("onnx", "onnxscript", "onnxruntime") if kind == "onnx" else ("gguf",)
    require_extra(kind.split("-")[0], packages)
    with hold(top, say):
        return _export(top, source, kind)


def _export(top: Path, source: Path, kind: str) -> Exported:
    tokenizer = load_tokenizer(source)
    model = load_any_head(source).float().eval()
    target = top / EXPORT_FOLDER / kind
    draft = target.with_name(DRAFT + target.name)
    remove(draft)
    draft.mkdir(parents=True)
    try:
        if kind == "onnx":
            difference = write_onnx(model, draft / "model.onnx")
            tokenizer.save_pretrained(draft)
            file = target / "model.onnx"
        else:
            difference = None
            file = target / f"model-{'f16' if kind == 'gguf-f16' else 'f32'}.gguf"
            write_gguf(model, tokenizer, draft / file.name, half=kind == "gguf-f16")
        replace_folder(draft, target)
    finally:
        remove(draft)
    return Exported(file, difference)


def _check_source(source: Path) -> None:
    if (source / ADAPTER_CONFIG).exists():
        raise ValueError(
            f"{source} holds an adapter that is not merged, and only complete models are exported. Export its run "
            "instead (the run's model/ is the merged one)."
        )
    if not (source / "config.json").is_file():
        raise ValueError(f"{source} is not a run or model folder: it has no config.json.")
    kind = json.loads((source / "config.json").read_text(encoding="utf-8")).get("model_type")
    if kind not in ("scratch_gpt", "gpt2"):
        raise ValueError(f"{source} is a {kind}. Only our own models and GPT-2 can be exported.")


__all__ = ["EXPORT_FOLDER", "EXPORT_KINDS", "Exported", "export"]
