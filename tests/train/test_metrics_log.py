"""Test the metrics: each step is recorded once."""


def test_each_step_is_recorded_once(straight):
    lines = straight[0][2]
    assert [line["step"] for line in lines if "loss" in line] == [4, 8]
    assert [line["step"] for line in lines if "eval_loss" in line] == [0, 3, 6, 8]
