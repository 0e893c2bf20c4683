"""Where the tests find the repository."""

from pathlib import Path


TESTS = Path(__file__).resolve().parents[1]
REPO = TESTS.parent
