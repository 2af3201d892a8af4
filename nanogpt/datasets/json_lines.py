"""Texts out of JSON lines: one object a line, one field of each.

Lines are read one by one and bounded, so a file without line ends costs no memory.
"""

import json
from collections.abc import Iterator
from typing import BinaryIO

from nanogpt.datasets.dataset import BadDataset
from nanogpt.datasets.text_file import decode_with_replacement

MAX_LINE_BYTES = 8 << 20

_KINDS = {
    bool: "true or false",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "an object",
}


def read_json_lines(file: BinaryIO, field: str, where: str) -> Iterator[tuple[str, int]]:
    """The text of each line, empty for null, and how many of its characters were undecodable.

    Blank lines are skipped. `where` stands before the line's number in errors, such as
    `'a.jsonl', `. Raises BadDataset naming the line and the field.
    """
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES:
            raise BadDataset(f"{where}line {number} is longer than {MAX_LINE_BYTES:,} bytes")
        text, undecodable = decode_with_replacement(line, "utf-8")
        if number == 1:
            text = text.removeprefix("\ufeff")
        if text.isspace() or not text:
            continue
        found, surrogates = _field(text, field, f"{where}line {number}")
        yield found, undecodable + surrogates


def _field(line: str, field: str, where: str) -> tuple[str, int]:
    """The text of a field, lone surrogates replaced, and how many there were."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        raise BadDataset(f"{where} is not JSON") from None
    if not isinstance(values, dict):
        raise BadDataset(f"{where} is not a JSON object")
    if field not in values:
        raise BadDataset(f"{where} has no field {field!r}")
    text = values[field]
    if text is None:
        return "", 0
    if not isinstance(text, str):
        raise BadDataset(f"{where} has {_KINDS[type(text)]} in its field {field!r}, not text")
    try:
        text.encode()
        return text, 0
    except UnicodeEncodeError:  # "\ud800" is valid JSON and no character
        surrogates = sum("\ud800" <= character <= "\udfff" for character in text)
        return "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in text), surrogates
