"""What a key of the command line is: its name, the kind of its value, its default, its meaning.

Knows how a value is written in text (flags, environment) and in JSON, not which commands exist.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass

Value = bool | int | float | str | tuple[int, ...] | tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of value. `parse` reads its text and raises ValueError saying what would fit."""

    name: str
    parse: Callable[[str], Value]
    json_types: tuple[type, ...]

    def parse_json(self, value: object) -> Value:
        """A value of a JSON file, which must have the right type: 5000, not "5000"."""
        if type(value) not in self.json_types:
            raise ValueError(f"must be {self.name}")
        if isinstance(value, str):
            return self.parse(value)
        if isinstance(value, list) and self is TEXTS:
            return self.parse(json.dumps(value))
        if isinstance(value, list):
            return self.parse(",".join(json.dumps(item) for item in value))
        return self.parse(json.dumps(value))


@dataclass(frozen=True, slots=True)
class Key:
    """One `--name=value`."""

    name: str
    kind: Kind
    default: Value | None
    """None if the server decides, or if it cannot do without."""
    meaning: str
    alias: str = ""
    """Another name for the same key."""

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name, self.alias) if self.alias else (self.name,)


def checked_text(text: str) -> str:
    """The text. Raises ValueError if it was made of bytes that are no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("must be UTF-8") from None
    return text


def _address(text: str) -> str:
    if not text:
        raise ValueError("must be host:port")
    return checked_text(text)


def _integer(low: int, high: int) -> Callable[[str], Value]:
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise ValueError("must be a whole number") from None
        if not low <= value <= high:
            raise ValueError(f"must be in [{low}, {high}]")
        return value

    return parse


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError("must be a number") from None


def _bool(text: str) -> bool:
    try:
        return {"true": True, "false": False}[text.lower()]
    except KeyError:
        raise ValueError("must be true or false") from None


def _switch(text: str) -> str:
    """`on`, `off` or `auto`; nanoGPT writes True and False."""
    value = {"true": "on", "false": "off"}.get(text.lower(), text.lower())
    if value not in ("on", "off", "auto"):
        raise ValueError("must be on, off or auto")
    return value


def _integers(text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(item) for item in text.split(","))
    except ValueError:
        raise ValueError("must be whole numbers with commas between them") from None
    if not all(-(2**31) <= number < 2**31 for number in numbers):
        raise ValueError("must be numbers of 32 bits")
    return numbers


def _texts(text: str) -> tuple[str, ...]:
    """One text, or several as a JSON list."""
    if not text.startswith("["):
        return (text,)
    try:
        items = json.loads(text)
    except ValueError:
        raise ValueError("must be a text, or a JSON list of texts") from None
    if not all(isinstance(item, str) for item in items):
        raise ValueError("must be a text, or a JSON list of texts")
    return tuple(items)


INT32 = Kind("int", _integer(-(2**31), 2**31 - 1), (int,))
INT64 = Kind("int", _integer(-(2**63), 2**63 - 1), (int,))
UINT64 = Kind("int", _integer(0, 2**64 - 1), (int,))
FLOAT = Kind("float", _float, (float, int))
BOOL = Kind("bool", _bool, (bool,))
TEXT = Kind("text", checked_text, (str,))
ADDRESS = Kind("host:port", _address, (str,))
SWITCH = Kind("on|off|auto", _switch, (str, bool))
INTS = Kind("int,int,...", _integers, (list, int, str))
TEXTS = Kind("text|[text,...]", _texts, (list, str))


def choice(*allowed: str) -> Kind:
    """One of a few words."""

    def parse(text: str) -> str:
        if text not in allowed:
            raise ValueError(f"must be {' or '.join(allowed)}")
        return text

    return Kind("|".join(allowed), parse, (str,))
