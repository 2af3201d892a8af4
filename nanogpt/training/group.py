"""Several processes on this machine for one run, started and restarted by torchrun's agent.

The agent lives in this process. If one of the others dies it stops the rest and starts all of them
again; they go on from the newest checkpoint. How the run ended they leave in the run directory,
as torchrun takes every exit code but 0 for a crash.

A pipe is how they are told to stop: all of them read it as their standard input. A byte means
finish the step and leave; its end, that this process is dead, and they die too. Model and data it
does not know. https://docs.pytorch.org/docs/stable/elastic/run.html
"""

import os
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from nanogpt.training.run_directory import RunDirectory

MAX_RESTARTS = 3
"""Restarts before the run counts as crashed; whoever started it may try again later."""

LEAVE_SECONDS = 60
"""How long the rest may take over leaving when one of them has died."""

MEMBER_FLAG = "--member"
"""Tells a process that this one started it."""

HOLD_FLAG = "--hold"
"""Tells one that who started it does not hold the run directory: the first process has to."""

STDIN = 0


def run_group(
    directory: RunDirectory, processes: int, stop: threading.Event, log: Callable[[str], None]
) -> int:
    """The run's exit code, once all processes have left; 1 if they crash too often.

    Setting `stop` makes them leave with a checkpoint. Standard input becomes theirs.
    """
    # torch takes seconds to import
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    directory.exit_code_path.unlink(missing_ok=True)
    os.environ.update(_environment(processes))
    _become_source_of_stdin(stop)
    with tempfile.TemporaryDirectory(prefix="nanogpt-") as scratch:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="127.0.0.1:0",
            local_addr="127.0.0.1",
            max_restarts=MAX_RESTARTS,
            logs_specs=DefaultLogsSpecs(log_dir=scratch),
            signals_to_handle="SIGQUIT",  # the others are this process's own
            shutdown_timeout=LEAVE_SECONDS,
        )
        launch = elastic_launch(config, sys.executable)
        try:
            launch("-m", "nanogpt.training", str(directory.path), MEMBER_FLAG)
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            log(f"{MAX_RESTARTS} restarts were not enough; process {rank}: {failure.exitcode}")
    code = directory.read_exit_code()
    return 1 if code is None else code


def obey_leader(stop: threading.Event) -> None:
    """Sets `stop` when the process that leads says so; ends this one if that one has died."""

    def obey() -> None:
        while os.read(STDIN, 1):
            stop.set()
        os._exit(1)

    threading.Thread(target=obey, name="leader", daemon=True).start()


def _environment(processes: int) -> dict[str, str]:
    """What torchrun and the processes need to know."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    threads = int(given) if given.isdecimal() else _usable_processors()
    found = {
        "OMP_NUM_THREADS": str(max(1, threads // processes)),
        # Without it processes that are started again meet the addresses of the dead, and hang:
        # https://github.com/pytorch/pytorch/issues/135712
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    }
    if "GLOO_SOCKET_IFNAME" not in os.environ and Path("/sys/class/net/lo").exists():
        found["GLOO_SOCKET_IFNAME"] = "lo"  # a host's name need not lead to the host
    return found


def _usable_processors() -> int:
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _become_source_of_stdin(stop: threading.Event) -> None:
    """Makes a pipe the standard input of all that is started from now on; `stop` writes to it."""
    source, sink = os.pipe()
    os.dup2(source, STDIN)
    os.close(source)

    def pass_on() -> None:
        stop.wait()
        while True:  # one of them hears it and tells the others; it may die before it has
            os.write(sink, b".")
            time.sleep(1)

    threading.Thread(target=pass_on, name="stop", daemon=True).start()
