"""Check which of IFEval's verifiable constraints the answers to its prompts satisfy.

Zhou et al. 2023, "Instruction-Following Evaluation for Large Language Models". The checkers are lm_eval's, so that the
numbers are comparable with published ones.
"""

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from typing import Any, NamedTuple


class Kept(NamedTuple):
    """Whether one answer satisfies each constraint of its prompt."""

    strict: list[bool]
    loose: list[bool]  # also true if it holds without the answer's first or last line or without its asterisks


def read_constraints(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Check rows of {"key", "prompt", "instruction_id_list", "kwargs"}, google/IFEval's fields, and return them.

    Raises:
        ValueError: a row with other fields, a constraint that IFEval does not have, or nltk's data are missing.
        ImportError: lm_eval is not installed.
    """
    checked = []
    for number, row in enumerate(rows, start=1):
        names, kwargs = row.get("instruction_id_list"), row.get("kwargs")
        if (
            not isinstance(names, list)
            or not isinstance(kwargs, list)
            or not len(names) == len(kwargs) > 0
            or not all(isinstance(options, Mapping) for options in kwargs)
            or not isinstance(row.get("prompt"), str)
        ):
            raise ValueError(f"Row {number} is not a row of IFEval: it needs prompt, instruction_id_list and kwargs.")
        kwargs = [{name: value for name, value in options.items() if value is not None} for options in kwargs]
        row = {"key": row.get("key", number), "prompt": row["prompt"], "instruction_id_list": names, "kwargs": kwargs}
        try:
            keep_constraints([row], ["1"])  # raise errors now, not after an hour of generation
        except (KeyError, TypeError) as error:
            raise ValueError(f"Row {number} has a constraint that IFEval does not have: {error}.") from error
        checked.append(row)
    return checked


def keep_constraints(rows: Sequence[Mapping[str, Any]], answers: Sequence[str]) -> list[Kept]:
    """Check each answer against its row's constraints; errors as in `read_constraints`."""
    ifeval = _import_checkers()
    results = []
    for row, answer in zip(rows, answers, strict=True):
        try:
            with _same_draws():
                scores = ifeval.process_results(row, [answer])
        except LookupError as error:
            if isinstance(error, KeyError):
                raise
            raise ValueError(
                "IFEval splits sentences with nltk's data, which are missing: python -m nltk.downloader punkt_tab"
            ) from error
        results.append(Kept(scores["inst_level_strict_acc"], scores["inst_level_loose_acc"]))
    return results


@contextmanager
def _same_draws() -> Iterator[None]:
    # If a row lacks an argument, its checker draws one. (One of the 541 rows gives "#" as a letter, and gets another.)
    state = random.getstate()
    random.seed(0)
    try:
        yield
    finally:
        random.setstate(state)


def constraint_metrics(results: Sequence[Kept]) -> dict[str, float]:
    """Return the shares of prompts with all constraints satisfied and of single constraints, strict and loose."""
    metrics = {}
    for name in ("strict", "loose"):
        rows = [getattr(result, name) for result in results]
        metrics[f"prompt_{name}_acc"] = sum(map(all, rows)) / len(rows)
        metrics[f"instruction_{name}_acc"] = sum(map(sum, rows)) / sum(map(len, rows))
    return metrics


def _import_checkers() -> Any:
    # Without a network nltk prints many lines about its data, which few constraints need.
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            import langdetect
            from lm_eval.tasks.ifeval import utils
    except ImportError as error:
        raise ImportError(
            'IFEval\'s checkers are in lm_eval, which is an extra: pip install "scratch_gpt[evaluation]"'
        ) from error
    langdetect.DetectorFactory.seed = 0  # otherwise each call guesses differently
    return utils


__all__ = ["Kept", "constraint_metrics", "keep_constraints", "read_constraints"]
