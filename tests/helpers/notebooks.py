"""Run a notebook: in a kernel if nbclient is installed, as Jupyter does, else as a script."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple


MARK = "[picture]"


class Run(NamedTuple):
    """What a notebook has printed and drawn."""

    out: str
    err: str
    pictures: int


def code_of(file: Path) -> list[str]:
    """Return the source of each code cell."""
    cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def run_notebook(file: Path, folder: Path, changes: Mapping[str, str]) -> Run:
    """Run the cells in `folder`, with each of `changes` replaced in their source; a cell's error is raised.

    Raises:
        AssertionError: a text to replace occurs in no cell.
    """
    cells = code_of(file)
    for old, new in changes.items():
        assert any(old in code for code in cells), old
        cells = [code.replace(old, new) for code in cells]
    is_installed = all(importlib.util.find_spec(name) for name in ("nbclient", "ipykernel"))
    return (_in_kernel if is_installed else _in_script)(cells, folder)


def _in_kernel(cells: list[str], folder: Path) -> Run:
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code) for code in cells])
    place = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=place).execute()
    outputs = [output for cell in notebook.cells for output in cell.outputs]
    texts = {"stdout": "", "stderr": ""}
    for output in outputs:
        if output.output_type == "stream":
            texts[output.name] += output.text
    return Run(*texts.values(), sum("image/png" in output.get("data", {}) for output in outputs))


def _in_script(cells: list[str], folder: Path) -> Run:
    lines = ["import matplotlib.pyplot as plt", f"plt.show = lambda: print({MARK!r}) or plt.close()"]
    lines += [re.sub(r"^( *)%.*", r"\1pass", code, flags=re.MULTILINE) for code in cells]
    script = folder / "cells.py"
    script.write_text("\n".join(lines), encoding="utf-8")
    variables = {**os.environ, "MPLBACKEND": "Agg", "PYTHONIOENCODING": "utf-8"}
    words = [sys.executable, str(script)]
    done = subprocess.run(words, cwd=folder, env=variables, capture_output=True, encoding="utf-8", timeout=600)
    assert done.returncode == 0, done.stderr
    return Run(done.stdout, done.stderr, done.stdout.count(MARK))
