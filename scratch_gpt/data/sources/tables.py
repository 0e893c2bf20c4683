"""Read files into Arrow tables: the columns in use, with one type for each over all files.

    columns_of     return the names of a file's columns
    read_tables    read the columns in use from a file, as tables
    write_tables   write tables to one Arrow file

Columns of .csv and .tsv files are read as text, unchanged. JSON and Parquet files keep their types.
"""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, groupby
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from ...utils.foreign import reason
from ...utils.local_files import COMPRESSED, LocalFile, kind_ending, one_line, open_file, read_text, text_lines
from ..columns import Columns


TABLE_ROWS, TABLE_BYTES = 4096, 2**23  # limits for one table
DEEPEST = 64  # maximum nesting of a JSON value
DIALECTS = {
    "csv": {"delimiter": ",", "quoting": csv.QUOTE_MINIMAL, "strict": True},
    "tsv": {"delimiter": "\t", "quoting": csv.QUOTE_NONE},
}
FEATURES = b"huggingface"  # metadata key of a schema under which `datasets` stores the names of classes


class NoRows(ValueError):
    """Raised for JSON that does not consist of objects."""


class _Row(NamedTuple):
    place: tuple[str, int]  # "line" or "element", and its number
    size: int  # approximate, in characters
    values: dict[str, Any]


def columns_of(file: LocalFile, columns: Columns | None = None, names: Sequence[str] | None = None) -> list[str]:
    """Return the names of a file's columns; for JSON, those of the first rows until `columns` are complete.

    Args:
        names: the names of the columns of a .csv or .tsv file without a header.

    Raises:
        ValueError: the file cannot be read.
    """
    if file.kind == "text":
        return ["text"]
    if names is not None:
        return [*names]
    with open_file(file) as content:
        if file.kind == "parquet":
            return _parquet(content, file).schema_arrow.names
        if file.kind in DIALECTS:
            return [*filter(None, next(_fields(content, file), (0, []))[1])]
        keys: dict[str, None] = {}
        for row in _objects(content, file):
            keys |= dict.fromkeys(row.values)
            if columns is not None and columns.fit(keys):
                break
    return [*keys]


def first_fields(file: LocalFile) -> list[str]:
    """Return the fields of the first record of a .csv or .tsv file."""
    with open_file(file) as content:
        return next(_fields(content, file), (0, []))[1]


def read_tables(
    file: LocalFile, columns: Columns | None = None, names: Sequence[str] | None = None
) -> Iterator[pa.Table]:
    """Yield the rows of a file as tables of the columns in use; by default of all.

    Raises:
        ValueError: the content does not match the file's ending; the message gives the line if it is known.
    """
    with open_file(file) as content:
        if file.kind == "parquet":
            yield from _parquet_tables(content, file, columns)
            return
        if file.kind == "text":
            text = read_text(content, file.name)
            rows: Iterator[_Row] = iter([_Row(("line", 1), len(text), {"text": text})])
        elif file.kind in DIALECTS:
            rows = _records(content, file, columns, names)
        else:
            rows = _objects(content, file)
        for chunk in _chunks(rows):
            yield _table(chunk, file, columns)


