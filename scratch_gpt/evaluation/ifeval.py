"""IFEval's prompts and the answers to them -> which of its verifiable constraints each answer keeps.

Zhou et al. 2023, "Instruction-Following Evaluation for Large Language Models". The checkers are those inside lm_eval,
so that the numbers compare with others'.
"""

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from typing import Any, NamedTuple


class Kept(NamedTuple):
    """Whether one answer keeps each constraint of its prompt."""

    strict: list[bool]
    loose: list[bool]  # as it is, or without its first or last line or its asterisks


def read_constraints(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of {"key", "prompt", "instruction_id_list", "kwargs"}, google/IFEval's fields -> the same, checked.

    Raises:
        ValueError: a row of other fields, a constraint that IFEval does not have, or nltk's data are not there.
        ImportError: lm_eval is not there.
    """
    checked = []
    for number, row in enumerate(rows, start=1):
        names, given = row.get("instruction_id_list"), row.get("kwargs")
        lists = isinstance(names, list) and isinstance(given, list) and len(names) == len(given) > 0
        whole = lists and all(isinstance(each, Mapping) for each in given)
        if not whole or not isinstance(row.get("prompt"), str):
            raise ValueError(f"Row {number} is none of IFEval's: it needs prompt, instruction_id_list and kwargs.")
        own = [{name: value for name, value in each.items() if value is not None} for each in given]
        row = {"key": row.get("key", number), "prompt": row["prompt"], "instruction_id_list": names, "kwargs": own}
        try:
            keep_constraints([row], ["1"])  # what it lacks is said now, not after an hour of answers
        except (KeyError, TypeError) as error:
            raise ValueError(f"Row {number} has a constraint that IFEval does not have: {error}.") from error
        checked.append(row)
    return checked


def keep_constraints(rows: Sequence[Mapping[str, Any]], answers: Sequence[str]) -> list[Kept]:
    """What each answer keeps of its row's constraints; errors as in `read_constraints`."""
    ifeval = _import_checkers()
    kept = []
    for row, answer in zip(rows, answers, strict=True):
        try:
            with _same_draws():
                found = ifeval.process_results(row, [answer])
        except LookupError as error:
            if isinstance(error, KeyError):
                raise
            raise ValueError(
                "IFEval splits sentences with nltk's data, which are not there: python -m nltk.downloader punkt_tab"
            ) from error
        kept.append(Kept(found["inst_level_strict_acc"], found["inst_level_loose_acc"]))
    return kept


@contextmanager
def _same_draws() -> Iterator[None]:
    # A checker draws what its row does not say: one of the 541 asks for "#" as a letter, and gets another each time.
    state = random.getstate()
    random.seed(0)
    try:
        yield
    finally:
        random.setstate(state)


def constraint_metrics(kept: Sequence[Kept]) -> dict[str, float]:
    """Shares of prompts all of whose constraints are kept, and of single constraints, strictly and loosely."""
    metrics = {}
    for name in ("strict", "loose"):
        rows = [getattr(one, name) for one in kept]
        metrics[f"prompt_{name}_acc"] = sum(map(all, rows)) / len(rows)
        metrics[f"instruction_{name}_acc"] = sum(map(sum, rows)) / sum(map(len, rows))
    return metrics


def _import_checkers():
    # Without a network nltk says in many lines that it could not fetch its data, which most constraints do not need.
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            import langdetect
            from lm_eval.tasks.ifeval import utils
    except ImportError as error:
        raise ImportError(
            'IFEval\'s checkers are in lm_eval, which is an extra: pip install "scratch_gpt[evaluation]"'
        ) from error
    langdetect.DetectorFactory.seed = 0  # else it guesses anew in each call
    return utils


__all__ = ["Kept", "constraint_metrics", "keep_constraints", "read_constraints"]
