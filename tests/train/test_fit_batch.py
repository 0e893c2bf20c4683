"""Test a batch that does not fit: it is halved and the gradient does not change."""

import pytest
import torch
from tiny_run import UnevenRows, run

from scratch_gpt.data.rows.collate import collate_rows
from scratch_gpt.train.objectives import Objective, causal_lm


def assert_close(a, b, tolerance):
    for name in a:
        assert (a[name] - b[name]).abs().max() < tolerance, name


def test_out_of_memory_halves_the_micro_batch_and_keeps_the_gradient(tmp_path, capsys):
    def sums(model, batch):
        if len(batch["input_ids"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate too much.")
        return causal_lm.sums(model, batch)

    small = run(tmp_path / "a", batch_size=2, accumulation_steps=4, sgd=True)
    saved = run(tmp_path / "b", batch_size=8, sgd=True, objective=Objective(causal_lm.counts, sums))
    assert_close(small[0], saved[0], tolerance=1e-7)
    said = capsys.readouterr().out
    assert "batch_size 8: continuing with batch_size 4 and accumulation_steps 2" in said
    assert "continuing with batch_size 2 and accumulation_steps 4" in said


def test_memory_is_tried_on_the_longest_rows(tmp_path):
    rows, shapes = UnevenRows(), []
    lengths = [1 + n % 7 for n in range(len(rows))]
    lengths[11] = 8
    rows.rows = [{key: row[key][:n] for key in row} for row, n in zip(rows.rows, lengths, strict=True)]

    def sums(model, batch):
        shapes.append(batch["input_ids"].shape)
        return causal_lm.sums(model, batch)

    options = {"rows": rows, "collate": collate_rows, "batch_size": 2, "objective": Objective(causal_lm.counts, sums)}
    for known, longest in ((False, 2), (True, 8)):
        if known:
            rows.lengths = lengths
        shapes.clear()
        run(tmp_path, steps=1, **options)
        assert shapes[0] == (2, longest)


def test_out_of_memory_at_one_row_names_the_remedies(tmp_path):
    def sums(model, batch):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    with pytest.raises(MemoryError, match="gradient_checkpointing=True"):
        run(tmp_path, batch_size=2, objective=Objective(causal_lm.counts, sums))


def test_other_errors_are_not_taken_for_lack_of_memory(tmp_path):
    def sums(model, batch):
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        run(tmp_path, objective=Objective(causal_lm.counts, sums))