def write_tables(tables: Iterable[pa.Table], path: Path) -> None:
    """Write tables to one Arrow file with one type for each column; columns missing from a table are null.

    Raises:
        ArrowException: a column has types that cannot be combined.
        ValueError: a column has different classes in two tables.
    """
    features: dict[str, Any] = {}
    drafts: list[tuple[Path, pa.Schema]] = []  # one for each run of tables with the same schema
    try:
        for schema, run in groupby(_join_small_tables(tables, features), key=lambda table: table.schema):
            draft = path.with_name(f"{path.name}-{len(drafts)}")
            drafts.append((draft, schema))
            with pa.OSFile(str(draft), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
                for table in run:
                    writer.write_table(table)
        if not drafts:
            return
        metadata = {FEATURES: json.dumps({"info": {"features": features}}).encode()} if features else None
        if len(drafts) == 1 and drafts[0][1].metadata == metadata:
            drafts[0][0].replace(path)
            return
        parts = [pa.ipc.open_stream(pa.memory_map(str(draft))).read_all() for draft, _ in drafts]
        combined = pa.concat_tables(map(_text_converter(parts, features), parts), promote_options="permissive")
        metadata = {FEATURES: json.dumps({"info": {"features": features}}).encode()} if features else None
        combined = combined.replace_schema_metadata(metadata)
        drafts.append((path.with_name(f"{path.name}-whole"), combined.schema))
        with pa.OSFile(str(drafts[-1][0]), "wb") as sink, pa.ipc.new_stream(sink, combined.schema) as writer:
            writer.write_table(combined)
        drafts[-1][0].replace(path)
    finally:
        for draft, _ in drafts:
            draft.unlink(missing_ok=True)


def _text_converter(parts: list[pa.Table], features: dict[str, Any]) -> Callable[[pa.Table], pa.Table]:
    # If a column is text in one file (in a .csv it always is), integers and booleans of other files become text, and
    # the numbers of named classes become their names.
    fields = [field for part in parts for field in part.schema]
    texts = {field.name for field in fields if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)}

    classes = {name: features.pop(name).get("names") for name in texts & {*features}}

    def change(part: pa.Table) -> pa.Table:
        of_part = _features_of(part.schema)
        for n, field in enumerate(part.schema):
            if field.name in texts and (pa.types.is_integer(field.type) or pa.types.is_boolean(field.type)):
                names = classes.get(field.name) if field.name in of_part else None
                values = (_as_text(value, names) for value in part.column(n).to_pylist())
                part = part.set_column(n, field.name, pa.array(values, pa.string()))
        return part

    return change


def _as_text(value: Any, names: list[str] | None) -> str | None:
    if value is None or names is None:
        return None if value is None else str(value)
    return names[value] if 0 <= value < len(names) else None  # -1 means that the class is unknown


def _join_small_tables(tables: Iterable[pa.Table], features: dict[str, Any]) -> Iterator[pa.Table]:
    # Join small tables of the same schema, so that thousands of files do not give thousands of pieces.
    waiting: list[pa.Table] = []
    rows = size = 0
    for table in tables:
        _join_features(features, table)
        rows, size = rows + len(table), size + table.nbytes
        if waiting and (rows > TABLE_ROWS or size > TABLE_BYTES or waiting[0].schema != table.schema):
            yield _concatenate(waiting)
            waiting, rows, size = [], len(table), table.nbytes
        waiting.append(table)
    if waiting:
        yield _concatenate(waiting)


def _concatenate(tables: list[pa.Table]) -> pa.Table:
    return pa.concat_tables(tables).combine_chunks() if tables[1:] else tables[0]


def _join_features(features: dict[str, Any], table: pa.Table) -> None:
    # Collect the classes that `datasets` stores for columns; a number must mean the same class in all files.
    for name, feature in _features_of(table.schema).items():
        if name in table.column_names and features.setdefault(name, feature) != feature:
            raise ValueError(
                f"The column {name!r} has other classes, or another order of them, in one of the files. Rename it."
            )


def _features_of(schema: pa.Schema) -> dict[str, Any]:
    # Return only the features with classes; the types of other columns are in the schema.
    try:
        features = json.loads((schema.metadata or {}).get(FEATURES, b"{}"))["info"]["features"]
        return {name: feature for name, feature in features.items() if "ClassLabel" in json.dumps(feature)}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


# --- Rows of each kind -------------------------------------------------------------------------------------------


def _fields(content: BinaryIO, file: LocalFile) -> Iterator[tuple[int, list[str]]]:
    # Yield (first line, fields) of each record of a .csv or .tsv file, without blank lines.
    csv.field_size_limit(2**31 - 1)
    lines = (part for _, line in text_lines(content, file.name) for part in _split_at_returns(line))
    reader = csv.reader(lines, **DIALECTS[file.kind])
    line = 1
    try:
        for fields in reader:
            if fields:
                yield line, fields
            line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(
            f"{file.name} cannot be read as csv: line {line}: {error}. Check the quotation marks there."
        ) from error


