"""Texts for training tiny models."""

import pytest


STORY = "".join(
    f"On day {n} the old sailor {('walked', 'ran', 'swam')[n % 3]} to the shiny sea, and the sun {'rose' * (n % 2)}"
    f"{'set' * (1 - n % 2)} over {n * 7 % 90} quiet boats.\n"
    for n in range(400)
)
SUN = "The sun shines on the sea, and every effort moves you on. " * 9


def story_file(text: str = STORY):
    """Return a fixture `story` with the scope of a test file: the path of a file with this text."""

    @pytest.fixture(scope="module")
    def story(tmp_path_factory) -> str:
        file = tmp_path_factory.mktemp("story") / "story.txt"
        file.write_text(text)
        return str(file)

    return story
