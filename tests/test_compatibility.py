"""Test that published folders give the same results in stock transformers, without our package.

`make compatibility` runs the same checks with older and newer versions of transformers.
"""

import sys

import pytest
from places import TESTS


sys.path.append(str(TESTS / "compatibility"))

from run import check, make_folders


NAMES = [
    line.removeprefix("def check_").partition("(")[0]
    for line in (TESTS / "compatibility" / "checks.py").read_text().splitlines()
    if line.startswith("def check_")
]


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> dict:
    """Run the checks with the installed transformers and return their report."""
    root = tmp_path_factory.mktemp("published")
    make_folders(root)
    return check(root)


@pytest.mark.parametrize("name", NAMES)
def test_without_the_package(report, name):
    assert report["checks"][name] is None


def test_the_checks_never_import_the_package(report):
    assert report["own_modules"] == []
