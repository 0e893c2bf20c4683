"""Test the datatrove pipeline of the page about data: it equals prepare.py, and the recipes read its output."""

import random
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from places import REPO

from scratch_gpt.data.filters.quality import quality_problem
from scratch_gpt.data.sources.documents import open_documents


PAGE = (REPO / "training" / "docs" / "prepare.md").read_text()
BLOCKS = [block for block in re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S) if "from datatrove" in block]
WORDS = (
    "the sailors of that harbour have seen a calm sea with grey birds above and to be home before night they row past "
    "rocks under old lamps while children wait near boats for news about distant islands"
).split()
DOCUMENTS = [" ".join(random.Random(n).choices(WORDS, k=80)) for n in range(8)]


@pytest.mark.skipif(not BLOCKS, reason="the page has no datatrove pipeline")
def test_the_pipeline_keeps_every_good_document_once(tmp_path, monkeypatch):
    pytest.importorskip("datatrove", reason='datatrove is an extra: pip install -e ".[datatrove]"')
    assert all(quality_problem(text) is None for text in DOCUMENTS)
    again = [text.replace(" ", "  ") + "\n" for text in DOCUMENTS[:5]]  # the same except for white space
    files = [DOCUMENTS[:4], [*again[:2], "too short", ""], [*DOCUMENTS[4:], DOCUMENTS[4]], again[2:]]
    (tmp_path / "corpus").mkdir()
    for n, texts in enumerate(files):
        pq.write_table(pa.table({"text": texts, "number": [*range(len(texts))]}), tmp_path / "corpus" / f"{n}.parquet")
    monkeypatch.chdir(tmp_path)
    exec(BLOCKS[0], {"__name__": "__main__"})
    found = open_documents("out/*.parquet").rows["text"]
    assert sorted(" ".join(text.split()) for text in found) == sorted(" ".join(text.split()) for text in DOCUMENTS)
