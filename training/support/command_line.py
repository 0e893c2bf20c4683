"""Read a recipe's options from the command line and YAML files, and turn errors into one line."""

import argparse
import difflib
import os
import re
import reprlib
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

from transformers import HfArgumentParser
from transformers.utils import logging

from scratch_gpt_training.support.commands import find_config, spell_commands
from scratch_gpt_training.support.help import format_help
from scratch_gpt_training.support.words import CHOICE_HINTS, check_once, hint, translate


OptionsT = TypeVar("OptionsT")  # a dataclass
_known_fields: set[str] = set()  # of the options that `parse` read last: messages write them as flags
_defaults: dict[str, str] = {}  # default model or dataset: its field, for messages about it


# --- Command line and YAML to options ----------------------------------------------------------------------------


class _Parser(HfArgumentParser):
    def error(self, message: str):
        raise ValueError(_plain(message))


_EXAMPLES = {"push_to_hub": "user/name", "resume": "latest"}  # of options that need a value
_KINDS = {"int": "a whole number", "float": "a number"}


def _plain(message: str) -> str:
    # Rewrite argparse's message: the given value, then the allowed ones.
    match = re.fullmatch(r"argument --(\w+)\S*: (.*)", message, flags=re.DOTALL)
    if match is None:
        return message
    name, problem = match[1], match[2]
    if choice := re.match(r"invalid choice: '([^']*)' \(choose from (.*)\)", problem):
        text = CHOICE_HINTS.get((name, choice[1]), "")
        return f"{flag(name)} {choice[1]!r} is not one of: {choice[2].replace(chr(39), '')}. {text}".rstrip()
    if value := re.match(r"Truthy value expected: got (\S+)", problem):
        return f"{flag(name)} must be true or false (you gave {value[1]})."
    if value := re.match(r"invalid (\w+) value: (.*)", problem):
        return f"{flag(name)} must be {_KINDS.get(value[1], value[1])} (you gave {value[2]})."
    if problem.startswith("expected "):
        return f"{flag(name)} needs a value: {flag(name)} {_EXAMPLES.get(name, 'VALUE')}."
    return f"{flag(name)}: {problem}"


def parse(
    kind: type[OptionsT],
    argv: Sequence[str] | None = None,
    positional: Sequence[str] = (),
    unused: Callable[[OptionsT], Mapping[str, str]] = lambda run: {},
) -> OptionsT:
    """Read a `kind` from `--config FILE.yaml` and from options, written with dashes or underscores; options win.

    With --resume, fields that are not given are read from the run.yaml in output_dir. --help prints and exits.

    Args:
        positional: fields that may also be given as words without a flag, in this order.
        unused: returns the fields that a run does not use, with the reasons. They are allowed in a file, because a
            run.yaml has every field, but not on the command line.

    Raises:
        ValueError: an unknown field, with the most similar known one; a value of the wrong type; an unused field.
    """
    _known_fields.clear()  # errors in the options themselves name fields as the user wrote them
    _defaults.clear()
    argv = list(sys.argv[1:] if argv is None else argv)
    names = [item.name for item in fields(cast(Any, kind))]
    _print_help(kind, argv, positional)
    argv = _translate(argv, names)
    parser = _Parser(cast(Any, kind), allow_abbrev=False, add_help=False)
    parser.add_argument("--config")
    if positional:
        parser.add_argument("words", nargs="*")
    for action in parser._actions:
        if action.dest == "resume":
            action.nargs, action.const = "?", "latest"
    path = _config_path(argv)
    file_values = {} if path is None else _read_fields(path, kind)
    # As strings, so that argparse converts them like those of the command line (YAML reads 4e-4 as a string itself).
    parser.set_defaults(**file_values)
    read = parser.parse_known_intermixed_args if positional else parser.parse_known_args
    namespace, unknown = read(argv)
    if not unknown and (run_file := _own_file(namespace)) is not None:
        parser.set_defaults(**_read_fields(run_file, kind, of_run=True) | file_values)
        namespace, unknown = read(argv)
    if unknown:
        word = unknown[0].split("=")[0]
        raise ValueError(f"Unknown option {word}.{nearest(word.lstrip('-').replace('-', '_'), names, '--')}")
    words = namespace.words if positional else []
    if len(words) > len(positional):
        raise ValueError(f"Unexpected word {words[len(positional)]!r}. Put a text with spaces in quotes.")
    run = kind(**{**{name: getattr(namespace, name) for name in names}, **dict(zip(positional, words, strict=False))})
    explicit = vars(parser.parse_known_args(argv, argparse.Namespace(**dict.fromkeys(names, argparse.SUPPRESS)))[0])
    explicit_names = [
        name for name in names if explicit[name] is not argparse.SUPPRESS or name in positional[: len(words)]
    ]
    reasons = unused(run) if explicit_names else {}
    for name in explicit_names:
        if name in reasons:
            raise ValueError(f"{flag(name)} has no effect: {reasons[name]}. Remove it.")
    _known_fields.update(names)
    for item in fields(cast(Any, kind)):
        is_default = item.name not in (*explicit_names, *file_values) and getattr(run, item.name) == item.default
        if item.name in ("dataset", "model") and is_default and item.default is not None:
            remember_default(item.name, cast(str, item.default))
    return run


