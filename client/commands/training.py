"""Commands that follow a job: train a new one, watch an old one."""

import uuid
from typing import cast

from client.arguments import Options, UsageError
from client.client import Client
from client.commands.connection import connect
from client.commands.figures import count
from client.commands.follow import follow, how_to_go_on
from client.commands.output import print_json
from client.commands.serving import watch_serving
from client.commands.train_keys import TRAIN_KEYS
from client.errors import DeadlineExceeded, Unavailable
from client.exit_code import ExitCode
from client.requests import ConfigValue
from protos.nanogpt.v1.training_pb2 import Job


def train(options: Options) -> ExitCode:
    with connect(options) as client:
        job = _queue(client, options)
        if options.flag("json"):
            print_json(job)
        else:
            print(_queued_text(job), flush=True)
        if options.flag("detach"):
            if not options.flag("json"):
                print(how_to_go_on(job))
            return ExitCode.DONE
        return follow(client, job, 1, options.flag("json"))


def _queue(client: Client, options: Options) -> Job:
    request_id = options.text("request_id") or str(uuid.uuid4())
    try:
        return client.train(
            options.text("dataset"),
            model=options.text("model"),
            preset=options.text("preset"),
            request_id=request_id,
            priority=cast(int | None, options["priority"]),
            **cast(dict[str, ConfigValue], options.some(TRAIN_KEYS)),
        )
    except (DeadlineExceeded, Unavailable) as error:  # the answer may have been lost, not the job
        error.add_note(
            "The job may be queued all the same. "
            f"The same command with --request_id={request_id} does not queue it twice."
        )
        raise


def watch(options: Options) -> ExitCode:
    if options.flag("serving"):
        return watch_serving(options)
    if not options.arguments:
        raise UsageError("watch needs JOB, the id of a job, or --serving")
    with connect(options) as client:
        job = client.job(options.arguments[0])
        start_sequence = cast(int, options["start_sequence"])
        max_behind = cast(int | None, options["max_behind"])
        return follow(client, job, start_sequence, options.flag("json"), max_behind)


def _queued_text(job: Job) -> str:
    """The job and which of its settings are not the defaults."""
    lines = [f"job {job.id} trains {job.model} on {job.dataset}"]
    if job.queue_position:
        lines[0] += f", after {count(job.queue_position)} other"
        lines[0] += "s" if job.queue_position > 1 else ""
    for key, origin in sorted(job.config_origin.items()):
        if origin != "default":
            lines.append(f"  {key} = {getattr(job.config, key)} ({origin})")
    return "\n".join(lines)
