"""Contenders of a benchmark: processes that take turns, and what becomes of those that fail."""

import sys
from pathlib import Path

import psutil
import pytest

from benchmarks import contender
from benchmarks.contender import ContenderFailed, ContenderProcess, Entry, take_turns
from benchmarks.inference_cells import is_hopeless

COUNTING = """
import os, sys, time
from benchmarks.worker import serve

class Counting:
    version = "counting 1.0"

    def load(self, exports, variant, *, concurrency, max_tokens, threads):
        print("libraries print")  # must not end up among the answers
        if variant == "bad":
            raise ValueError("no such variant")
        self.variant = variant

    def generate(self, prompts, max_new_tokens):
        if self.variant == "dies":
            os._exit(7)
        if self.variant == "short":
            max_new_tokens -= 1
        return [list(range(prompt[-1] + 1, prompt[-1] + 1 + max_new_tokens)) for prompt in prompts]

serve(Counting())
"""
SIZES = {"concurrency": 2, "max_tokens": 8, "threads": 1}


@pytest.fixture
def start(tmp_path, monkeypatch):
    monkeypatch.setattr(contender, "WORK", tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parent.parent))
    started = []

    def started_as(name: str) -> ContenderProcess:
        started.append(ContenderProcess(name, [sys.executable, "-c", COUNTING], 1))
        return started[-1]

    yield started_as
    for process in started:
        process.close()


def test_a_contender_generates_what_it_is_asked_for(start, tmp_path):
    process = start("one")
    process.load(tmp_path, "good", **SIZES)
    assert process.version == "counting 1.0"
    seconds, token_ids = process.generate([[1, 2], [7]], 3)
    assert token_ids == [[3, 4, 5], [8, 9, 10]] and seconds > 0
    process.pause()
    worker = psutil.Process(process._process.pid)
    while worker.status() != psutil.STATUS_STOPPED:  # the signal is on its way
        pass
    process.resume()
    assert process.generate([[1]], 1)[1] == [[2]]
    assert "libraries print" in process.log.read_text()


def test_a_refusal_is_told_and_does_not_end_it(start, tmp_path):
    process = start("one")
    with pytest.raises(ContenderFailed, match="ValueError: no such variant"):
        process.load(tmp_path, "bad", **SIZES)
    process.load(tmp_path, "good", **SIZES)


def test_turns_go_on_without_those_that_fail(start, tmp_path):
    entries = {}
    for name in ("good", "dies", "short", "left"):
        process = start(name)
        process.load(tmp_path, name, **SIZES)
        process.pause()
        entries[name] = Entry(name, "float32", process)
    entries["left"].leave()
    rounds = [[[1], [6]], [[2], [7]], [[3], [8]]]
    failures = take_turns(entries.values(), rounds, 4)
    assert "exit code 7" in failures["dies"]
    assert "did not generate as many tokens" in failures["short"]
    good = entries["good"]
    assert len(good.seconds) == 3
    assert good.token_ids == [[2, 3, 4, 5], [7, 8, 9, 10]]
    assert sorted(failures) == ["dies", "short"]
    assert {name for name, entry in entries.items() if entry.is_out} == {"dies", "short", "left"}


def test_only_who_cannot_be_the_best_anywhere_is_hopeless(start):
    process = start("unused")

    def entry(precision: str, seconds: float, is_rival: bool = True) -> Entry:
        return Entry(precision, precision, process, is_rival, seconds=[seconds])

    fast_int8, slow_float32, slow_int8 = entry("int8", 1), entry("float32", 2), entry("int8", 2)
    ours = entry("float32", 0.1, is_rival=False)
    entries = [fast_int8, slow_float32, slow_int8, ours]
    # int8 does not count in cells of float32, so it beats nobody there, and ours is no peer
    assert [is_hopeless(each, entries) for each in entries] == [False, False, True, False]
    assert not is_hopeless(entry("int8", 1.4), entries)
    assert is_hopeless(entry("float32", 3.1), entries)
    assert is_hopeless(entry("int4", 1.6), entries)