def remember_default(field: str, value: str) -> None:
    """Record a default model or dataset, so that messages about it say that it is the default."""
    _defaults[value] = field


def explain_default(message: str) -> str:
    """Return a message about a model or dataset; if that is a default, add the option that replaces it."""
    for value, field in _defaults.items():
        if re.search(rf"(?<![\w/.-]){re.escape(value)}(?![\w/-])", message):
            options = {"dataset": "a file, a folder or a Hub dataset", "model": "a model's folder or Hub id"}
            return f"{message} {value} is the default of {flag(field)}: pass {options[field]}."
    return message


def _print_help(kind: type, argv: Sequence[str], positional: Sequence[str]) -> None:
    # --help and --help-all print and exit; a --help that is the value of an option is not recognized, as in argparse.
    words = argv[: argv.index("--")] if "--" in argv else argv
    if {"-h", "--help", "--help-all"} & {*words}:
        description = spell_commands(sys.modules[kind.__module__].__doc__ or "")
        program = sys.argv[0] if " " in sys.argv[0] else Path(sys.argv[0]).name  # `scratch-gpt pretrain`
        print(format_help(kind, program, description, positional, "--help-all" in words))
        raise SystemExit(0)


def _translate(argv: Sequence[str], names: Collection[str]) -> list[str]:
    """Return a command line with other tools' option names replaced by ours, if the meaning is the same."""
    options = {word: word[2:].split("=")[0].replace("-", "_") for word in argv if word[:2] == "--" and word != "--"}
    check_once(options.values(), names)
    translated = []
    for word in argv:
        name = options.get(word)
        field = None if name is None else translate(name, names)
        if name is not None and field not in (None, name):
            print_once(f"--{name.replace('_', '-')} is {flag(cast(str, field))} here.")
            word = flag(cast(str, field)) + word[len(name) + 2 :]
        translated.append(word)
    return translated


def print_once(text: str) -> None:
    """Print a line on stderr, in the first process of a launch."""
    if os.environ.get("RANK", "0") == "0":
        print(text, file=sys.stderr)


# Fields of a run.yaml that concern one launch or its folder, so that a resuming launch does not read them.
OF_A_LAUNCH = {"output_dir", "resume", "overwrite", "allow_changed", "expect_processes", "plan", "manifest"}


def _own_file(namespace: argparse.Namespace) -> str | None:
    # Return the path of the run.yaml of the run to resume, if we wrote one.
    if getattr(namespace, "resume", None) is None:
        return None
    from scratch_gpt.runs.folder import is_run

    file = Path(namespace.output_dir) / "run.yaml"
    return str(file) if file.is_file() and is_run(file.parent) else None


def _read_fields(path: str, kind: type, of_run: bool = False) -> dict[str, Any]:
    """Read the fields of a `kind` from a YAML file, as strings; with `of_run` only those that a new launch keeps."""
    defaults = {item.name: item for item in fields(kind)}
    values = _read_yaml(path, None if of_run else [*defaults])
    if of_run:  # an older run may have fields that no longer exist
        values = {name: value for name, value in values.items() if name in defaults and name not in OF_A_LAUNCH}
    for name, value in values.items():
        if value is None and defaults[name].default is not None:
            raise ValueError(f"{path}: {name} is empty. Remove the line for the default.")
        if value is False and "no" in get_args(defaults[name].type):  # YAML reads a bare `no` as false
            values[name] = "no"
        several = "list[" in str(defaults[name].type)
        items = value if several and isinstance(value, list) else [value]
        if value is not None and (isinstance(value, list) != several or any(map(_is_nested, items))):
            form = "list of single values" if several else "single value"
            raise ValueError(f"{path}: {name} is {reprlib.repr(value)}; it must be a {form}.")
    return {name: _as_strings(value) for name, value in values.items()}