def _split_at_returns(line: str) -> Iterable[str]:
    # A carriage return without a line feed also ends a line.
    return [line] if line.find("\r") in (-1, len(line) - 2) else io.StringIO(line, newline="")


def _without_trailing(fields: list[str]) -> list[str]:
    # Spreadsheets may write separators after the last column.
    while fields and not fields[-1]:
        fields.pop()
    return fields


def _check_names(names: list[str], columns: Columns | None, file: LocalFile) -> None:
    names_in_use = {*names} if columns is None else columns.names
    if twice := next((name for n, name in enumerate(names) if name in names[:n] and name in names_in_use), None):
        raise ValueError(f"{file.name} has two columns {twice!r}. Rename one.")


def _records(
    content: BinaryIO, file: LocalFile, columns: Columns | None, names: Sequence[str] | None
) -> Iterator[_Row]:
    records = _fields(content, file)
    if names is None:
        header = _without_trailing(next(records, (0, []))[1])
    else:
        header = [*names]
    width, names_in_use = len(header), {*header} if columns is None else columns.names
    _check_names(header, columns, file)
    positions = [(n, name) for n, name in enumerate(header) if name and name in names_in_use]
    trailing = None  # whether rows have separators after the last column; must be the same for all rows
    for line, fields in records:
        extra_fields = fields[width:]
        if trailing is None and len(fields) >= width:
            trailing = bool(extra_fields)
        if any(extra_fields) or (len(fields) >= width and bool(extra_fields) != trailing):
            remedy = {"csv": "Put a text with commas in quotation marks.", "tsv": "A text must not contain a tab."}
            raise ValueError(
                f"{file.name}, line {line}: {len(fields)} fields, but there are {width} columns "
                f"({', '.join(header)}). {remedy[file.kind]}"
            )
        size = sum(map(len, fields))
        yield _Row(("line", line), size, {name: fields[n] if n < len(fields) else None for n, name in positions})


