"""Run a training recipe: read its options, check them, and plan, train once, or train over seeds or a sweep."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from scratch_gpt_training.support.combinations import check_swept, combine, read_sweep
from scratch_gpt_training.support.command_line import one_clear_line, parse, remember_default
from scratch_gpt_training.support.options import Run, RunT, check_run


if TYPE_CHECKING:
    from scratch_gpt_training.support.run.task import Task


def _no_alternative(run: Run) -> bool:
    return False


def _plan_like_text(run: Run) -> dict[str, int]:
    return {}


def run_recipe(
    kind: type[RunT],
    argv: Sequence[str] | None,
    build: "Callable[[RunT], Task]",
    check_recipe: Callable[[RunT], None],
    unused: Callable[[RunT], Mapping[str, str]],
    resolve_model: Callable[[RunT], RunT] = lambda run: run,
    instead: Callable[[RunT], bool] = _no_alternative,
    plan_shape: Callable[[RunT], dict[str, int]] = _plan_like_text,
) -> None:
    """Run a recipe, from the command line to the run folder.

    Args:
        build: returns the task to train, given the options.
        check_recipe: raises a ValueError for options that this recipe cannot combine.
        unused: see `parse`.
        resolve_model: fills in the recipe's default model.
        instead: does something else than training if the options ask for it, and then returns True.
        plan_shape: returns arguments of `print_plan`.
    """
    with one_clear_line():
        run = parse(kind, argv, unused=lambda run: {**unused(run), **dict.fromkeys(read_sweep(run), "it is swept")})
        check_recipe(run)
        resolved = resolve_model(run)
        if run.model is None and resolved.model is not None:
            remember_default("model", resolved.model)
        run = resolved
        combinations = combine(run)
        for values, combination in combinations.values():
            check_swept(values, unused(combination))
            check_recipe(combination)
            check_run(combination)
        check_run(run)
        if run.plan:
            from scratch_gpt_training.support.run.planning import print_plan

            return print_plan(run, **plan_shape(run))
        if instead(run):
            return None
    if combinations:
        from scratch_gpt_training.support.run.sweep import run_sweep

        return run_sweep(run, combinations, build)
    with one_clear_line():
        from scratch_gpt_training.support.run.seeds import run_seeds

    return run_seeds(run, build)
