"""One library a machine, whoever asks for it first; and a reason where none can be made."""

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from nanogpt.inference.native import compiler
from nanogpt.inference.native.compiler import KernelsUnavailable, cached_kernels, compiled_kernels
from nanogpt.inference.native.library import Library

FAKE = """#!/bin/sh
if [ "$1" = --version ]; then echo "fake 1.0"; exit; fi
echo compiled >> "$COUNT"
while [ $# -gt 1 ]; do shift; done
echo library > "$1"
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A compiler that writes a line into $COUNT each time, and a file that is no library."""
    path = tmp_path / "fake-c++"
    path.write_text(FAKE)
    path.chmod(0o755)
    monkeypatch.setenv("CXX", str(path))
    monkeypatch.setenv("COUNT", str(tmp_path / "count"))
    return path


def compilations(tmp_path: Path) -> int:
    return len((tmp_path / "count").read_text().splitlines())


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_library_is_made_once_and_again_when_anything_changed(
    fake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "data" / "kernels"
    library = compiled_kernels(folder)
    assert library.read_text() == "library\n" and library.parent == folder
    assert compiled_kernels(folder) == library and compilations(tmp_path) == 1
    monkeypatch.setattr(compiler, "FLAGS", (*compiler.FLAGS, "-g"))
    other_flags = compiled_kernels(folder)
    fake.write_text(FAKE.replace("1.0", "2.0"))
    other_compiler = compiled_kernels(folder)
    monkeypatch.setattr(compiler, "_processor", lambda: "another one")
    other_processor = compiled_kernels(folder)
    assert len({library, other_flags, other_compiler, other_processor}) == 4
    assert compilations(tmp_path) == 4
    assert not list(folder.glob("*.tmp"))


def test_of_two_processes_one_compiles(fake: Path, tmp_path: Path) -> None:
    command = (
        "import sys, pathlib; from nanogpt.inference.native.compiler import compiled_kernels;"
        "print(compiled_kernels(pathlib.Path(sys.argv[1])))"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", command, str(tmp_path / "kernels")],
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    outputs = {process.communicate()[0].strip() for process in processes}
    assert len(outputs) == 1 and Path(outputs.pop()).exists()
    assert compilations(tmp_path) == 1


def test_why_there_are_no_kernels_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(KernelsUnavailable, match=r"none of c\+\+, g\+\+, clang\+\+ is here"):
        compiled_kernels(tmp_path)
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    with pytest.raises(KernelsUnavailable, match=r"no C\+\+ compiler 'no-such-compiler'"):
        compiled_kernels(tmp_path)


def test_without_a_compiler_a_library_that_is_there_will_do(
    fake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "kernels"
    library = compiled_kernels(folder)
    fake.unlink()
    compiler.check_available(folder)
    assert cached_kernels(folder) == compiled_kernels(folder) == library
    monkeypatch.setattr(compiler, "_processor", lambda: "another one")
    for ask in (compiler.check_available, cached_kernels, compiled_kernels):
        with pytest.raises(KernelsUnavailable, match=r"no C\+\+ compiler"):
            ask(folder)


def test_a_compiler_that_fails_leaves_nothing(fake: Path, tmp_path: Path) -> None:
    fake.write_text("#!/bin/sh\necho 'gpt.cpp:1: error: too old' >&2\necho more >&2\nexit 1\n")
    with pytest.raises(KernelsUnavailable) as failed:
        compiled_kernels(tmp_path / "kernels")
    assert str(failed.value) == f"{fake} cannot compile the kernels: gpt.cpp:1: error: too old"
    assert not list((tmp_path / "kernels").glob("*.so*"))


def test_a_compiler_that_hangs_is_ended_with_all_it_started(
    fake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiler, "TIMEOUT_SECONDS", 2)
    fake.write_text("#!/bin/sh\n[ $1 = --version ] && exit\nsleep 600 &\necho $! > $COUNT\nwait\n")
    with pytest.raises(KernelsUnavailable, match="did not finish within 2 s"):
        compiled_kernels(tmp_path / "kernels")
    child = int((tmp_path / "count").read_text())
    while is_alive(child):  # the test's own timeout ends this
        pass


def test_a_compiler_that_is_told_to_end_ends_with_all_it_started(
    fake: Path, tmp_path: Path
) -> None:
    fake.write_text("#!/bin/sh\n[ $1 = --version ] && exit\nsleep 600 &\necho $! > $COUNT\nwait\n")
    count, cancelled = tmp_path / "count", threading.Event()

    def cancel_once_it_runs() -> None:
        while not (count.exists() and count.read_text()):
            pass
        cancelled.set()

    thread = threading.Thread(target=cancel_once_it_runs)
    thread.start()
    with pytest.raises(KernelsUnavailable, match="was ended before it was done"):
        compiled_kernels(tmp_path / "kernels", cancelled=cancelled)
    thread.join()
    while is_alive(int(count.read_text())):  # the test's own timeout ends this
        pass
    assert not list((tmp_path / "kernels").glob("*.tmp"))


@pytest.mark.parametrize(
    "command",
    [
        "c++ -march=x86-64",
        "c++ -march=skylake-avx512",
        "c++ -march=icelake-server",
        "c++ -march=cooperlake",
        "aarch64-linux-gnu-g++ -march=armv8-a",
    ],
    ids=["SSE2", "AVX-512", "AVX-512 VNNI", "AVX-512 BF16", "NEON"],
)
def test_the_branches_for_other_processors_compile(command: str) -> None:
    """Their results have to be tested where there is such a processor."""
    program, flags = command.split()
    compilers = compiler.find_compiler() if program == "c++" else [program]
    checking = [*compilers, "-std=c++20", flags, "-fsyntax-only", "-Wno-psabi"]
    if shutil.which(compilers[0]) is None:
        pytest.skip(f"there is no {program}")
    if subprocess.run([*checking, "-xc++", os.devnull], capture_output=True).returncode:
        pytest.skip(f"this compiler has no {flags}")
    subprocess.run([*checking, str(Path(compiler.__file__).parent / "gpt.cpp")], check=True)


def test_a_folder_that_cannot_be_used(fake: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(KernelsUnavailable, match="cannot be used"):
        compiled_kernels(tmp_path / "file")


def test_a_file_that_is_no_library(fake: Path, tmp_path: Path) -> None:
    with pytest.raises(KernelsUnavailable, match="cannot be loaded"):
        Library(compiled_kernels(tmp_path))


def test_no_torch_is_needed() -> None:
    command = "import nanogpt.inference.native.runner, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", command], check=True, env={**os.environ})
