"""Trains one run: `python -m nanogpt.training RUN_DIR [--watch-stdin]`, whatever its processes.

RUN_DIR holds spec.json (run_directory.py says what else). Started again after an interruption or a
crash, it goes on from the newest checkpoint. SIGTERM or SIGINT finishes the step, writes a
checkpoint and exits with 75; with --watch-stdin so does end-of-file on standard input, which is how
a server that starts trainers takes them along when it dies. Exit codes: run_directory.ExitCode.

A run of several processes is led by this one, which starts the others (group.py); or this one is
started as one of them by torchrun or a cluster, which say so in torch's environment variables.

Which machine, which account, how often to try again: the caller's business.
"""

import argparse
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, TextIO

from nanogpt import durable
from nanogpt.option import InvalidConfig
from nanogpt.training.group import (
    HOLD_FLAG,
    LEAVE_SECONDS,
    MEMBER_FLAG,
    obey_leader,
    run_group,
)
from nanogpt.training.run_directory import (
    ERROR_PREFIX,
    ExitCode,
    RunDirectory,
    RunDirectoryBusy,
    RunSpec,
)

if TYPE_CHECKING:
    from nanogpt.training.world import World


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m nanogpt.training", description=__doc__)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--watch-stdin", action="store_true")
    parser.add_argument(MEMBER_FLAG, action="store_true", help=argparse.SUPPRESS)
    parser.add_argument(HOLD_FLAG, action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    stop = threading.Event()
    _stop_on_signals(stop)
    if options.member:
        obey_leader(stop)
    elif options.watch_stdin:
        _stop_at_end_of_stdin(stop)
    if not options.run_dir.is_dir():
        return _fail(ExitCode.BAD_CONFIG, f"there is no run directory {options.run_dir}")
    directory = RunDirectory(options.run_dir)
    try:
        spec = directory.read_spec()
        if options.member:
            hold = directory.follow()
            if options.hold:  # which one that was started before may still have
                hold = _signed(directory, directory.lock(wait_seconds=LEAVE_SECONDS))
            return _be_member(directory, spec, stop, hold)
        if "RANK" in os.environ:
            return _take_place(directory, spec, stop, _signed(directory, directory.lock()))
        if spec.config.processes > 1:
            with _signed(directory, directory.lead()):
                return run_group(directory, spec.config.processes, stop, _log)
        with _signed(directory, directory.lock()):
            return _train(directory, spec, stop.is_set)
    except InvalidConfig as error:
        return _fail(ExitCode.BAD_CONFIG, str(error))
    except RunDirectoryBusy as error:
        return _fail(ExitCode.BUSY, str(error))
    except OSError as error:  # such as a full disk: started again, the run goes on
        _write(sys.stderr, traceback.format_exc())
        return _fail(1, f"a file cannot be read or written: {error.strerror or 'unknown reason'}")


@contextmanager
def _signed(directory: RunDirectory, hold: AbstractContextManager[None]) -> Iterator[None]:
    """Holds the run directory, and says there who does."""
    with hold:
        with suppress(OSError):  # a full disk costs the signature only
            directory.sign_lock()
        yield


def _be_member(
    directory: RunDirectory,
    spec: RunSpec,
    stop: threading.Event,
    hold: AbstractContextManager[None],
) -> int:
    """Trains as one of a group. 0 unless it crashes: how it ended is said in the run directory.

    Or unless it fails while others may wait for it in NCCL, where they would not notice: then its
    code makes whoever started them end them all.
    """
    if directory.read_exit_code() is not None:
        return 0  # all was said before another one crashed
    from nanogpt.training.distributed import has_nccl  # which takes seconds to import

    code = _take_place(directory, spec, stop, hold)
    if code not in list(ExitCode):
        return code
    # the first one alone knows that the last checkpoint is written
    if _is_failure(code) or os.environ["RANK"] == "0":
        directory.write_exit_code(ExitCode(code))
    return code if _is_failure(code) and has_nccl(spec.config) else 0


def _take_place(
    directory: RunDirectory,
    spec: RunSpec,
    stop: threading.Event,
    hold: AbstractContextManager[None],
) -> int:
    """Trains as the process that torch's environment variables say; the first one holds the run."""
    from nanogpt.training.distributed import join
    from nanogpt.training.world import Place

    place = Place(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))
    try:
        with hold if place.rank == 0 else nullcontext():
            world = join(place, spec.config)
            code = _train(directory, spec, stop.is_set, world)
            if not _is_failure(code):  # which may be this one's alone
                world.leave()
            return code
    except InvalidConfig as error:
        return _fail(ExitCode.BAD_CONFIG, str(error))


def _is_failure(code: int) -> bool:
    """Whether it names what the run cannot go on with."""
    return ExitCode.BAD_CONFIG <= code < ExitCode.INTERRUPTED


def _train(
    directory: RunDirectory,
    spec: RunSpec,
    should_stop: Callable[[], bool],
    world: "World | None" = None,
) -> int:
    """Trains and turns what may go wrong into an exit code and one sentence."""
    # torch takes seconds to import: not before it is certain that there is something to do
    from nanogpt.datasets.dataset import BadDataset
    from nanogpt.device import is_out_of_memory
    from nanogpt.training.allocator import keep_freed_memory
    from nanogpt.training.step import Diverged
    from nanogpt.training.trainer import train

    keep_freed_memory()
    try:
        return train(directory, spec, should_stop=should_stop, log=_log, world=world)
    except InvalidConfig as error:
        return _fail(ExitCode.BAD_CONFIG, str(error))
    except BadDataset as error:
        return _fail(ExitCode.BAD_DATASET, str(error))
    except Diverged as error:
        return _fail(ExitCode.DIVERGED, f"training diverged: {error}")
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        _write(sys.stderr, traceback.format_exc())
        config = spec.config
        return _fail(
            ExitCode.OUT_OF_MEMORY,
            f"memory ran out with batch_size {config.batch_size} and block_size "
            f"{config.block_size}; a smaller batch_size with more gradient_accumulation_steps "
            "takes the same steps in less memory",
        )


def _stop_on_signals(stop: threading.Event) -> None:
    def handle(number: int, frame: FrameType | None) -> None:
        stop.set()
        if number == signal.SIGINT:  # a second Ctrl-C does not wait
            signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGINT, handle)


def _stop_at_end_of_stdin(stop: threading.Event) -> None:
    stdin = os.dup(sys.stdin.fileno())  # it may become another one

    def watch() -> None:
        while os.read(stdin, 4096):
            pass
        stop.set()

    threading.Thread(target=watch, name="stdin", daemon=True).start()


def _log(line: str) -> None:
    _write(sys.stdout, line + "\n")


def _fail(code: int, sentence: str) -> int:
    _write(sys.stderr, ERROR_PREFIX + " ".join(sentence.split()) + "\n")
    return code


def _write(stream: TextIO, text: str) -> None:
    """Writes at once, past the stream's buffer: one that a full disk keeps full fails at exit."""
    with suppress(OSError):  # costs lines of the log, neither the run nor its exit code
        os.write(stream.fileno(), text.encode(errors="backslashreplace"))


if __name__ == "__main__":
    durable.crash_at(os.environ.get("NANOGPT_CRASH_AT"), "trainer")  # for campaigns
    if "RANK" not in os.environ:
        sys.exit(main())
    try:  # one of several processes does not end in the usual way: see distributed.join
        code = main()
    except Exception:
        _write(sys.stderr, traceback.format_exc())
        code = 1
    os._exit(code)
