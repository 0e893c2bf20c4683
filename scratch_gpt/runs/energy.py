"""A launch of a run -> a row of emissions.csv: what the machine has drawn meanwhile, read or estimated by codecarbon.

Nothing is asked of the network. GPUs are read from their driver. A CPU is read where the system shows its counters;
where not, as in most virtual machines, it is estimated (its model's rated power, or 4 W a thread of an unknown one,
scaled by load), and memory always is, by its size. The column `cpu_power_is` says which.
"""

import csv
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


EMISSIONS = "emissions.csv"
READ, ESTIMATED = "read from its counters", "estimated from its model and load"


def check_country(code: str) -> None:
    """Raise a ValueError where codecarbon does not know the electricity of a country, `FRA` or `DEU`."""
    from codecarbon.input import DataSource

    countries = DataSource().get_global_energy_mix_data()
    if code not in countries:
        raise ValueError(f"energy is {code!r}; it is a country in three letters, as FRA, DEU or USA.")


@contextmanager
def measure_energy(file: Path, country: str | None) -> Iterator[None]:
    """Append a row to `file` (emissions.csv) at the end, however that comes; without a country nothing is measured.

    The whole machine counts, not this process alone: its counters cannot be read for one.
    """
    if country is None:
        yield
        return
    from codecarbon import OfflineEmissionsTracker

    logging.getLogger("codecarbon").setLevel(logging.ERROR)  # what it guesses stands on the card
    tracker = OfflineEmissionsTracker(
        country_iso_code=country,
        tracking_mode="machine",
        save_to_file=False,
        allow_multiple_runs=True,
        log_level="error",
    )
    tracker.start()
    try:
        yield
    finally:
        tracker.stop()
        try:
            _append(file, tracker)
        except (OSError, AttributeError) as error:  # the second where codecarbon could not start, which it only logs
            warnings.warn(f"What the run has drawn is not in {file}: {error}")


def _append(file: Path, tracker: Any) -> None:
    estimates = any(getattr(part, "_mode", None) in ("cpu_load", "constant") for part in tracker._hardware)
    row = {**tracker.final_emissions_data.values, "cpu_power_is": ESTIMATED if estimates else READ}
    columns = _columns(file)
    with file.open("a", newline="", encoding="utf-8") as lines:
        # By the file's own header: another version of codecarbon has other columns.
        writer = csv.DictWriter(lines, columns or [*row], restval="", extrasaction="ignore")
        if not columns:
            writer.writeheader()
        writer.writerow(row)


def _columns(file: Path) -> list[str]:
    # The header of a file, nothing where there is none.
    if not file.exists():
        return []
    with file.open(newline="", encoding="utf-8", errors="replace") as lines:
        return next(csv.reader(lines), [])


__all__ = ["EMISSIONS", "check_country", "measure_energy"]
