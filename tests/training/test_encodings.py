"""Test encodings: files are UTF-8 in every locale, and output can be printed to a stream of any encoding."""

import io
import json
import os
import subprocess
import sys

import pytest
import yaml
from places import REPO

from scratch_gpt_training.support import command_line


WORDS = "caf\u00e9 \u2192 \u65e5\u672c \U0001f600"
STORY = "".join(f"Am Tag {n} sah die M\u00f6we \u201e{n % 7} Boote\u201c \u2192 \u65e5\u672c\n" for n in range(200))


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_the_output_of_a_recipe_prints_on_any_stream(encoding, monkeypatch):
    streams = {name: io.TextIOWrapper(io.BytesIO(), encoding=encoding) for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)
    with pytest.raises(SystemExit), command_line.one_clear_line():
        print(WORDS, "\udcff")  # the surrogate of a file name that is not UTF-8
        raise ValueError(WORDS)
    for stream in streams.values():
        stream.flush()
        expected = WORDS.encode(encoding, "replace").decode(encoding)
        assert expected in stream.buffer.getvalue().decode(encoding)


@pytest.mark.parametrize("stream", [io.StringIO(), None])
def test_a_stream_that_cannot_be_configured_is_left_as_it_is(stream, monkeypatch):
    monkeypatch.setattr(sys, "stdout", stream)
    with command_line.one_clear_line():
        print(WORDS)


def test_a_run_does_not_depend_on_the_locale(tmp_path):
    """In the C locale Python's default for files and streams is ASCII: a file read with it would end the run."""
    (tmp_path / "story.txt").write_text(STORY, encoding="utf-8")
    fields = {"dataset": "story.txt", "sample_prompt": "M\u00f6we \u2192", "output_dir": "run", "device": "cpu"}
    fields |= {"preset": "tiny", "config_overrides": "hidden_size=16,num_hidden_layers=1", "vocab_size": 300}
    fields |= {"max_length": 16, "max_steps": 2, "eval_every": 1, "mixed_precision": "no"}
    (tmp_path / "run.yml").write_text(yaml.safe_dump(fields, allow_unicode=True), encoding="utf-8")
    code = """if True:
        import sys
        from scratch_gpt_training import generate, pretrain
        pretrain.main(["--config", "run.yml"])
        generate.main(["run/model", "M\\u00f6we", "--max-new-tokens", "5"])
    """
    plain = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    environment = {**os.environ, **plain, "PYTHONPATH": str(REPO)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr.decode("ascii")
    said = done.stdout.decode("ascii")
    assert "M?we ?" in said
    assert 'sample_prompt: "M\\xF6we \\u2192"' in (tmp_path / "run" / "run.yaml").read_text(encoding="utf-8")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(lines[0])["sample"].startswith("M\u00f6we \u2192")
