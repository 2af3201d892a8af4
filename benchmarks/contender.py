"""The harness's side of a measurement: contenders in processes of their own, in turns.

A contender whose turn it is not is stopped (SIGSTOP), so that no thread of it spins meanwhile. One
that crashes, hangs or refuses is reported with its reason and the others go on.
"""

import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

WORK = Path("build/bench")
"""Models, exports, what peers made of them, and what contenders print."""

LOAD_SECONDS, GENERATE_SECONDS, CLOSE_SECONDS = 900.0, 600.0, 10.0


class ContenderFailed(Exception):
    """A contender crashed, hung or refused; the text says which."""


class ContenderProcess:
    """One contender. Close it."""

    def __init__(self, name: str, command: Sequence[str], threads: int) -> None:
        logs = WORK / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        self.log = logs / f"{name.replace(' ', '-')}.log"
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        with self.log.open("w") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                process_group=0,
            )
        self.version = name

    def load(self, exports: Path, variant: str, **sizes: int) -> None:
        """See worker.Contender. Raises ContenderFailed."""
        asked = {"do": "load", "exports": str(exports.absolute()), "variant": variant, **sizes}
        self.version = self._ask(asked, LOAD_SECONDS)["version"]

    def generate(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int
    ) -> tuple[float, list[list[int]]]:
        """Seconds it took, and the new tokens. Raises ContenderFailed."""
        asked = {"do": "generate", "prompts": prompts, "max_new_tokens": max_new_tokens}
        answer = self._ask(asked, GENERATE_SECONDS)
        token_ids = answer["token_ids"]
        if [len(ids) for ids in token_ids] != [max_new_tokens] * len(prompts):
            raise ContenderFailed("it did not generate as many tokens as asked")
        return answer["seconds"], token_ids

    def pause(self) -> None:
        """Its turn is over."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """It is its turn."""
        self._signal(signal.SIGCONT)

    def close(self) -> None:
        """Ends the process and all that it started: by the end of its input, or by force."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        self.resume()
        with suppress(BrokenPipeError):
            stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(CLOSE_SECONDS)
        self._signal(signal.SIGKILL)
        self._process.wait()
        stdout.close()

    def _signal(self, number: signal.Signals) -> None:
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            pass  # it is over already

    def _ask(self, asked: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        try:
            stdin.write(json.dumps(asked).encode() + b"\n")
            stdin.flush()
        except BrokenPipeError:
            raise ContenderFailed(self._death()) from None
        ready, _, _ = select.select([stdout], [], [], seconds)
        if not ready:
            raise ContenderFailed(f"no answer within {seconds:g} s; see {self.log}")
        line = stdout.readline()
        if not line:
            raise ContenderFailed(self._death())
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ContenderFailed(f"{answer['error']}; see {self.log}")
        return answer

    def _death(self) -> str:
        return f"it ended with exit code {self._process.wait()}; see {self.log}"


@dataclass(slots=True)
class Entry:
    """One contender of a measurement and what it did so far."""

    name: str
    precision: str
    process: ContenderProcess
    is_rival: bool = True
    """False for ours."""
    is_out: bool = False
    """Whether it takes no more turns; its process is closed."""
    seconds: list[float] = field(default_factory=list)
    token_ids: list[list[int]] = field(default_factory=list)
    """Of its first turn."""

    @property
    def median_seconds(self) -> float:
        return median(self.seconds)

    def take_turn(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
        """Measures it once, while all others stand still. Raises ContenderFailed."""
        self.process.resume()
        seconds, token_ids = self.process.generate(prompts, max_new_tokens)
        self.process.pause()
        self.seconds.append(seconds)
        self.token_ids = self.token_ids or token_ids
        rate = len(prompts) * max_new_tokens / seconds
        now = time.strftime("%H:%M:%S")
        print(f"  [{now}] {self.name}: {rate:,.1f} tokens/s", flush=True)

    def leave(self) -> None:
        """Ends its process; what it did counts."""
        self.is_out = True
        self.process.close()


def take_turns(
    entries: Collection[Entry], rounds: Iterable[Sequence[Sequence[int]]], max_new_tokens: int
) -> dict[str, str]:
    """Measures everyone who is not out once a round, in turn; returns why some failed.

    `rounds` are the prompts of each round, the same for all.
    """
    failures: dict[str, str] = {}
    for prompts in rounds:
        for entry in entries:
            if entry.is_out:
                continue
            try:
                entry.take_turn(prompts, max_new_tokens)
            except ContenderFailed as error:
                failures[entry.name] = str(error)
                entry.leave()
    return failures
