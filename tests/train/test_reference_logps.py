"""Test stored reference log-probabilities."""

import torch
from tiny import tiny_model

from scratch_gpt.train import reference_logps


def test_a_damaged_reference_or_one_of_other_weights_or_rows_is_not_used(tmp_path):
    model, file = tiny_model(), tmp_path / reference_logps.REFERENCES_FILE
    key = reference_logps.reference_key(model, {"train": "a"})
    reference_logps.write_references(file, {"train": torch.ones(3, 2).numpy()}, key)
    assert reference_logps.read_references(file, key)["train"].tolist() == [[1.0, 1.0]] * 3
    assert reference_logps.reference_key(tiny_model(), {"train": "a"}) == key
    for others in ((tiny_model(seed=1), {"train": "a"}), (model, {"train": "b"})):
        assert reference_logps.read_references(file, reference_logps.reference_key(*others)) is None
    file.write_bytes(file.read_bytes()[:-5])
    assert reference_logps.read_references(file, key) is None
