"""The command line: `python -m client COMMAND --key=value ...`.

Reads the words, runs the command, turns every failure into a text on stderr and an exit code.
Nothing here or in what it imports at once needs grpc: `version`, help and usage errors are instant.
"""

import os
import sys
from collections.abc import Sequence

from client.arguments import Options, UsageError, find_command, read_command_line
from client.commands.failure import explain
from client.commands.help import PROGRAM, command_help, overview
from client.errors import NanoGPTError, Unavailable
from client.exit_code import ExitCode

HELP_FLAGS = ("--help", "-h")


def main(words: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    words = sys.argv[1:] if words is None else words
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its C library writes to stderr as it pleases
    try:
        code = _dispatch(words)
        sys.stdout.flush()  # at exit it would be too late to say that it fails
        return code
    except UsageError as error:
        print(f"error: {error}\n`{PROGRAM} help` lists commands and keys.", file=sys.stderr)
        return ExitCode.USAGE
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return ExitCode.INTERRUPTED
    except OSError as error:  # a full disk, or a file that cannot be read to its end
        if not isinstance(error, BrokenPipeError):  # whoever read the output has seen enough
            print(f"error: {error.strerror or error}", file=sys.stderr)
        # Python would complain again when it flushes stdout at exit:
        # https://docs.python.org/3/library/signal.html#note-on-sigpipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.FAILED


def _dispatch(words: Sequence[str]) -> ExitCode:
    if not words or words[0] in HELP_FLAGS:
        print(overview())
        return ExitCode.DONE
    if words[0] in ("--version", "-v"):
        words = ["version"]
    if any(word in HELP_FLAGS for word in words[1:]):
        print(command_help(find_command(words[0])))
        return ExitCode.DONE
    return _run(read_command_line(words, os.environ))


def _run(options: Options) -> ExitCode:
    """Runs the command; a failed call becomes a text and an exit code."""
    try:
        return options.command.load()(options)
    except NanoGPTError as error:
        sys.stdout.flush()
        print(explain(error, options.text("server")), file=sys.stderr)
        return ExitCode.UNREACHABLE if isinstance(error, Unavailable) else ExitCode.FAILED
