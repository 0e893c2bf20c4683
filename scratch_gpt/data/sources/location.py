"""Say where rows are: a name and, of a dataset on the Hub, its config, split and revision."""

from typing import NamedTuple

from ...utils.local_files import looks_local
from ..manifest import is_prepared


EMBEDDED = "python-docs"


class Location(NamedTuple):
    """Where rows are. Functions that open rows take a name alone too."""

    # `python-docs` (the documentation of the running Python, needs no download), a local file, folder or glob of .txt,
    # .md, .json, .jsonl, .csv, .tsv or .parquet, compressed or not, or a dataset id on the Hugging Face Hub
    dataset: str = EMBEDDED
    config: str | None = None  # of a Hub dataset
    split: str = "train"  # of a Hub dataset, or of a folder of prepared text: what was held out there stays so
    revision: str | None = None  # of a Hub dataset

    @property
    def is_files(self) -> bool:
        """Return whether the rows are in local files of the user's: neither prepared data nor on the Hub."""
        return looks_local(self.dataset) and not is_prepared(self.dataset)


def locate(dataset: str | Location) -> Location:
    """Return the location of a dataset that is given by its name or by its location."""
    return dataset if isinstance(dataset, Location) else Location(dataset)


__all__ = ["EMBEDDED", "Location", "locate"]
