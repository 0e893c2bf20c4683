"""Test the stages of a preparation."""

from scratch_gpt_training import prepare
from scratch_gpt_training.support import command_line
from scratch_gpt_training.support.preparation import stages as preparing


def test_a_list_of_languages_may_contain_spaces():
    filters = preparing.make_filters(command_line.parse(prepare.PrepareRun, ["--languages", "en, DE"]))
    assert [item.name for item in filters] == ["empty", "languages"]
    texts = (
        "The weather is fine today, and we walk along the river.",
        "Das Wetter ist heute gut, wir gehen spazieren.",
    )
    assert [*filters[1].problems(texts)] == [None, None]
