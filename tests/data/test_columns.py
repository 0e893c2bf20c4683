"""Test columns: their types agree over all files, and classes keep their names."""

import json
from pathlib import Path

import datasets
import pytest

from scratch_gpt.data.columns import CONVERSATIONS, Columns
from scratch_gpt.data.rows.conversations import read_messages
from scratch_gpt.data.sources.documents import open_rows


def written(folder: Path, name: str, text: str | bytes) -> str:
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(folder / name)


def test_a_label_that_is_text_in_one_file_and_a_number_in_another_is_text(tmp_path):
    written(tmp_path, "a.csv", "text,label\none,1\n")
    written(tmp_path, "b.jsonl", '{"text": "two", "label": 1}\n{"text": "three", "label": null}\n')
    columns = Columns((("text", "label"),))
    assert open_rows(str(tmp_path), columns=columns).rows["label"][:] == ["1", "1", None]
    written(tmp_path, "b.jsonl", '{"text": "two", "label": 1.5}\n')
    with pytest.raises(ValueError, match="cannot be read as one table: .* label"):
        open_rows(str(tmp_path), columns=columns)


def test_classes_next_to_text_become_their_names_and_booleans_become_text(tmp_path):
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["x", "y"])})
    datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, 0, -1]}, features).to_parquet(
        tmp_path / "a.parquet"
    )
    written(tmp_path, "b.csv", "text,label\nd,y\n")
    columns = Columns((("text", "label"),))
    rows = open_rows(str(tmp_path), columns=columns).rows
    assert rows["label"][:] == ["y", "x", None, "y"] and not hasattr(rows.features["label"], "names")
    (tmp_path / "a.parquet").unlink()
    written(tmp_path, "b.csv", "text,label\nd,True\n")
    written(tmp_path, "c.jsonl", '{"text": "e", "label": true}\n')
    assert open_rows(str(tmp_path), columns=columns).rows["label"][:] == ["True", "True"]


def test_classes_keep_their_names_and_different_orders_are_refused(tmp_path):
    def save(name: str, classes: list[str]) -> None:
        features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=classes)})
        rows = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [0, 1], "id": [1, 2]}).remove_columns("id")
        rows.cast(features).to_parquet(str(tmp_path / name))

    columns = Columns((("label",),))
    save("a.parquet", ["world", "business"])
    features = open_rows(str(tmp_path / "a.parquet"), columns=columns).rows.features
    assert features["label"].names == ["world", "business"]
    save("b.parquet", ["world", "business"])
    assert len(open_rows(str(tmp_path), columns=columns).rows) == 4
    save("b.parquet", ["business", "world"])
    with pytest.raises(ValueError, match="'label' has other classes, or another order"):
        open_rows(str(tmp_path), columns=columns)


def test_unused_keys_of_messages_may_have_any_type(tmp_path):
    answer = {"role": "assistant", "content": "b"}
    rows = [
        {"messages": [{"role": "user", "content": "a", "id": 1}, answer], "tools": []},
        {"messages": [{"role": "user", "content": "a", "id": "x"}, {**answer, "tool_calls": []}], "tools": None},
        {"messages": [{"role": "user", "content": "a"}, {**answer, "weight": 1}]},
    ]
    file = written(tmp_path, "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    found = [read_messages(row) for row in open_rows(file, columns=CONVERSATIONS).rows]
    assert found == [[{"role": "user", "content": "a"}, answer]] * 3
    calls = [[{"arguments": {"a": 1}}], [{"arguments": {"a": "x"}}]]
    rows = [{"messages": [{"role": "user", "content": "a"}, {**answer, "tool_calls": call}]} for call in calls]
    file = written(tmp_path, "b.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    for row in open_rows(file, columns=CONVERSATIONS).rows:
        with pytest.raises(ValueError, match="has tool_calls, which cannot be learned"):
            read_messages(row)
    file = written(tmp_path, "c.jsonl", json.dumps({**rows[0], "tools": [{"name": "look"}]}) + "\n")
    with pytest.raises(ValueError, match="the row has tools, which cannot be learned"):
        read_messages(open_rows(file, columns=CONVERSATIONS).rows[0])


def test_rows_of_several_forms_are_read_together(tmp_path):
    written(tmp_path, "a.csv", "instruction,output,id\nAdd 1 and 1,2,x\n")
    written(tmp_path, "b.jsonl", '{"messages": [{"role": "user", "content": "Hi"}], "meta": 1}\n')
    rows = open_rows(str(tmp_path), columns=CONVERSATIONS).rows
    assert sorted(rows.column_names) == ["instruction", "messages", "output"] and rows["output"][:] == ["2", None]
