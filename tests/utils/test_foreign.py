"""Test files of other users: those that could block a reader forever are refused."""

import os
import threading

import pytest

from scratch_gpt.runs.folder import is_run
from scratch_gpt.utils import locks
from scratch_gpt.utils.foreign import read_foreign_text, read_json
from scratch_gpt_training import train_tokenizer
from scratch_gpt_training.support.preparation import stages


def raises(read):
    def refused(path) -> bool:
        with pytest.raises(ValueError, match="is not a regular file"):
            read(path)
        return True

    return refused


READERS = {
    "a text": ("a.txt", raises(read_foreign_text), True),
    "JSON": ("a.json", raises(read_json), True),
    "a run": ("run.yaml", lambda path: is_run(path.parent), False),
    "a checkpoint": ("checkpoints/step-1/manifest.json", lambda path: is_run(path.parents[2]), False),
    "a lock": (locks.LOCK, locks._read, {}),
    "prepared data": ("manifest.json", lambda path: stages._read_old(path.parent), {}),
    "a tokenizer's report": ("report.json", train_tokenizer.is_report, False),
}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such files")
@pytest.mark.parametrize("name", READERS)
def test_a_named_pipe_does_not_block(name, tmp_path):
    file, read, expected = READERS[name]
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(tmp_path / file)
    results = []
    thread = threading.Thread(target=lambda: results.append(read(tmp_path / file)), daemon=True)
    thread.start()
    thread.join(10)
    assert results == [expected]
