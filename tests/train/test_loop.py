"""Test the loop: a resumed run keeps no second copy of its state."""

import torch
from tiny import tiny_model
from tiny_run import run


def test_a_resumed_run_keeps_no_second_copy_of_its_state(tmp_path, monkeypatch):
    run(tmp_path, steps=1)
    taken, empty_like = [], torch.empty_like

    def take(tensor, **options):
        taken.extend([tensor] * isinstance(tensor, torch.nn.Parameter))
        return empty_like(tensor, **options)

    monkeypatch.setattr("torch.empty_like", take)
    run(tmp_path / "new", steps=1)
    of_new = len(taken)
    run(tmp_path / "again", steps=2, resume_from=tmp_path / "checkpoints" / "step-1")
    # Both need the same memory for a step.
    assert of_new - (len(taken) - of_new) == 2 * len([*tiny_model().parameters()])
