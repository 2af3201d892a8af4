"""Exit codes of the command line."""

from enum import IntEnum


class ExitCode(IntEnum):
    """How a command ended."""

    DONE = 0
    FAILED = 1
    """The job or the call failed."""
    USAGE = 2
    """The command line or a file that it names is wrong."""
    UNREACHABLE = 3
    """No server answers."""
    INTERRUPTED = 130
    """Ctrl-C: 128 + SIGINT, as shells count."""
