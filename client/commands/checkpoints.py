"""Commands about a job's checkpoints: list, keep, let go, delete."""

from client.arguments import Options, UsageError
from client.commands.connection import connect
from client.commands.figures import count, instant, size
from client.commands.output import print_json, print_table
from client.exit_code import ExitCode
from protos.nanogpt.v1.training_pb2 import Checkpoint

COLUMNS = ("step", "val loss", "size", "created", "")


def checkpoints(options: Options) -> ExitCode:
    (job_id,) = options.arguments
    with connect(options) as client:
        found = client.checkpoints(job_id)
    if options.flag("json"):
        for checkpoint in found:
            print_json(checkpoint)
    elif found:
        print_table(COLUMNS, [_row(checkpoint) for checkpoint in found])
    else:
        print(f"Job {job_id} has no checkpoint.")
    return ExitCode.DONE


def pin(options: Options) -> ExitCode:
    job_id, step = options.arguments
    with connect(options) as client:
        return _show(client.pin(job_id, _step(step)), options)


def unpin(options: Options) -> ExitCode:
    job_id, step = options.arguments
    with connect(options) as client:
        return _show(client.unpin(job_id, _step(step)), options)


def delete_checkpoint(options: Options) -> ExitCode:
    job_id, step = options.arguments
    with connect(options) as client:
        client.delete_checkpoint(job_id, _step(step))
    if not options.flag("json"):
        print(f"checkpoint {step} of job {job_id}: deleted")
    return ExitCode.DONE


def _step(word: str) -> int:
    if not word.isdecimal() or len(word) > 18:
        raise UsageError(f"STEP must be a whole number of at most 18 digits, got {word!r}")
    return int(word)


def _show(checkpoint: Checkpoint, options: Options) -> ExitCode:
    if options.flag("json"):
        print_json(checkpoint)
    else:
        kept = "kept until it is unpinned" if checkpoint.is_pinned else "no longer kept"
        print(f"checkpoint {checkpoint.step}: {kept}")
    return ExitCode.DONE


def _row(checkpoint: Checkpoint) -> tuple[str, ...]:
    marks = {
        "best": checkpoint.is_best,
        "pinned": checkpoint.is_pinned,
        "loaded": checkpoint.is_loaded,
    }
    return (
        count(checkpoint.step),
        f"{checkpoint.val_loss:.4f}" if checkpoint.HasField("val_loss") else "",
        size(checkpoint.size_bytes),
        instant(checkpoint.create_time),
        ", ".join(mark for mark, is_set in marks.items() if is_set),
    )
