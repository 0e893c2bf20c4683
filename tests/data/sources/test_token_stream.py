"""Test the token stream: documents end in EOS and their bytes are counted."""

import json
from importlib.metadata import version

import numpy as np

from scratch_gpt.data.sources.documents import open_documents
from scratch_gpt.data.sources.token_stream import token_stream
from scratch_gpt.tokenization.encoders import Encoder
from scratch_gpt.tokenization.training import train_tokenizer


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


def test_the_cache_serves_every_encoder_of_a_tokenizer(tmp_path, monkeypatch):
    documents = open_documents(
        write(tmp_path, "a.jsonl", json.dumps({"text": f"ab ab {tmp_path}"}) + '\n{"text": "b a"}\n')
    ).rows
    small, large = (train_tokenizer(["ab ab b a"] * 3, size, encoder="tokenizers") for size in (259, 262))
    calls, encode = [], Encoder.__call__
    monkeypatch.setattr(Encoder, "__call__", lambda self, texts: (calls.append(self), encode(self, texts))[1])
    first = token_stream(documents, Encoder(small, "tokenizers"), 0, "first")
    again = token_stream(documents, Encoder(small), 0, "again")
    assert again.ids.tolist() == first.ids.tolist() and len(calls) == 1
    assert again.encoder == first.encoder == {"name": "tokenizers", "version": version("tokenizers")}
    other = token_stream(documents, Encoder(large, "tokenizers"), 0, "other")
    assert len(calls) == 2 and len(other.ids) < len(first.ids)
    assert len(token_stream(documents, Encoder(small), 1, "another end").ids) == len(first.ids) and len(calls) == 3
