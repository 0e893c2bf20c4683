"""Measure the energy of a run with codecarbon, and append it as a row of emissions.csv for each launch.

No network is used. The power of GPUs is read from their driver. The power of a CPU is read if the system exposes its
counters; if not, as in most virtual machines, it is estimated from load and the model's rated power (4 W per thread if
unknown). The power of memory is always estimated from its size. The column `cpu_power_is` tells which was used.
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
    """Raise a ValueError if codecarbon has no electricity data for a country code, such as `FRA` or `DEU`."""
    from codecarbon.input import DataSource

    countries = DataSource().get_global_energy_mix_data()
    if code not in countries:
        raise ValueError(f"energy is {code!r}; it must be a country code of three letters, such as FRA, DEU or USA.")


@contextmanager
def measure_energy(file: Path, country: str | None) -> Iterator[None]:
    """Measure the body, and append a row to `file` (emissions.csv) even after an error; do nothing without a country.

    The whole machine is measured, because its counters cannot be read for a single process.
    """
    if country is None:
        yield
        return
    from codecarbon import OfflineEmissionsTracker

    logging.getLogger("codecarbon").setLevel(logging.ERROR)  # the card tells what it estimates
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
        except (OSError, AttributeError) as error:  # AttributeError: codecarbon could not start, and only logged it
            warnings.warn(f"The energy of this run could not be written to {file}: {error}")


def _append(file: Path, tracker: Any) -> None:
    estimates = any(getattr(part, "_mode", None) in ("cpu_load", "constant") for part in tracker._hardware)
    row = {**tracker.final_emissions_data.values, "cpu_power_is": ESTIMATED if estimates else READ}
    columns = _columns(file)
    with file.open("a", newline="", encoding="utf-8") as lines:
        # Follow the file's header, because another version of codecarbon has other columns.
        writer = csv.DictWriter(lines, columns or [*row], restval="", extrasaction="ignore")
        if not columns:
            writer.writeheader()
        writer.writerow(row)


def _columns(file: Path) -> list[str]:
    # Return the header of a file; empty if the file is missing or empty.
    if not file.exists():
        return []
    with file.open(newline="", encoding="utf-8", errors="replace") as lines:
        return next(csv.reader(lines), [])


__all__ = ["EMISSIONS", "check_country", "measure_energy"]
