"""The client's version."""

from client import __version__
from client.arguments import Options
from client.exit_code import ExitCode


def version(options: Options) -> ExitCode:
    print(f"nanogpt-service {__version__}")
    return ExitCode.DONE
