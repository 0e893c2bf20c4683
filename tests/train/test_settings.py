"""Test the settings: the first limit ends a run."""

import pytest

from scratch_gpt.train.loop import TrainingSettings, planned_steps


def test_the_first_limit_ends_a_run():
    settings = {"batch_size": 4, "accumulation_steps": 2}
    assert planned_steps(TrainingSettings(**settings, epochs=2), rows=20, processes=1, tokens_per_row=10) == 5
    assert planned_steps(TrainingSettings(**settings, epochs=2, max_steps=3), 20, 1, 10) == 3
    assert planned_steps(TrainingSettings(**settings, max_tokens=170), 20, 1, 10) == 3
    assert planned_steps(TrainingSettings(**settings, epochs=2), 20, 2, 10) == 3
    with pytest.raises(ValueError, match="No training length given"):
        planned_steps(TrainingSettings(**settings), 20, 1, 10)
