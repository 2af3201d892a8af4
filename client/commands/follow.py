"""Follows a job on the terminal: a progress bar, plain lines, or JSON lines.

All three show the same events; which one depends on --json and on whether stdout is a terminal.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from client.client import Client
from client.commands.events import ENDED, event_text, state_change_text, step_text
from client.commands.help import PROGRAM
from client.commands.output import console, print_json
from client.exit_code import ExitCode
from protos.nanogpt.v1.training_pb2 import Job, StateChange, StreamMetricsResponse


class Bar:
    """A progress bar with the latest figures, and the rarer events above it."""

    def __init__(self, progress: Progress, max_iters: int) -> None:
        self._progress, self._max_iters = progress, max_iters
        self._task = progress.add_task("steps", total=max_iters, figures="")
        self._loss, self._val_loss, self._speed = "", "", ""

    def show(self, event: StreamMetricsResponse) -> None:
        if event.HasField("step"):
            self._loss = f"loss {event.step.loss:.4f}"
            self._speed = step_text(event.step, self._max_iters)
            self._progress.update(self._task, completed=event.step.step)
        else:
            if event.HasField("evaluation"):
                self._val_loss = f"val {event.evaluation.val_loss:.4f}"
            text = event_text(event, self._max_iters)
            if text:
                self._progress.console.print(text)
        figures = [text for text in (self._loss, self._val_loss, self._speed) if text]
        self._progress.update(self._task, figures="  ".join(figures))


@contextmanager
def _view(max_iters: int, as_json: bool) -> Iterator[Callable[[StreamMetricsResponse], None]]:
    """A function that shows one event."""
    if as_json:
        yield print_json
    elif sys.stdout.isatty():
        columns = (
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.fields[figures]}"),
        )
        with Progress(*columns, console=console()) as progress:
            yield Bar(progress, max_iters).show
    else:
        yield lambda event: _print_line(event, max_iters)


def _print_line(event: StreamMetricsResponse, max_iters: int) -> None:
    text = event_text(event, max_iters)
    if text:
        print(text, flush=True)


def follow(
    client: Client, job: Job, start_sequence: int, as_json: bool, max_behind: int | None = None
) -> ExitCode:
    """Shows a job's events until it ends. Ctrl-C stops showing them; the job goes on."""
    last = StateChange(state=job.state)
    try:
        with _view(job.config.max_iters, as_json) as show:
            for event in client.watch(job.id, start_sequence, max_behind=max_behind):
                show(event)
                if event.HasField("state_change"):
                    last = event.state_change
    except KeyboardInterrupt:
        print(f"\nStopped watching; job {job.id} goes on.\n{how_to_go_on(job)}", file=sys.stderr)
        return ExitCode.INTERRUPTED
    if last.state == Job.STATE_SUCCEEDED:
        if not as_json:
            print(f"Try it: {PROGRAM} sample --model={job.model}")
        return ExitCode.DONE
    if last.state in ENDED:
        print(f"error: job {job.id} {state_change_text(last)}", file=sys.stderr)
    else:
        print(f"error: the events of job {job.id} ended before it did", file=sys.stderr)
    return ExitCode.FAILED


def how_to_go_on(job: Job) -> str:
    """The commands that follow and stop a job that nobody watches."""
    return f"Watch it: {PROGRAM} watch {job.id}\nStop it:  {PROGRAM} cancel {job.id}"
