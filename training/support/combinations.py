"""Read a sweep (`learning_rate=1e-3,3e-3 dropout=0,0.1`) and make the options of each combination.

Not a recipe itself. Imports nothing heavy, because a sweep is checked before anything is read.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from itertools import product
from typing import Any, get_args

from scratch_gpt_training.support.command_line import flag, nearest, parse_rates, print_once
from scratch_gpt_training.support.options import LaunchOptions, OutputOptions, Run, RunT
from scratch_gpt_training.support.words import translate


FORM = '"learning_rate=1e-3,3e-3 dropout=0,0.1"'
MOST_RUNS = 256  # each combination is a complete run
# Fields that change the meaning of a validation loss: their runs are compared by this metric, if the recipe has it.
METRICS = {"max_length": "bits_per_byte", "vocab_size": "bits_per_byte", "beta": "accuracy", "simpo_gamma": "accuracy"}
SPLITTING = {"seed", "seeds", "validation_fraction", "test_fraction", "eval_batches"}
ANSWERING = {"answers", "max_new_tokens", "preview"}


def read_sweep(run: Run) -> dict[str, list[float]]:
    """Return the swept fields with their values; empty if the run is not a sweep.

    Raises:
        ValueError: --sweep or --learning-rates is not valid.
    """
    if run.learning_rates is None:
        return {} if run.sweep is None else parse_sweep(run.sweep, type(run))
    if run.sweep is not None:
        raise ValueError(
            f"--learning-rates {run.learning_rates} is a short form of --sweep, and --sweep is given too (or is in "
            "the run.yaml of the sweep to resume). Give one of them."
        )
    return {"learning_rate": parse_rates(run.learning_rates)}


def parse_sweep(text: str, kind: type[Run]) -> dict[str, list[float]]:
    """Parse `learning_rate=1e-3,3e-3 batch_size=4,8` to {"learning_rate": [0.001, 0.003], "batch_size": [4, 8]}.

    Args:
        kind: the options of the recipe.

    Raises:
        ValueError: an unknown field, or one that a sweep cannot compare; values that are not two or more different
            numbers; more than `MOST_RUNS` combinations.
    """
    names = [item.name for item in fields(kind)]
    swept: dict[str, list[float]] = {}
    for part in re.sub(r"\s*([,=])\s*", r"\1", text).split():
        given, equals, values = part.partition("=")
        name = translate(given.lstrip("-").replace("-", "_"), names)
        if not equals:
            raise ValueError(
                f"--sweep must be field=value,value field=value,value, such as {FORM} (you gave {part!r})."
            )
        _check_field(name, given, kind)
        if name != given.replace("-", "_"):
            print_once(f"{given} is {name} here.")
        if name in swept:
            raise ValueError(f"--sweep names {name} twice. Give all its values at once.")
        swept[name] = _parse_values(name, values.split(","), _numbers(kind)[name])
    if not swept:
        raise ValueError(f"--sweep is empty. Give field=value,value field=value,value, such as {FORM}.")
    count = math.prod(map(len, swept.values()))
    if count > MOST_RUNS:
        raise ValueError(f"--sweep has {count:,} combinations, each a complete run. Give at most {MOST_RUNS}.")
    return swept


def _numbers(kind: type[Run]) -> dict[str, type[int] | type[float]]:
    # Return the numeric fields with their types.
    types = {item.name: {item.type, *get_args(item.type)} for item in fields(kind)}
    return {name: int if int in kinds else float for name, kinds in types.items() if kinds & {int, float}}


def _check_field(name: str, given: str, kind: type[Run]) -> None:
    names = [item.name for item in fields(kind)]
    if name not in names:
        if _is_of_config(name):
            raise ValueError(
                f"--sweep: {given} belongs to the model's config, and a sweep takes numeric options. Make one run for "
                f"each value, with --config-overrides {given}=VALUE."
            )
        raise ValueError(f"--sweep: unknown field {given!r}.{nearest(name, names)}")
    if name not in _numbers(kind):
        raise ValueError(f"--sweep: {name} is not a number. Make one run for each value of {flag(name)}.")
    if name in SPLITTING | {*getattr(kind, "NOT_SWEPT", ())}:
        raise ValueError(
            f"--sweep: {name} decides which rows are trained on and which are compared, so losses with different "
            "values are not comparable. Remove it from --sweep."
        )
    others = {item.name for group in (OutputOptions, LaunchOptions) for item in fields(group)} - {"patience"}
    if name in others | ANSWERING:
        raise ValueError(f"--sweep: {name} does not change what is learned. Remove it from --sweep.")


def _is_of_config(name: str) -> bool:
    from scratch_gpt import ScratchGPTConfig

    return name in {*(item.name for item in fields(ScratchGPTConfig)), *ScratchGPTConfig.attribute_map}


def _parse_values(name: str, texts: Sequence[str], number: type[int] | type[float]) -> list[float]:
    values: list[float] = []
    for text in texts:
        try:
            values.append(number(text))
        except ValueError:
            values.append(math.nan)
        if not math.isfinite(values[-1]):
            kind = "whole numbers" if number is int else "numbers"
            raise ValueError(f"--sweep: the values of {name} must be {kind} (you gave {text!r}).")
    if len(values) < 2:
        raise ValueError(f"--sweep: {name} has one value. Give two or more, or {flag(name)} {texts[0]} by itself.")
    shown = [*map(show, values)]
    if twice := next((text for n, text in enumerate(shown) if text in shown[:n]), None):
        raise ValueError(f"--sweep: {name} has the value {twice} twice (to six digits).")
    return values


def show(value: float) -> str:
    """Return a value as names and tables write it.

    >>> show(1e-3), show(100000000)
    ('0.001', '100000000')
    """
    return f"{value:g}" if isinstance(value, float) else str(value)


def combination_name(values: dict[str, float]) -> str:
    """Return the folder name of a combination; the same for any order of its fields.

    >>> combination_name({"learning_rate": 1e-3, "dropout": 0.1})
    'sweep-dropout-0.1-learning_rate-0.001'
    >>> combination_name({"learning_rate": 1e-3})
    'rate-0.001'
    """
    if [*values] == ["learning_rate"]:
        return f"rate-{show(values['learning_rate'])}"
    return "-".join(["sweep", *(f"{name}-{show(value)}" for name, value in sorted(values.items()))])


def combine(run: RunT) -> dict[str, tuple[dict[str, float], RunT]]:
    """Return {folder name: (values, options)} of each combination of a sweep.

    Raises:
        ValueError: the sweep is not valid, or another option does not work with a sweep.
    """
    if not (swept := read_sweep(run)):
        return {}
    if getattr(run, "seeds", 1) > 1 or run.push_to_hub is not None:
        raise ValueError("A sweep has one seed, and none of its runs is published: remove --seeds and --push-to-hub.")
    if run.validation_fraction == 0:
        raise ValueError("The runs of a sweep are compared by validation loss. Give a --validation-fraction above 0.")
    if run.resume not in (None, "latest"):
        raise ValueError(f"--resume {run.resume} is a checkpoint of one combination. With a sweep give `latest`.")
    if run.plan and [*swept] != ["learning_rate"]:
        raise ValueError("--plan estimates one run: remove --sweep.")
    runs = {}
    for numbers in product(*swept.values()):
        values: dict[str, Any] = dict(zip(swept, numbers, strict=True))
        name = combination_name(values)
        changes = {**values, "sweep": None, "learning_rates": None, "output_dir": f"{run.output_dir}/{name}"}
        runs[name] = values, replace(run, **changes)
    return runs


def compared_metric(values: dict[str, float]) -> str:
    """Return the validation metric that compares runs with different values of these fields.

    >>> compared_metric({"dropout": 0.1}), compared_metric({"beta": 0.1})
    ('loss', 'accuracy')
    """
    return next((METRICS[name] for name in values if name in METRICS), "loss")


def check_swept(values: dict[str, float], unused: Mapping[str, str]) -> None:
    """Raise a ValueError if a run does not use one of the swept fields; `unused` has the reasons."""
    for name in values:
        if name in unused:
            raise ValueError(f"--sweep: {flag(name)} has no effect: {unused[name]}. Remove it.")
