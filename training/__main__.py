"""Run a recipe by its verb: the command `scratch-gpt`, or `python -m scratch_gpt_training`.

    scratch-gpt pretrain --dataset my.txt --output-dir runs/mine
    scratch-gpt pretrain --dataset my.txt --accelerate_config cpu_2

A recipe runs in this process, as its script does. If the command line has options of `accelerate launch` that the
recipe does not have, the recipe is started by that launcher.
"""

import difflib
import importlib
import os
import signal
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Collection, Sequence
from dataclasses import fields
from pathlib import Path
from typing import NoReturn

from scratch_gpt_training.support.commands import CONFIGS, VARIABLE, VERBS, find_config
from scratch_gpt_training.support.words import hint, translate


LOOK_INSIDE = "look-inside"
USAGE = """\
usage: scratch-gpt VERB [--option value ...]

{verbs}

scratch-gpt VERB --help lists the options of a verb, --help-all explains each. The verbs that train also take the
options of accelerate launch, such as --num_processes 2, and --accelerate_config FILE: a path, or one of
  {launch_files}"""


def usage() -> str:
    """Return the text of `scratch-gpt --help`."""
    summaries = {name: verb.summary for name, verb in VERBS.items()}
    summaries[LOOK_INSIDE] = "Open a page that shows a model's tokens, attention and predictions."
    verbs = "\n".join(f"  {name:<12}{summary}" for name, summary in summaries.items())
    return USAGE.format(verbs=verbs, launch_files=", ".join(launch_files()))


def launch_files() -> list[str]:
    """Return the names of the launch files in configs/accelerate."""
    return sorted(file.stem for file in (CONFIGS / "accelerate").glob("*.yaml"))


def main(argv: Sequence[str] | None = None) -> None:
    """Run the verb that the command line names."""
    is_installed = Path(sys.argv[0]).name.startswith("scratch-gpt")
    os.environ[VARIABLE] = "scratch-gpt" if is_installed else "python -m scratch_gpt_training"
    words = list(sys.argv[1:] if argv is None else argv)
    verb, options = (words[0], words[1:]) if words else ("--help", [])
    if verb in ("-h", "--help"):
        print(usage())
        return
    names = [*VERBS, LOOK_INSIDE]
    if verb not in names:
        near = difflib.get_close_matches(verb, names, n=1)
        hint = f"Did you mean {near[0]}?" if near else f"The verbs are {', '.join(names)}."
        print(f"error: Unknown verb {verb!r}. {hint}", file=sys.stderr)
        raise SystemExit(2)
    if verb == LOOK_INSIDE:
        return look_inside(options)
    recipe = importlib.import_module(f"scratch_gpt_training.{VERBS[verb].module}")
    options_class = VERBS[verb].options
    if options_class is not None:
        own = {item.name for item in fields(getattr(recipe, options_class))}
        if any(is_option(word) and not belongs(word, own) for word in options):
            launch(Path(__file__).with_name(f"{VERBS[verb].module}.py"), options, own)
    sys.argv = [f"{os.environ[VARIABLE]} {verb}", *options]  # for the usage line of --help
    recipe.main([*options, "--chat"] if verb == "chat" else options)


# --- Options of the launcher -------------------------------------------------------------------------------------


def is_option(word: str) -> bool:
    return word.startswith("--") and word != "--"


def option_name(word: str) -> str:
    """Return the name of an option: `--num-processes=2` -> `num_processes`."""
    return word[2:].split("=")[0].replace("-", "_")


def belongs(word: str, own: Collection[str]) -> bool:
    """Return whether an option is one of the recipe's, which has the fields `own`."""
    name = option_name(word)
    is_other_word = translate(name, own) in own or hint(name, own) is not None
    return is_other_word or name in ("config", "help", "help_all") or name.removeprefix("no_") in own


def split_options(words: Sequence[str], own: Collection[str], launcher: ArgumentParser) -> tuple[list[str], list[str]]:
    """Split a command line into (options of the launcher, options of the recipe).

    An option that both have goes to the recipe. One that neither has stays with the recipe, which rejects it.
    """
    lengths = {  # number of values
        option_name(name): action.nargs if isinstance(action.nargs, int) else 1
        for action in launcher._actions
        for name in action.option_strings
        if is_option(name) and action.dest not in ("module", "no_python", "help")
    }
    lengths["accelerate_config"] = 1
    theirs: list[str] = []
    ours: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not is_option(word) or belongs(word, own) or option_name(word) not in lengths:
            ours.append(word)
            continue
        count = 0 if "=" in word else lengths[option_name(word)]
        values, rest = rest[:count], rest[count:]
        theirs += config_option(word, values) if option_name(word) == "accelerate_config" else [word, *values]
    return theirs, ours


def config_option(word: str, values: Sequence[str]) -> list[str]:
    """Return `--accelerate_config NAME` as the launcher's option for a file."""
    name = word.partition("=")[2] or next(iter(values), "")
    file = find_config(name, CONFIGS / "accelerate")
    if not file.is_file():
        raise ValueError(f"--accelerate_config is {name!r}: no such file, and not one of {', '.join(launch_files())}.")
    return ["--config_file", str(file)]


def launch(script: Path, words: Sequence[str], own: Collection[str]) -> None:
    """Start a recipe with `accelerate launch` and exit with its exit code; return if no option is the launcher's."""
    from scratch_gpt_training.support.command_line import one_clear_line

    with one_clear_line(stopped=""):
        from accelerate.commands.launch import launch_command, launch_command_parser
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

        parser = launch_command_parser()
        parser.error = refuse
        options, ours = split_options(words, own, parser)
        if not options:
            return
        arguments = parser.parse_args([*options, str(script), *ours])
        # Ctrl-C also reaches the recipe, which saves and ends: wait for it. A handler, unlike SIG_IGN, is not
        # inherited by the recipe.
        signal.signal(signal.SIGINT, lambda number, frame: None)
        code = 0
        try:
            launch_command(arguments)
        except subprocess.CalledProcessError as error:
            code = error.returncode
        except ChildFailedError as error:
            code = error.get_first_failure()[1].exitcode
    raise SystemExit(128 - code if code < 0 else code)  # a negative code is the number of a signal


def refuse(message: str) -> NoReturn:
    raise ValueError(message)


# --- The page ----------------------------------------------------------------------------------------------------


def look_inside(words: Sequence[str]) -> None:
    """Open the page of a model folder, which is the app of the Space."""
    import runpy

    if words and words[0] in ("-h", "--help"):
        print(f"usage: scratch-gpt {LOOK_INSIDE} MODEL_FOLDER\n\nOpens a page in the browser (an extra: space).")
        return
    from scratch_gpt.hub.card import card_folder

    sys.argv = [f"scratch-gpt {LOOK_INSIDE}", *words]
    runpy.run_path(str(card_folder() / "space" / "app.py"), run_name="__main__")


if __name__ == "__main__":
    main()
