"""Describe the location of rows: a name and, for a dataset on the Hub, its config, split and revision."""

from typing import NamedTuple

from ...utils.local_files import looks_local
from ..manifest import is_prepared


EMBEDDED = "python-docs"


class Location(NamedTuple):
    """The location of rows. Functions that open rows also accept just the name of the dataset."""

    # `python-docs` (the documentation of the running Python, needs no download), a local file, folder or glob of .txt,
    # .md, .json, .jsonl, .csv, .tsv or .parquet, compressed or not, or a dataset id on the Hugging Face Hub
    dataset: str = EMBEDDED
    config: str | None = None  # of a Hub dataset
    split: str = "train"  # of a Hub dataset or of prepared text; other splits, such as held-out text, are not read
    revision: str | None = None  # of a Hub dataset

    @property
    def is_files(self) -> bool:
        """Return whether the rows are in the user's local files: neither prepared data nor on the Hub."""
        return looks_local(self.dataset) and not is_prepared(self.dataset)


def locate(dataset: str | Location) -> Location:
    """Return the Location of a dataset given by name or Location."""
    return dataset if isinstance(dataset, Location) else Location(dataset)


__all__ = ["EMBEDDED", "Location", "locate"]
