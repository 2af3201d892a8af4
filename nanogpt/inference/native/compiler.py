"""The kernels' sources to a shared library for this processor, kept in a folder for the next time.

It knows nothing of what the kernels compute. Compiling takes some seconds of one core. A library
belongs to the sources, the flags, the compiler and the processor that it was made from and for;
what changes any of them gets another file, so a folder may be shared and outlive an upgrade. Where
there is no compiler, a library of these sources that one has made before will do.
"""

import fcntl
import hashlib
import os
import platform
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from threading import Event

FLAGS = (
    "-std=c++20",
    "-O3",
    "-march=native",
    # sums must not depend on what a compiler does with a loop: see vectors.h
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fPIC",
    "-shared",
    "-pthread",
    "-Wno-psabi",
)

COMPILERS = ("c++", "g++", "clang++")

TIMEOUT_SECONDS = 1800.0
"""Ten seconds of a processor, which a busy machine may not give for long."""


POLL_SECONDS = 0.1
"""How soon a compiler ends that is told to."""


class KernelsUnavailable(RuntimeError):
    """There is no library and none can be made here; the text says why, in one line."""


def compiled_kernels(folder: Path, *, nice: int = 0, cancelled: Event | None = None) -> Path:
    """The library for this machine in `folder`, compiled first if it is not there yet, by a
    process that yields to others as much as `nice` says, in [0, 19], and ends if `cancelled`.

    Takes the compiler that $CXX names, or else the first of COMPILERS. Of several processes that
    need the same library one compiles and the others wait. Raises KernelsUnavailable.
    """
    library, compiler = _library(folder)
    if library.exists():
        return library
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(library.with_suffix(".lock")):
            if not library.exists():
                _compile(compiler, library, nice, cancelled or Event())
    except OSError as error:
        raise KernelsUnavailable(f"{folder} cannot be used: {error}") from error
    return library


def cached_kernels(folder: Path) -> Path | None:
    """The library for this machine in `folder`, None if it has yet to be compiled. Raises
    KernelsUnavailable if it could not be."""
    library, _ = _library(folder)
    return library if library.exists() else None


def check_available(folder: Path) -> None:
    """Raises KernelsUnavailable if there is neither a compiler nor a library from one. Quick."""
    try:
        find_compiler()
    except KernelsUnavailable:
        if _made_before(folder) is None:
            raise


def find_compiler() -> list[str]:
    """The C++ compiler's command. Raises KernelsUnavailable."""
    command = os.environ.get("CXX", "").split()
    if command:
        if shutil.which(command[0]) is None:
            raise KernelsUnavailable(f"there is no C++ compiler {command[0]!r}, which $CXX names")
        return command
    for name in COMPILERS:
        if shutil.which(name) is not None:
            return [name]
    raise KernelsUnavailable(f"there is no C++ compiler: none of {', '.join(COMPILERS)} is here")


def _library(folder: Path) -> tuple[Path, list[str]]:
    """Where the library belongs and the compiler for it; without one, a library that is there."""
    try:
        compiler = find_compiler()
    except KernelsUnavailable:
        if found := _made_before(folder):
            return found, []
        raise
    made_with = _digest(*compiler, _version(compiler))
    return folder / f"kernels-{_made_from()}-{made_with}.so", compiler


def _made_before(folder: Path) -> Path | None:
    """The latest library of these sources for this processor, by whichever compiler."""
    found = folder.glob(f"kernels-{_made_from()}-*.so")
    return max(found, key=lambda library: library.stat().st_mtime, default=None)


def _made_from() -> str:
    """What stands for sources, flags and processor."""
    sources = (part for file in _sources() for part in (file.name, file.read_text()))
    return _digest(*sources, *FLAGS, _processor())


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _sources() -> list[Path]:
    """The C++ files beside this one, gpt.cpp among them, by name."""
    folder = Path(str(resources.files(__package__)))
    return sorted(file for file in folder.iterdir() if file.suffix in (".h", ".cpp"))


def _version(compiler: list[str]) -> str:
    return _run([*compiler, "--version"], 0, Event()).stdout


def _processor() -> str:
    """Model and instruction sets of this machine's processor, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    first = {key.strip(): value for key, _, value in (line.partition(":") for line in lines[:40])}
    return platform.machine() + "".join(
        first.get(key, "") for key in ("model name", "flags", "Features")
    )


def _compile(compiler: list[str], library: Path, nice: int, cancelled: Event) -> None:
    """Writes the library aside and renames it: whoever looks sees the whole or nothing."""
    for abandoned in library.parent.glob(f"{library.stem}.*.tmp"):
        abandoned.unlink()
    unfinished = library.with_suffix(f".{os.getpid()}.tmp")
    source = next(file for file in _sources() if file.suffix == ".cpp")
    try:
        done = _run([*compiler, *FLAGS, str(source), "-o", str(unfinished)], nice, cancelled)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if "error" in line]
            problem = (lines or done.stderr.splitlines() or [f"exit code {done.returncode}"])[0]
            raise KernelsUnavailable(f"{compiler[0]} cannot compile the kernels: {problem}")
        unfinished.replace(library)
    finally:
        unfinished.unlink(missing_ok=True)


def _run(command: list[str], nice: int, cancelled: Event) -> subprocess.CompletedProcess[str]:
    lowered = ["nice", "-n", str(nice)] if nice and shutil.which("nice") else []
    try:
        with subprocess.Popen(
            [*lowered, *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "LC_ALL": "C"},
            start_new_session=True,
        ) as process:
            try:
                output, errors = _outputs(process, command[0], cancelled)
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)  # and what the compiler has started
                raise
    except OSError as error:
        raise KernelsUnavailable(f"{command[0]} cannot be run: {error}") from error
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def _outputs(process: subprocess.Popen[str], name: str, cancelled: Event) -> tuple[str, str]:
    """What a process has written to its two outputs, once it is done."""
    end = time.monotonic() + TIMEOUT_SECONDS
    while not cancelled.is_set():
        try:
            return process.communicate(timeout=POLL_SECONDS)
        except subprocess.TimeoutExpired:
            if time.monotonic() > end:
                raise KernelsUnavailable(
                    f"{name} did not finish within {TIMEOUT_SECONDS:g} s"
                ) from None
    raise KernelsUnavailable(f"{name} was ended before it was done")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds a lock file that the system frees if this process dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
