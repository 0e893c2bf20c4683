"""Test the token stream: documents end in EOS and their bytes are counted."""

import numpy as np

from scratch_gpt.data.sources.documents import open_documents
from scratch_gpt.data.sources.token_stream import token_stream


def write(folder, name, content):
    file = folder / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(content) if isinstance(content, str) else file.write_bytes(content)
    return str(file)


def test_documents_end_in_eos_and_bytes_are_counted(tmp_path):
    documents = open_documents(write(tmp_path, "a.jsonl", '{"text": "ab"}\n{"text": "\u00e9"}\n')).rows
    stream = token_stream(documents, lambda texts: [list(text.encode()) for text in texts], 0, "bytes")
    assert stream.ids.tolist() == [97, 98, 0, 0xC3, 0xA9, 0] and stream.ids.dtype == np.uint16
    assert (len(stream.ends), stream.bytes) == (2, 4)
