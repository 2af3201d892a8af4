"""Command that continues a text, printing tokens as they arrive."""

import sys
from pathlib import Path
from typing import Any, cast

from client.arguments import Options, UsageError
from client.commands.connection import connect
from client.commands.figures import count
from client.commands.output import print_json
from client.errors import NanoGPTError
from client.exit_code import ExitCode
from client.generation import Generation
from client.requests import GenerateOptions
from protos.nanogpt.v1.inference_pb2 import GenerateResponse, Started

SEPARATOR = "-" * 50
OPTION_KEYS = (
    "model",
    "max_new_tokens",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "seed",
    "priority",
    "use_prefix_cache",
    "max_draft_tokens",
    "top_logprobs",
    "prompt_logprobs",
    "echo",
)


def sample(options: Options) -> ExitCode:
    prompt = text_of(options.text("start"))
    asked: dict[str, Any] = {name: options[name] for name in OPTION_KEYS}
    asked["model"] = options.text("model")
    if options.text("stop"):
        asked["stop_strings"] = [options.text("stop")]
    num_samples = cast(int, options["num_samples"])
    with connect(options) as client:
        generation = client.generate(
            prompt, num_samples=num_samples, **cast(GenerateOptions, asked)
        )
        if options.flag("json"):
            for response in generation.responses():
                print_json(response)
        else:
            _print(generation, SamplePrinter(prompt, num_samples))
    return ExitCode.DONE


def text_of(words: str) -> str:
    """A text, read from a file if it is FILE:PATH. Raises UsageError."""
    if not words.startswith("FILE:"):
        return words
    path = Path(words.removeprefix("FILE:"))
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 at byte {error.start}") from None


def _print(generation: Generation, printer: "SamplePrinter") -> None:
    """Prints samples one after another on stdout, and once on stderr what they come from."""
    try:
        for response in generation.responses():
            if response.HasField("queued"):
                print(_queued_text(response.queued.requests_ahead), file=sys.stderr)
            elif response.HasField("started"):
                print(_started_text(response.started), file=sys.stderr)
            printer.take(response)
    except NanoGPTError:
        if generation.started is not None:
            print()  # what follows is no part of the text
        raise


def _queued_text(requests_ahead: int) -> str:
    if not requests_ahead:
        return "next in the queue"
    return f"waiting behind {count(requests_ahead)} other{'s' if requests_ahead > 1 else ''}"


def _started_text(started: Started) -> str:
    return f"{started.model} at step {count(started.weight_version)}, seed {started.sampling.seed}"


class SamplePrinter:
    """Prints each sample whole, in order, as early as that allows.

    Samples grow side by side. The first unfinished one is printed as it grows; what arrives of
    those behind it waits. The prompt comes before each, 50 dashes between them.
    """

    def __init__(self, prompt: str, num_samples: int) -> None:
        self._prompt, self._num_samples = prompt, num_samples
        self._current = 0  # the sample being printed
        self._waiting: dict[int, str] = {}  # texts of those behind it
        self._finished: set[int] = set()

    def take(self, response: GenerateResponse) -> None:
        """Prints what the response allows to print."""
        match response.WhichOneof("event"):
            case "started":
                self._begin()
            case "delta":
                index, text = response.delta.sample_index, response.delta.text
                if index == self._current:
                    print(text, end="", flush=True)
                else:
                    self._waiting[index] = self._waiting.get(index, "") + text
            case "finished":
                self._finished.add(response.finished.sample_index)
                while self._current in self._finished:
                    self._end()

    def _begin(self) -> None:
        print(self._prompt + self._waiting.pop(self._current, ""), end="", flush=True)

    def _end(self) -> None:
        print(flush=True)
        self._current += 1
        if self._current < self._num_samples:
            print(SEPARATOR)
            self._begin()
