"""Tables that people write: CSV with a header, or JSON as a list of objects; and numbers in [0, 1) made of names."""

import csv
import hashlib
import io
import json
from pathlib import Path
from typing import Any, TypeAlias

from cairn.errors import ImageError

Rows: TypeAlias = list[dict[str, Any]]


def read_rows(path: Path, of: str, fields: str) -> tuple[list[str], Rows]:
    """Read the names of the columns and the rows; of CSV each cell is text, None where a row is too short.

    of      what the table is of, for messages: "landmarks"
    fields  how an object in JSON looks: '{"image": …}'
    Raises ImageError when there is no sense in the file.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ImageError(f"{path.name}: no such file, or it may not be read; expected the {of}") from error
    except UnicodeDecodeError as error:
        raise ImageError(f"{path.name}: is not text in UTF-8; expected a CSV or JSON file of {of}") from error
    if path.suffix.lower() == ".json":
        rows = _objects(text, path.name, of, fields)
        return list(dict.fromkeys(key for row in rows for key in row)), rows
    try:
        reader = csv.DictReader(io.StringIO(text), strict=True)
        columns = [column.strip() for column in reader.fieldnames or ()]
        reader.fieldnames = columns
        return columns, list(reader)
    except csv.Error as error:
        raise ImageError(f"{path.name}: is not CSV ({error}); expected a file of {of}") from error


def _objects(text: str, name: str, of: str, fields: str) -> Rows:
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise ImageError(f"{name}: is not JSON (line {error.lineno}); expected a list of {of}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ImageError(f"{name}: expected a list of objects {fields}")
    return rows


def unit_hash(name: str) -> float:
    """Return a number in [0, 1) that a name always has, and that says nothing about any other."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big") / 2**56