def _as_strings(value: Any) -> Any:
    return [*map(str, value)] if isinstance(value, list) else None if value is None else str(value)


def _config_path(argv: list[str]) -> str | None:
    for n, word in enumerate(argv):
        if word.startswith("--config="):
            return word.removeprefix("--config=")
        if word == "--config" and n + 1 < len(argv):
            return argv[n + 1]
    return None


def _read_yaml(path: str, names: list[str] | None) -> dict[str, Any]:
    import yaml

    try:
        file = find_config(path)
        if file.is_fifo():
            raise ValueError("it is a pipe. Give a file.")
        content = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"--config {path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not content:
        raise ValueError(f"--config {path} must hold `field: value` lines.")
    content = {str(name).replace("-", "_"): value for name, value in content.items()}
    if names is not None:
        check_once(content, names, path)
        content = {translate(name, names): value for name, value in content.items()}
    for name, value in content.items():
        if names is not None and name not in names:
            raise ValueError(f"{path}: unknown field {name!r}.{nearest(name, names)}")
        if name == "sweep" and isinstance(value, dict):  # {field: [value, value]}
            lists = {field: items if isinstance(items, list) else [items] for field, items in value.items()}
            content[name] = " ".join(f"{field}={','.join(map(str, items))}" for field, items in lists.items())
        elif isinstance(value, dict):
            raise ValueError(f"{path}: {name} is {reprlib.repr(value)}; it must be a single value.")
    return content


def _is_nested(value: Any) -> bool:
    return isinstance(value, (list, dict))


def nearest(name: str, names: Sequence[str], prefix: str = "") -> str:
    """Return a sentence with what to write instead of an unknown field, after a space."""
    name = name.split(".")[-1]  # litgpt's `train.max_norm`
    if (text := hint(name, names)) is not None:
        return f" {text}"
    same = translate(name, names)
    near = [same] if same in names else difflib.get_close_matches(name, names, n=1, cutoff=0.8)
    if not near:
        return " --help-all lists all."
    return f" Did you mean {prefix}{near[0].replace('_', '-') if prefix else near[0]}?"


def parse_overrides(text: str | None, config_class: type) -> dict[str, Any]:
    """Parse `a=1,b=false` to {"a": 1, "b": False}, values as YAML; ValueError for a field that config_class lacks."""
    import yaml

    names = sorted({*(item.name for item in fields(config_class)), *config_class.attribute_map, "drop_rate"})
    changes = {}
    for pair in filter(None, (text or "").split(",")):
        name, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"--config-overrides must be name=value,name=value (you gave {pair!r}).")
        if name not in names:
            raise ValueError(f"--config-overrides: unknown config field {name!r}.{nearest(name, names)}")
        try:
            changes[name] = yaml.safe_load(value)
            if isinstance(changes[name], str):
                changes[name] = float(value)  # 1e-5, which YAML reads as a string
        except (yaml.YAMLError, ValueError, RecursionError):
            changes[name] = value
    return changes


def _split_names(text: str) -> list[str]:
    # Split at commas, except for those in the name of an existing file.
    parts, names = text.split(","), []
    while parts:
        ends = range(len(parts), 0, -1)
        joined = (",".join(parts[:end]).strip() for end in ends)
        is_there = (any(map(os.path.lexists, (item, item.rpartition("=")[0]))) for item in joined)
        end = next((end for end, is_path in zip(ends, is_there, strict=True) if is_path), 1)
        names.append(",".join(parts[:end]))
        del parts[:end]
    return names


def parse_numbers(text: str, field: str) -> dict[str, float | None]:
    """Parse `name=number,name` to {name: number or None}; ValueError unless numbers are positive and names differ."""
    numbers: dict[str, float | None] = {}
    for item in filter(None, map(str.strip, _split_names(text))):
        is_name = "=" not in item or os.path.lexists(item)
        name, equals, number = (item, "", "") if is_name else item.rpartition("=")
        try:
            value = float(number) if equals else None
        except ValueError:
            raise ValueError(f"{flag(field)}: {item!r} is not name=number.") from None
        if value is not None and not 0 < value < float("inf"):
            raise ValueError(f"{flag(field)}: {name} has {number}; it must be a positive number.")
        if name in numbers:
            raise ValueError(f"{flag(field)} names {name} twice.")
        numbers[name] = value
    if not numbers:
        raise ValueError(f"{flag(field)} must be name=number,name=number (you gave {text!r}).")
    return numbers


