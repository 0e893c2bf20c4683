"""Test streaming: a column of text stays text."""

from pathlib import Path

import pytest

from scratch_gpt.data.sources.streaming import open_stream


def written(folder: Path, name: str, text: str | bytes) -> str:
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(folder / name)


def test_streamed_text_is_text(tmp_path):
    with pytest.raises(ValueError, match=r"Column 'text' of a\.jsonl has the type int64, not text"):
        open_stream(written(tmp_path, "a.jsonl", '{"text": 1}\n'))
    late = '{"text": "a"}\n' * 5000 + '{"text": 1}\n'
    with pytest.raises(ValueError, match=r"b\.jsonl, line 5001: '1' in column 'text'|has the type int64, not text"):
        open_stream(written(tmp_path, "b.jsonl", late))
