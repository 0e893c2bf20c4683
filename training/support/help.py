"""Write the text of --help and --help-all. Imports nothing heavy."""

import inspect
import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import MISSING, Field, fields
from types import NoneType
from typing import Any, Literal, get_args, get_origin


COLUMN = 32  # in which the explanations begin


def group_fields(kind: type) -> dict[str, list[str]]:
    """Group the fields of a dataclass by the class that first defines them: {title (its docstring): names}."""
    groups: dict[str, list[str]] = {}
    for item in fields(kind):
        owner = next(base for base in reversed(kind.__mro__) if item.name in inspect.get_annotations(base))
        groups.setdefault((owner.__doc__ or "").split("\n")[0].rstrip("."), []).append(item.name)
    return groups


def is_common(kind: type, name: str) -> bool:
    """Return whether the class of a recipe, or one of its base classes, lists a field as COMMON."""
    return any(name in base.__dict__.get("COMMON", ()) for base in kind.__mro__)


def option_help(item: Field) -> str:
    """Return the lines of an option: flag and value, explanation, and the default if there is one."""
    text = item.metadata.get("help", "")
    if item.default not in (None, "", False, MISSING):
        text += f" (default: {str(item.default).lower() if item.default is True else item.default})"
    head = f"  --{item.name.replace('_', '-')}{value_name(item.type)}"
    width = max(60, min(119, shutil.get_terminal_size((100, 24)).columns - 1))
    lines = textwrap.wrap(text, width - COLUMN, break_on_hyphens=False) or [""]
    first = f"{head:<{COLUMN}}{lines[0]}" if len(head) < COLUMN - 1 else f"{head}\n{' ' * COLUMN}{lines[0]}"
    return "\n".join([first, *(" " * COLUMN + line for line in lines[1:])])


def value_name(kind: Any) -> str:
    """Return the text after a flag: the choices, or the kind of value; nothing for a switch."""
    parts = [part for part in get_args(kind) if part is not NoneType]
    if get_origin(kind) is Literal:
        return f" {{{','.join(get_args(kind))}}}"
    if get_origin(kind) is list:
        return " NAME ..."
    if NoneType in get_args(kind):
        return value_name(parts[0])
    return {bool: "", int: " N", float: " X"}.get(kind, " TEXT")


def format_help(kind: type, program: str, description: str, positional: Sequence[str], everything: bool) -> str:
    """Return the text of --help (common options, then the names of the others) or of --help-all."""
    words = "".join(f" [{name.upper()}]" for name in positional)
    parts = [f"usage: {program}{words} [--option value ...] [--config FILE.yaml]", inspect.cleandoc(description)]
    items = {item.name: item for item in fields(kind)}
    if not everything:
        common = [name for names in group_fields(kind).values() for name in names if is_common(kind, name)]
        parts.append("\n".join(["Most used:", *(option_help(items[name]) for name in common)]))
    for title, names in group_fields(kind).items():
        if everything:
            parts.append("\n".join([f"{title}:", *(option_help(items[name]) for name in names)]))
        elif rest := [f"--{name.replace('_', '-')}" for name in names if not is_common(kind, name)]:
            line = f"{title}: {', '.join(rest)}"
            parts.append(textwrap.fill(line, 100, subsequent_indent="  ", break_on_hyphens=False))
    config = "  --config FILE.yaml".ljust(COLUMN) + "Read options from this file, or from an included one by its name."
    help_all = "" if everything else "\n  --help-all".ljust(COLUMN + 1) + "Explain all options."
    parts.append(f"{config}{help_all}")
    return "\n\n".join(parts)
