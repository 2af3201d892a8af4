"""Reads a command line: which command, with which values, after the file and the environment.

    defaults < --config=FILE.json < NANOGPT_KEY < --key=value

Anything that is not understood is a UsageError that says what was probably meant. Values that
nobody gave are left to the server, so Options tells given ones from defaults.
"""

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from client.commands.table import BY_NAME, CONFIG, Command
from client.keys import BOOL, Key, Value, checked_text


class UsageError(Exception):
    """The command line, or a file that it names, is wrong; the message says how."""


@dataclass(frozen=True, slots=True)
class Options:
    """What one command was asked to do."""

    command: Command
    arguments: tuple[str, ...]
    given: Mapping[str, Value]
    """Values that the file, the environment or a flag gave, by key."""
    explicit: frozenset[str]
    """Keys that the file or a flag gave: meant for this very command."""

    def __getitem__(self, name: str) -> Value | None:
        """The given value or the default."""
        if name in self.given:
            return self.given[name]
        return next(key.default for key in self.command.keys if key.name == name)

    def text(self, name: str) -> str:
        """A text; empty if there is none."""
        return str(self[name] or "")

    def flag(self, name: str) -> bool:
        return bool(self[name])

    def some(self, keys: Iterable[Key]) -> dict[str, Value]:
        """Those of the given values that belong to `keys`."""
        return {key.name: self.given[key.name] for key in keys if key.name in self.given}


def read_command_line(words: Sequence[str], environment: Mapping[str, str]) -> Options:
    """What the words after the program's name ask for. Raises UsageError."""
    command = find_command(words[0])
    keys = {name: key for key in command.keys for name in key.names}
    flags = [word for word in words[1:] if word.startswith("--")]
    arguments = tuple(word for word in words[1:] if not word.startswith("--"))
    _check_arguments(command, arguments)

    from_flags = dict(_read_flag(flag, keys) for flag in flags)
    from_environment = {
        key.name: _parsed(variable, key, text)
        for name, key in keys.items()
        if (text := environment.get(variable := f"NANOGPT_{name.upper()}"))  # empty is unset
    }
    from_file: dict[str, Value] = {}
    path = from_flags.get(CONFIG.name) or from_environment.get(CONFIG.name)
    if path:
        del keys[CONFIG.name]  # one file cannot name another
        from_file = _read_file(Path(str(path)), keys)
    return Options(
        command,
        arguments,
        given={**from_file, **from_environment, **from_flags},
        explicit=frozenset({*from_file, *from_flags}),
    )


def find_command(name: str) -> Command:
    """The command of that name. Raises UsageError naming the nearest one."""
    if name not in BY_NAME:
        raise UsageError(f"there is no command {name!r}; {_meant(name, BY_NAME)}")
    return BY_NAME[name]


def _check_arguments(command: Command, given: Sequence[str]) -> None:
    for argument in command.arguments[len(given) :]:
        if argument.required:
            raise UsageError(f"{command.name} needs {argument.name}: {argument.meaning}")
    for word in given:
        try:
            checked_text(word)
        except ValueError as error:
            raise UsageError(f"{word!r} {error}") from None
    for word in given[len(command.arguments) :]:
        raise UsageError(f"{word!r} is one word too many; keys are written --key=value")


def _read_flag(flag: str, keys: Mapping[str, Key]) -> tuple[str, Value]:
    """Key and value of one flag. A bool alone is true; a value may contain = itself."""
    name, equals, text = flag[2:].partition("=")
    key = _find_key(name, keys, f"--{name}")
    if not equals:
        if key.kind is not BOOL:
            raise UsageError(f"{flag} needs a value: {flag}={key.kind.name.upper()}")
        return key.name, True
    return key.name, _parsed(f"--{name}", key, text)


def _read_file(path: Path, keys: Mapping[str, Key]) -> dict[str, Value]:
    """Keys and values of a JSON file."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise UsageError(f"cannot read config file {path}: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"config file {path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise UsageError(f"config file {path} must hold one JSON object")
    values = {}
    for name, value in content.items():
        where = f"{name} in {path}"
        key = _find_key(name, keys, where)
        try:
            values[key.name] = key.kind.parse_json(value)
        except ValueError as error:
            raise UsageError(f"{where} {error}, got {json.dumps(value)}") from None
    return values


def _find_key(name: str, keys: Mapping[str, Key], where: str) -> Key:
    if name not in keys:
        raise UsageError(f"{where} is not known; {_meant(name, keys)}")
    return keys[name]


def _parsed(where: str, key: Key, text: str) -> Value:
    try:
        return key.kind.parse(text)
    except ValueError as error:
        raise UsageError(f"{where} {error}, got {text!r}") from None


def _meant(name: str, known: Iterable[str]) -> str:
    names = list(known)
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {nearest[0]!r}?" if nearest else "there are " + ", ".join(names)
