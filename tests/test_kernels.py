"""Kernels that are there, come later, or never: who waits for them, and what is logged."""

import asyncio
import threading

import pytest

from nanogpt.inference.native.compiler import KernelsUnavailable
from server.models import kernels as module
from server.models.kernels import Kernels


@pytest.fixture
def compiling(monkeypatch):
    """A folder without a library, in which compiling takes until this event is set."""
    gate = threading.Event()
    monkeypatch.setattr(module, "check_available", lambda folder: None)
    monkeypatch.setattr(module, "cached_kernels", lambda folder: None)
    monkeypatch.setattr(
        module, "compiled_kernels", lambda folder, nice, cancelled: gate.wait(20) and folder
    )
    monkeypatch.setattr(module, "Library", lambda path: path)
    yield gate
    gate.set()


async def test_nobody_waits_for_a_compiler_but_who_wants_to(compiling, tmp_path):
    kernels = Kernels(tmp_path)
    assert kernels.now() is None and kernels.may_come
    compiling.set()
    assert kernels.wait() == tmp_path
    assert await kernels.made() == tmp_path and kernels.now() == tmp_path and kernels.may_come


def test_a_library_that_is_there_is_used_at_once(compiling, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "cached_kernels", lambda folder: folder)
    assert Kernels(tmp_path).now() == tmp_path


async def test_without_a_compiler_that_is_said_once(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("CXX", "no-such-compiler")
    kernels = Kernels(tmp_path)
    assert kernels.now() is kernels.wait() is await kernels.made() is None
    assert not kernels.may_come
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "PyTorch serves, slower: there is no C++ compiler 'no-such-compiler'" in record.message


@pytest.mark.parametrize("error", [KernelsUnavailable("too old"), RuntimeError("a bug")])
def test_a_compilation_that_fails_is_said_once_and_keeps_nobody(
    compiling, tmp_path, monkeypatch, caplog, error
):
    def fail(folder, nice, cancelled):
        raise error

    monkeypatch.setattr(module, "compiled_kernels", fail)
    kernels = Kernels(tmp_path)
    assert kernels.wait() is None and kernels.now() is None and not kernels.may_come
    (record,) = [record for record in caplog.records if record.levelno >= 30]
    assert "too old" in record.message or "a bug" in record.exc_text


async def test_one_who_goes_away_does_not_stop_it_for_others(compiling, tmp_path):
    kernels = Kernels(tmp_path)
    impatient = asyncio.create_task(kernels.made())
    await asyncio.sleep(0)
    impatient.cancel()
    await asyncio.wait([impatient])
    compiling.set()
    assert await kernels.made() == tmp_path


def test_none_are_wanted():
    kernels = Kernels(None)
    assert kernels.now() is None and not kernels.may_come
