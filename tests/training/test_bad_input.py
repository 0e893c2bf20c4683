"""Test two hundred invalid inputs: one clear line, exit code 2, and no change to saved files."""

import crash
import pytest
from accelerate.state import AcceleratorState, PartialState
from bad_input import command_lines, configs, data_files, snapshot
from hypothesis import HealthCheck, given, settings

from scratch_gpt_training import pretrain


STORY = "The old sailor walked to the shiny sea, and the sun shone on ninety quiet boats.\n" * 60
CALM = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Return a run folder that must not change, and the arguments that would continue it."""
    folder = tmp_path_factory.mktemp("saved")
    (folder / "story.txt").write_text(STORY)
    words = ["--dataset", str(folder / "story.txt"), *crash.RUN, "--max-steps", "2", "--test-fraction", "0"]
    words += ["--output-dir", str(folder / "run")]
    run(words)
    return folder, words


def run(words) -> None:
    for state in (AcceleratorState, PartialState):
        state._reset_state()
    pretrain.main(words)


def assert_refused(words, saved, capsys) -> None:
    folder = saved[0] / "run"
    before = snapshot(folder)
    capsys.readouterr()
    with pytest.raises(SystemExit) as ending:
        run(words)
    said = capsys.readouterr().err
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    assert ending.value.code == 2 and len(lines) == 1 and len(lines[0]) > 20, (words, said)
    assert "Traceback" not in said
    assert snapshot(folder) == before


@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=CALM)
@given(bad=command_lines)
def test_invalid_command_lines(bad, saved, capsys):
    assert_refused([*saved[1], "--resume", "latest", "--max-steps", "9", *bad], saved, capsys)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=CALM)
@given(text=configs())
def test_invalid_configs(text, saved, capsys):
    (saved[0] / "config.yaml").write_text(text)
    assert_refused(["--config", str(saved[0] / "config.yaml"), "--output-dir", saved[1][-1]], saved, capsys)


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=CALM)
@given(file=data_files())
def test_invalid_files(file, saved, capsys, tmp_path):
    ending, content = file
    path = tmp_path / f"bad{ending}"
    path.write_bytes(content)
    words = [*saved[1], "--dataset", str(path), "--resume", "latest", "--max-steps", "9"]
    assert_refused(words, saved, capsys)
