"""A contender's side of a measurement: its own process, which obeys requests of the harness.

One JSON object a line comes in on standard input, one goes out on standard output; whatever a
library prints goes to standard error. Imports nothing outside the standard library, since each
peer lives in an environment of its own.
"""

import ctypes
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any, Protocol

PR_SET_PDEATHSIG = 1  # https://man7.org/linux/man-pages/man2/PR_SET_PDEATHSIG.2const.html


class Contender(Protocol):
    """What each system under test does, in its own newest interface."""

    version: str
    """Name and version of the system, as results show it."""

    def load(
        self, exports: Path, variant: str, *, concurrency: int, max_tokens: int, threads: int
    ) -> None:
        """Gets ready to continue `concurrency` prompts at a time, `max_tokens` each in all.

        `exports` holds the model in every format, see benchmarks/networks.py; `variant` is a
        precision by the system's own name.
        """

    def generate(self, prompts: list[list[int]], max_new_tokens: int) -> list[list[int]]:
        """Exactly that many new tokens for each prompt, all prompts at once, greedy."""


def serve(contender: Contender) -> None:
    """Obeys until standard input ends. Never returns an exception: it answers with its text."""
    if sys.platform == "linux":  # also while it is stopped, out of its turn
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        try:
            answer = _obey(contender, json.loads(line))
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _obey(contender: Contender, asked: dict[str, Any]) -> dict[str, Any]:
    if asked.pop("do") == "load":
        contender.load(Path(asked.pop("exports")), asked.pop("variant"), **asked)
        return {"version": contender.version}
    start = time.perf_counter()
    token_ids = contender.generate(**asked)
    return {"seconds": time.perf_counter() - start, "token_ids": token_ids}
