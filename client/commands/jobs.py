"""Commands about jobs: list, show one, cancel, pause, resume."""

from collections.abc import Iterator

from client.arguments import Options
from client.commands.connection import connect
from client.commands.events import device_text, state_change_text
from client.commands.figures import count, duration, elapsed, instant, percent, word
from client.commands.help import PROGRAM
from client.commands.output import as_json, print_fields, print_json, print_table
from client.exit_code import ExitCode
from protos.nanogpt.v1.training_pb2 import Job

COLUMNS = ("job", "state", "model", "dataset", "step", "loss", "val loss", "time left", "created")


def jobs(options: Options) -> ExitCode:
    with connect(options) as client:
        found = client.jobs()
        if options.flag("json"):
            for job in found:
                print_json(job)
        elif rows := [_row(job) for job in found]:
            print_table(COLUMNS, rows)
        else:
            print(f"There is no job yet; `{PROGRAM} train` starts one.")
    return ExitCode.DONE


def job(options: Options) -> ExitCode:
    with connect(options) as client:
        found = client.job(options.arguments[0])
    if options.flag("json"):
        print_json(found)
        return ExitCode.DONE
    print_fields(_fields(found))
    settings = as_json(found.config)
    print_table(
        ("setting", "value", "from"),
        [(key, str(settings[key]), found.config_origin[key]) for key in settings],
    )
    print_table(
        ("time", "state"),
        [(instant(change.time), state_change_text(change)) for change in found.history],
    )
    if found.attempts:
        print_table(("start", "time", "from step", "exit code", "ending"), _attempts(found))
    return ExitCode.DONE


def cancel(options: Options) -> ExitCode:
    with connect(options) as client:
        return _show(client.cancel(options.arguments[0]), options)


def pause(options: Options) -> ExitCode:
    with connect(options) as client:
        return _show(client.pause(options.arguments[0]), options)


def resume(options: Options) -> ExitCode:
    with connect(options) as client:
        return _show(client.resume(options.arguments[0]), options)


def _show(found: Job, options: Options) -> ExitCode:
    """Says where the job stands now."""
    if options.flag("json"):
        print_json(found)
    else:
        print(f"job {found.id}: {state_text(found)}")
    return ExitCode.DONE


def state_text(job: Job) -> str:
    """The state and why, such as `failed (out of memory)`."""
    state = word(Job.State.Name(job.state), "STATE_")
    reason = word(Job.Reason.Name(job.reason), "REASON_") if job.reason else ""
    return f"{state} ({reason})" if reason else state


def _attempts(job: Job) -> Iterator[tuple[str, ...]]:
    for attempt in job.attempts:
        yield (
            count(attempt.number),
            instant(attempt.start_time),
            count(attempt.first_step) if attempt.HasField("first_step") else "",
            str(attempt.exit_code) if attempt.HasField("exit_code") else "",
            attempt.ending,
        )


def _row(job: Job) -> tuple[str, ...]:
    return (
        job.id,
        state_text(job),
        job.model,
        job.dataset,
        f"{count(job.step)}/{count(job.config.max_iters)}",
        f"{job.latest_step.loss:.4f}" if job.HasField("latest_step") else "",
        f"{job.latest_evaluation.val_loss:.4f}" if job.HasField("latest_evaluation") else "",
        duration(job.remaining_seconds) if job.HasField("remaining_seconds") else "",
        instant(job.create_time),
    )


def _fields(job: Job) -> Iterator[tuple[str, str]]:
    """What is known of a job, in the order of interest."""
    yield "job", job.id
    yield "state", state_text(job)
    yield "error", job.error
    yield "model", job.model
    yield "dataset", job.dataset
    if job.priority:
        yield "priority", count(job.priority)
    if job.HasField("queue_position"):
        yield "jobs before it", count(job.queue_position)
    yield "step", f"{count(job.step)} of {count(job.config.max_iters)}"
    if job.HasField("run"):
        yield "parameters", count(job.run.parameter_count)
        yield "device", device_text(job.run)
    if job.HasField("latest_step"):
        yield "loss", f"{job.latest_step.loss:.4f}"
        yield "tokens/s", count(round(job.latest_step.tokens_per_second))
        if job.latest_step.HasField("mfu"):
            yield "MFU", percent(job.latest_step.mfu)
    if job.HasField("latest_evaluation"):
        yield "val loss", f"{job.latest_evaluation.val_loss:.4f}"
    if job.HasField("best_val_loss"):
        yield "best val loss", f"{job.best_val_loss:.4f}"
    if job.HasField("remaining_seconds"):
        yield "time left", duration(job.remaining_seconds)
    yield "created", instant(job.create_time)
    if job.HasField("start_time"):
        yield "started", instant(job.start_time)
        end = job.end_time if job.HasField("end_time") else None
        yield "ran for", elapsed(job.start_time, end)
    if len(job.attempts) > 1:
        yield "starts", count(len(job.attempts))
