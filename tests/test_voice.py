"""Texts use plain words: constructions that make a reader stop are rare."""

import pytest
from places import REPO
from voice import TREES, files_of, findings


LIMIT = 2  # per 1,000 words; code bases that engineers hold up have 0.2 to 2.3


@pytest.mark.parametrize("tree", TREES)
def test_texts_use_plain_words(tree):
    words, places = 0, []
    for file in files_of(REPO / tree):
        count, marks = findings(file)
        words += count
        places += [f"{file.relative_to(REPO)}:{line}: [{name}] {context}" for line, name, context in marks]
    assert len(places) <= max(1, LIMIT * words / 1000), "\n".join(places)
