"""What a job's processes printed."""

import sys

from client.arguments import Options
from client.commands.connection import connect
from client.commands.output import print_json
from client.exit_code import ExitCode


def logs(options: Options) -> ExitCode:
    follow, offset = options.flag("follow"), int(str(options["offset"]))
    with connect(options) as client:
        for piece in client.logs(options.arguments[0], follow=follow, offset=offset):
            if options.flag("json"):
                print_json(piece)
            else:
                sys.stdout.write(piece.text)
                sys.stdout.flush()
    return ExitCode.DONE
