"""Read the documentation of the running Python as documents: text that every user has without a download."""

import ast
from collections.abc import Iterator
from pathlib import Path


NOT_PROSE = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "pydoc_data", "turtledemo"}


def python_documentation(stdlib: str, version: str) -> Iterator[dict]:
    """Yield a document {"text"} with the docstrings of each module, then pydoc's topics.

    Modules are parsed, not imported, so this also works under -OO. `version` is only part of the cache key: another
    version of Python has other text.
    """
    earlier_texts = set()
    for path in sorted(Path(stdlib).rglob("*.py")):
        if NOT_PROSE & set(path.relative_to(stdlib).parts):
            continue
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError, OSError):
            continue
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        docstrings = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, documented)]
        new = [text for text in dict.fromkeys(docstrings) if text and text not in earlier_texts]
        earlier_texts.update(new)
        if new:
            yield {"text": "\n\n".join(new)}
    try:
        from pydoc_data.topics import topics
    except ImportError:
        return
    for text in dict.fromkeys(topics.values()):
        yield {"text": text}


__all__ = ["python_documentation"]