def _objects(content: BinaryIO, file: LocalFile) -> Iterator[_Row]:
    # The content is one object per line, or one JSON value: a list of objects, a list of texts, or a single object.
    lines = ((number, line) for number, line in text_lines(content, file.name) if not line.isspace())
    first = next(lines, (0, ""))
    if first[1].lstrip().startswith("[") or (kind_ending(file.path) == ".json" and not _is_json(first[1])):
        text = "\n" * (first[0] - 1) + first[1] + "".join(line for _, line in lines)
        document = _parse(text, file) if text else []
        elements = document if isinstance(document, list) else [document]
        for n, value in enumerate(elements, 1):
            value = {"text": value} if isinstance(value, str) else value
            yield _Row(("element", n), len(text) // len(elements), _object(value, f"{file.name}, element {n}"))
        return
    for number, line in chain([first] if first[1] else [], lines):
        yield _Row(("line", number), len(line), _object(_parse(line, file, number), f"{file.name}, line {number}"))


def _object(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise NoRows(f"{place}: {str(value)[:40]!r} is not a JSON object.")
    return value


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _parse(text: str, file: LocalFile, line: int | None = None) -> Any:
    where = f"{file.name} cannot be read as json: " + ("" if line is None else f"line {line}: ")
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{file.name} cannot be read as json: line {line or error.lineno}: {error.msg}.") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; thousands of brackets
        raise ValueError(f"{where}{reason(error)}") from error
    if text.count("[") + text.count("{") > DEEPEST and _is_deep(value):
        raise ValueError(f"{where}it is nested more than {DEEPEST} levels deep.")
    return value


def _is_deep(value: Any) -> bool:
    # Check level by level: pyarrow recurses and crashes on thousands of levels.
    level = [value]
    for _ in range(DEEPEST):
        level = [item for part in level if isinstance(part, (dict, list)) for item in _items(part)]
    return any(isinstance(part, (dict, list)) for part in level)


def _items(part: dict | list) -> Iterable[Any]:
    return part.values() if isinstance(part, dict) else part


def _parquet(content: BinaryIO, file: LocalFile) -> pq.ParquetFile:
    is_compressed = file.path.suffix.lower() in COMPRESSED
    try:
        return pq.ParquetFile(pa.BufferReader(content.read()) if is_compressed else content)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{file.name} cannot be read as parquet: {one_line(error)}") from error


def _parquet_tables(content: BinaryIO, file: LocalFile, columns: Columns | None) -> Iterator[pa.Table]:
    reader = _parquet(content, file)
    _check_names(reader.schema_arrow.names, columns, file)
    names = [name for name in reader.schema_arrow.names if columns is None or name in columns.names]
    features = {name: kind for name, kind in _features_of(reader.schema_arrow).items() if name in names}
    metadata = {FEATURES: json.dumps({"info": {"features": features}}).encode()} if features else None
    try:
        for batch in reader.iter_batches(TABLE_ROWS, columns=names):
            table = pa.Table.from_batches([batch]).select(names)
            for n, field in enumerate(table.schema):
                if pa.types.is_dictionary(field.type):  # not supported by `datasets`
                    table = table.set_column(n, field.name, table.column(n).cast(field.type.value_type))
                elif pa.types.is_string_view(field.type):
                    table = table.set_column(n, field.name, table.column(n).cast(pa.string()))
            yield table.replace_schema_metadata(metadata)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{file.name} cannot be read as parquet: {one_line(error)}") from error


# --- Tables ------------------------------------------------------------------------------------------------------


def _chunks(rows: Iterator[_Row]) -> Iterator[list[_Row]]:
    chunk, size = [], 0
    for row in rows:
        chunk.append(row)
        size += row.size
        if len(chunk) >= TABLE_ROWS or size >= TABLE_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _table(chunk: list[_Row], file: LocalFile, columns: Columns | None) -> pa.Table:
    names_in_use = None if columns is None else columns.names
    names = dict.fromkeys(name for row in chunk for name in row.values if names_in_use is None or name in names_in_use)
    if not names:  # rows without any column in use
        return pa.table({"text" if columns is None else columns.forms[0][0]: pa.nulls(len(chunk))})
    keys = Columns(()) if columns is None else columns
    return pa.table({name: _array(chunk, name, file, keys) for name in names})


def _select_keys(value: Any, name: str, columns: Columns) -> Any:
    # Keep only the keys of messages that are in use. Values that are only looked for become JSON: their types vary.
    if value is None or not columns.messages:
        return value
    if name in columns.looked_for:
        return json.dumps(value)
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        return value
    return [
        {
            key: json.dumps(inner) if key in columns.looked_for and inner is not None else inner
            for key, inner in message.items()
            if key in columns.messages or key in columns.looked_for
        }
        for message in value
    ]


def _array(chunk: list[_Row], name: str, file: LocalFile, columns: Columns) -> pa.Array:
    values = [_select_keys(row.values.get(name), name, columns) for row in chunk]
    kinds = (pa.ArrowException, OverflowError, ValueError, TypeError)
    try:
        return pa.array(values)
    except kinds as error:
        good, bad = 0, len(chunk)  # the first `good` rows have compatible types, the first `bad` rows do not
        while bad - good > 1:
            middle = (good + bad) // 2
            try:
                pa.array(values[:middle])
                good = middle
            except kinds:
                bad = middle
        unit, number = chunk[good].place
        problem = "differs in type from the rows before it"
        try:
            pa.array(values[good : good + 1])
        except kinds:
            problem = f"cannot be read: {one_line(error)}"
        raise ValueError(
            f"{file.name}, {unit} {number}: {str(values[good])[:40]!r} in column {name!r} {problem}."
        ) from error


__all__ = ["NoRows", "columns_of", "first_fields", "read_tables", "write_tables"]
