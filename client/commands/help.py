"""Help for all commands and for each, made of client.commands.table."""

import json
from collections.abc import Sequence

from client.arguments import Options, find_command
from client.commands.table import COMMANDS, Command
from client.exit_code import ExitCode
from client.keys import Key

PROGRAM = "python -m client"


def help(options: Options) -> ExitCode:
    print(command_help(find_command(options.arguments[0])) if options.arguments else overview())
    return ExitCode.DONE


def overview() -> str:
    """Every command in a line, and what holds for all of them."""
    width = max(len(command.name) for command in COMMANDS)
    return "\n".join(
        [
            f"usage: {PROGRAM} COMMAND [--key=value ...]",
            "",
            "Trains GPT models on a nanogpt-service server and samples from them.",
            "",
            *(f"  {command.name:{width}}  {command.summary}" for command in COMMANDS),
            "",
            f"`{PROGRAM} help COMMAND` explains a command and its keys. Values come from the",
            "defaults, then --config=FILE.json, then the environment (NANOGPT_SERVER, NANOGPT_KEY",
            "for any key), then flags.",
            "",
            "Exit codes: 0 done, 1 the job or the call failed, 2 usage, 3 no server answers,",
            "130 interrupted.",
            "",
            "examples:",
            *(f"  {PROGRAM} {example}" for command in COMMANDS for example in command.examples[:1]),
        ]
    )


def command_help(command: Command) -> str:
    """One command: its arguments and its keys with kind, default and meaning."""
    words = [a.name if a.required else f"[{a.name}]" for a in command.arguments]
    words += ["[--key=value ...]"] if command.keys else []
    lines = [" ".join(["usage:", PROGRAM, command.name, *words]), "", command.summary]
    if command.arguments:
        lines += ["", "arguments:", *_columns([(a.name, a.meaning) for a in command.arguments])]
    if command.keys:
        rows = [
            (f"--{key.name}={key.kind.name}", _default(key), _meaning(key)) for key in command.keys
        ]
        lines += ["", "keys, with defaults:", *_columns(rows)]
    if command.examples:
        lines += ["", "examples:", *(f"  {PROGRAM} {example}" for example in command.examples)]
    return "\n".join(lines)


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Rows with their cells below each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  "
        + "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _default(key: Key) -> str:
    """A key's default as the command line takes it, quoted if it would not show."""
    match key.default:
        case None:
            return ""
        case bool():
            return str(key.default).lower()
        case tuple():
            return ",".join(map(str, key.default))
        case str() if not key.default.isprintable():
            return json.dumps(key.default)
        case default:
            return str(default)


def _meaning(key: Key) -> str:
    return f"{key.meaning} Also --{key.alias}." if key.alias else key.meaning
