"""Runs the command line: `python -m client COMMAND --key=value ...`."""

import sys

from client.cli import main

if __name__ == "__main__":
    sys.exit(main())
