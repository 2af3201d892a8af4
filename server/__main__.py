"""`python -m server [--key=value ...]`: serves until SIGTERM or SIGINT.

The first signal drains, a second one ends the process at once.

Exit codes: 0 stopped as asked, 1 cannot start, 2 bad settings.
"""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from nanogpt import durable
from server.errors import CannotStart
from server.settings import BadSettings, Settings, help_text, load_settings, split_address
from server.version import version

THREADS = 32
"""For what waits for the disk or computes beside the event loop. They start as they are needed."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the server and returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if "--help" in arguments or "-h" in arguments:
        print(help_text())
        return 0
    try:
        settings = load_settings(arguments)
    except BadSettings as error:
        print(error, file=sys.stderr)
        return 2
    # Requests and a trainer, which inherits this, share the cores. Threads that spin while waiting
    # for one that lost its core made steps 20 times longer and answers 3 times slower. OpenMP reads
    # it when torch loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # An engine's thread that comes back from a forward pass must not wait 5 ms, a step or more, for
    # an event loop that is busy with what the step before brought.
    sys.setswitchinterval(0.0005)
    logging.basicConfig(
        level=settings.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
    )
    try:
        asyncio.run(serve(settings))
    except CannotStart as error:
        print(error, file=sys.stderr)
        return 1
    return 0


async def serve(settings: Settings) -> None:
    """Serves until a signal comes. Raises CannotStart."""
    stop = asyncio.Event()

    def on_signal(number: int) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()

    loop = asyncio.get_running_loop()
    # The default is 4 more than there are processors. Preparations, imports, loads, an export and
    # writes of uploads may take as many for minutes; who cancels a job or stops the server then
    # still needs one.
    loop.set_default_executor(ThreadPoolExecutor(THREADS, thread_name_prefix="asyncio"))
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)

    from server.app import App  # torch takes seconds; help and bad settings need none

    app = await App.start(settings)
    try:
        grpc_host, _ = split_address(settings.grpc_address)
        http_host, _ = split_address(settings.http_address)
        print(
            f"nanogpt-service {version()} serves gRPC on {_join(grpc_host, app.grpc_port)}"
            f" and http://{_join(http_host, app.http_port)}"
            f" (device {app.device.type}, data in {settings.data_dir.absolute()})",
            flush=True,
        )
        await stop.wait()
    finally:
        await app.stop()


def _join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


if __name__ == "__main__":
    durable.crash_at(os.environ.get("NANOGPT_CRASH_AT"), "server")  # for campaigns
    sys.exit(main())
