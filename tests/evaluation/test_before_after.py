"""Test answers before and after training."""

import json
from types import SimpleNamespace

from scratch_gpt.evaluation.before_after import Examination


def test_a_single_evaluation_gives_no_comparison_with_before(tmp_path, monkeypatch):
    conversation = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "At sea."}]
    tokenizer = SimpleNamespace()
    monkeypatch.setattr("scratch_gpt.evaluation.before_after.encode_prompt", lambda *_: [1])
    said = iter((["first"], ["last"]))
    monkeypatch.setattr("scratch_gpt.evaluation.before_after.generate_answers", lambda *_, **__: next(said))
    exam, file = Examination([conversation], tokenizer), tmp_path / "responses.json"
    for is_over, expected in ((False, ("first", None)), (True, (None, "first"))):
        if not is_over:
            exam.take(None)
        exam.write(file, is_over=is_over)
        assert [(each["before"], each["after"]) for each in json.loads(file.read_text())] == [expected]
    exam.take(None)
    exam.write(file)
    assert json.loads(file.read_text())[0] | {"before": "first", "after": "last"} == json.loads(file.read_text())[0]