def parse_rates(text: str) -> list[float]:
    """Parse `1e-4,3e-4` to [0.0001, 0.0003]; ValueError unless the rates are positive, different, and at least two."""
    try:
        rates = [float(item) for item in text.split(",")]
    except ValueError:
        rates = []
    names = {f"{rate:g}" for rate in rates}
    if len(names) < 2 or len(names) < len(rates) or not all(0 < rate < float("inf") for rate in rates):
        raise ValueError(
            f"--learning-rates must be two or more different positive numbers, such as 1e-4,3e-4 (you gave {text})."
        )
    return rates


# --- Errors of the library to errors of the command line ---------------------------------------------------------

_QUOTED = r"""(?<!\w)'(?:\\.|[^'\\])*'(?!\w)|"(?:\\.|[^"\\])*"|`(?P<ticked>[a-z]\w*)`|`[^`]*`"""
_NAME = r"(?<![\w.@~&?-])(?<!'s )(?P<name>[a-z]\w*)(?!\.\w)(?![\w([/\\-])"
_VALUE = r"(?P<equals>=(?:(?P<truth>True|False)\b|'(?P<word>[\w./-]+)')?)?"
_FILE = r"(?<!\S)\S*[/\\]\S*|(?<![\w-])[\w-]+(?:\.[\w-]+)+"  # paths, URLs, file names with an extension
_WORDS = re.compile(f"{_QUOTED}|{_NAME}{_VALUE}|{_FILE}")


def flag(name: str) -> str:
    """Return the command line's spelling of a field."""
    return f"--{name.replace('_', '-')}"


def name_flags(message: str, names: Collection[str]) -> str:
    """Return a message with arguments written as flags.

    An argument is one of `names` that has an underscore or is followed by `=`. Quoted text, paths, URLs and file names
    are not changed, and neither is the attribute of something else ("the model's vocab_size").

    Example:
        >>> name_flags("max_length 9 is more than 'max_length': pass pad=True.", {"max_length", "pad"})
        "--max-length 9 is more than 'max_length': pass --pad true."
    """

    def spell(match: re.Match[str]) -> str:
        name, equals = match["ticked"] or match["name"], match["equals"] or ""
        if name not in names or not (equals or "_" in name):
            return match[0]
        if value := match["word"] or (match["truth"] or "").lower():
            return f"{flag(name)} {value}"
        has_value = equals and re.match(r"[\w'\"/~-]|\.{1,2}/", message[match.end() :])
        return f"{flag(name)} " if has_value else flag(name)

    return _WORDS.sub(spell, message)


# --- Exit on errors ----------------------------------------------------------------------------------------------


@contextmanager
def _no_model_bars() -> Iterator[None]:
    # transformers shows a progress bar for each file that it loads or saves; a recipe shows its own.
    was_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            logging.enable_progress_bar()


@contextmanager
def one_clear_line(
    *kinds: type[Exception], stopped: str = "--resume latest continues from the last checkpoint, if one was written."
) -> Iterator[None]:
    """Print a user error as one line on stderr and exit with code 2; other errors keep their traceback.

    `kinds` are by default the errors that a wrong field, file or model raises, which are user errors until training
    begins. An error with an `exit_code` (a run that was stopped) ends with that code. Under a launcher every process
    finds the same error: the first one prints it, and the others wait for it. `stopped` is printed at Ctrl-C. From
    here on standard output and error replace characters that their encoding lacks, so that no text ends a run.
    """
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):  # a notebook's stream accepts every character
            reconfigure(errors="replace")
    from huggingface_hub.errors import StrictDataclassError

    kinds = kinds or (ValueError, OSError, ImportError, StrictDataclassError)
    try:
        with _no_model_bars():
            yield
    except KeyboardInterrupt:
        print(f"\nstopped. {stopped}".rstrip(), file=sys.stderr)
        raise SystemExit(130) from None
    except kinds as error:
        if isinstance(error, StrictDataclassError) and error.__cause__ is not None:
            error = error.__cause__
        if int(os.environ.get("RANK", "0")) > 0:
            time.sleep(10)  # the launcher ends this process after the first one has printed the error
        code, line = getattr(error, "exit_code", 2), " ".join(str(error).split())
        if not isinstance(error, (OSError, ImportError)):
            line = name_flags(line, _known_fields | {"config"})
        line = explain_default(line)
        if not line.isprintable():
            from scratch_gpt.utils.foreign import shown

            line = shown(line)
        print(f"{'error: ' if code == 2 else ''}{line}", file=sys.stderr, flush=True)
        raise SystemExit(code) from error
