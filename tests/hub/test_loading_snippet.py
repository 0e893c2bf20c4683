"""Test the code on a card."""

from card_run import write_run

from scratch_gpt.hub.loading_snippet import load_code
from scratch_gpt.runs.record import read_record


def test_the_loading_code_uses_the_prompt_of_the_run(tmp_path):
    run = write_run(tmp_path / "run", sample_prompt='Say "hi" \U0001f600\n')
    code = load_code(read_record(run), "ada/x", "gpt2")
    line = next(line for line in code.splitlines() if line.startswith("ids = "))
    assert eval(line.removeprefix("ids = "), {"tokenizer": lambda prompt, **_: prompt}) == 'Say "hi" \U0001f600\n'
