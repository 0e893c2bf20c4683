"""Read the rows of a run in splits. Not a recipe itself."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar, cast

from torch.utils.data import Subset

from scratch_gpt.data.columns import Columns
from scratch_gpt.data.sources.documents import open_rows
from scratch_gpt.data.splits import split_groups
from scratch_gpt.train.batches import epoch_order
from scratch_gpt_training.support.options import Run, dataset_location


ItemT = TypeVar("ItemT")
LeftOutT = TypeVar("LeftOutT")


def read_by_prompt(
    run: Run,
    columns: Columns,
    read: Callable[[Iterable[Mapping[str, Any]]], tuple[Sequence[ItemT], LeftOutT]],
    prompt_of: Callable[[ItemT], str],
) -> tuple[dict[str, list[ItemT]], dict[str, Any], list[str], LeftOutT]:
    """Read the dataset of a run and split it so that no prompt is in two splits.

    Args:
        read: returns the items of rows with these columns, and the rows that are not used.
        prompt_of: returns the text that keeps items together.

    Returns:
        The items of each split, the record of the source, notices, and the rows that are not used.

    Raises:
        ValueError: rows that cannot be opened, read or split.
    """
    rows, record, notices = open_rows(dataset_location(run), columns)
    try:
        items, left_out = read(cast(Iterable[Mapping[str, Any]], rows))
    except ValueError as error:
        raise ValueError(f"{run.dataset}: {error}") from error
    numbers = split_groups([*map(prompt_of, items)], run.validation_fraction, run.test_fraction, run.seed)
    splits = {name: [items[n] for n in numbers_of_split] for name, numbers_of_split in numbers.items()}
    return splits, record, notices, left_out


def add_seen(rows: dict[str, Any], seed: int) -> None:
    """Add "seen", with the first training rows of the run, as many as in the validation split, if there is one."""
    if "validation" in rows:
        numbers = epoch_order(len(rows["train"]), seed, 0)[: len(rows["validation"])]
        rows["seen"] = Subset(rows["train"], numbers)


__all__ = ["add_seen", "read_by_prompt"]
