"""Starts the trainer as a process of this machine. It knows no jobs, only run directories.

Never a fork of this process, which gRPC does not survive, but a fresh interpreter. The two share
the run directory, signals, and a pipe: the trainer reads end-of-file from its standard input when
the server is gone, however it went, and then saves its work and leaves.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from nanogpt.config import TrainConfig
from nanogpt.option import InvalidConfig
from nanogpt.training.run_directory import RunDirectory
from server.errors import FailedPrecondition


def end_first_without_memory(pid: int) -> None:
    """If memory runs out, lets Linux end that process, and those it starts, before this one."""
    with suppress(OSError):  # the process has ended, or this is another system
        own = int(Path("/proc/self/oom_score_adj").read_text())
        Path(f"/proc/{pid}/oom_score_adj").write_text(str(min(own + 500, 1000)))


class Trainer(Protocol):
    """A trainer at work."""

    async def wait(self) -> int:
        """Its exit code, once it has ended; negative is the signal that ended it."""

    def terminate(self) -> None:
        """Asks it to finish its step, write a checkpoint and leave."""

    def kill(self) -> None:
        """Ends it, and the processes it started, at once."""


class Launcher(Protocol):
    """Starts trainers. Another one may start them elsewhere, on a shared folder."""

    def check(self, config: TrainConfig) -> None:
        """Raises FailedPrecondition if this server cannot start such a run."""

    async def start(self, run: RunDirectory) -> Trainer:
        """A trainer for this run. Raises OSError if it cannot be started."""

    async def end_abandoned(self, run: RunDirectory) -> None:
        """Asks a trainer to leave whose server has died, if it cannot know. Raises OSError."""

    def kill_abandoned(self, run: RunDirectory) -> bool:
        """Ends the trainer that holds the run though its server has died; False if in doubt."""


class Launchers:
    """Starts each run where its config says."""

    def __init__(self, launchers: Mapping[str, Launcher]) -> None:
        """Launchers by the names that configs give them."""
        self._launchers = launchers

    def check(self, config: TrainConfig) -> None:
        """Raises FailedPrecondition if this server has no launcher of that name."""
        if config.launcher not in self._launchers:
            raise FailedPrecondition(
                "launcher_missing",
                config.launcher,
                f"this server has no launcher {config.launcher!r}, which needs the setting "
                f"{config.launcher}_address; use {' or '.join(sorted(self._launchers))}",
            )

    async def start(self, run: RunDirectory) -> Trainer:
        """A trainer for this run. Raises OSError."""
        return await self._of(run).start(run)

    async def end_abandoned(self, run: RunDirectory) -> None:
        """Asks a trainer to leave whose server has died. Raises OSError."""
        await self._of(run).end_abandoned(run)

    def kill_abandoned(self, run: RunDirectory) -> bool:
        """Ends the trainer that holds the run though its server has died; False if in doubt."""
        return self._of(run).kill_abandoned(run)

    def _of(self, run: RunDirectory) -> Launcher:
        """Raises OSError if there is none: the server was started with other settings."""
        try:
            name = run.read_spec().config.launcher
        except InvalidConfig:
            name = "local"  # where the trainer says what is wrong
        if name not in self._launchers:
            raise OSError(f"this server has no launcher {name!r}")
        return self._launchers[name]


class LocalLauncher:
    """Runs `python -m nanogpt.training RUN_DIR --watch-stdin` on this machine."""

    def __init__(
        self,
        threads: int | None = None,
        command: Sequence[str] = (sys.executable, "-m", "nanogpt.training"),
        nice: int = 0,
    ) -> None:
        """Trainers use `threads` CPU threads, None is torch's choice, and are `nice` levels more
        modest than this process: generation goes first on processors that both want."""
        self._nice = nice
        self._command = list(command)
        self._environment = {**os.environ, "GRPC_ENABLE_FORK_SUPPORT": "0"}
        if threads is not None:
            self._environment["OMP_NUM_THREADS"] = str(threads)

    def check(self, config: TrainConfig) -> None:
        """Any run may be for this machine."""

    async def start(self, run: RunDirectory) -> "LocalTrainer":
        """A trainer whose output is appended to the run's log. Raises OSError."""
        pipe_read, pipe_write = os.pipe()  # not inherited, but for the end given to the child
        try:
            with run.log_path.open("ab") as log:
                process = await asyncio.create_subprocess_exec(
                    *self._command,
                    str(run.path.absolute()),
                    "--watch-stdin",
                    stdin=pipe_read,
                    stdout=log,
                    stderr=asyncio.subprocess.STDOUT,
                    env=self._environment,
                    start_new_session=True,  # Ctrl-C in the server's terminal is not for it
                )
        except BaseException:
            os.close(pipe_write)
            raise
        finally:
            os.close(pipe_read)
        # threads that it starts later are as modest; it cannot have started any yet
        with suppress(ProcessLookupError):
            own = os.getpriority(os.PRIO_PROCESS, 0)
            os.setpriority(os.PRIO_PROCESS, process.pid, own + self._nice)
        end_first_without_memory(process.pid)
        return LocalTrainer(process, pipe_write)

    async def end_abandoned(self, run: RunDirectory) -> None:
        """Nothing to do: it has seen the end of its standard input."""

    def kill_abandoned(self, run: RunDirectory) -> bool:
        """Ends the trainer that signed the run's lock, if it certainly is that process.

        That is, if a process of this machine has the number and the start time that it wrote down.
        """
        holder = run.holder()
        if holder is None or not holder.is_alive:
            return False
        with suppress(ProcessLookupError):
            if os.getpgid(holder.pid) == holder.pid:  # it leads the processes that it started
                os.killpg(holder.pid, signal.SIGKILL)
            else:
                os.kill(holder.pid, signal.SIGKILL)
        return True


class LocalTrainer:
    """A trainer's process, with the pipe that tells it that the server lives."""

    def __init__(self, process: asyncio.subprocess.Process, pipe: int) -> None:
        self._process = process
        self._pipe: int | None = pipe

    @property
    def pid(self) -> int:
        return self._process.pid

    async def wait(self) -> int:
        """Its exit code, once it has ended; negative is the signal that ended it."""
        exit_code = await self._process.wait()
        if self._pipe is not None:
            os.close(self._pipe)
            self._pipe = None
        return exit_code

    def terminate(self) -> None:
        """Asks it to finish its step, write a checkpoint and leave."""
        if self._process.returncode is None:
            self._process.terminate()

    def kill(self) -> None:
        """Ends it, and the processes it started, at once."""
        if self._process.returncode is None:
            os.killpg(self._process.pid, signal.SIGKILL)  # it leads a session of its own
