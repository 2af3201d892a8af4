"""How callers name models: `NAME`, `NAME@STEP`, `job:ID`, `job:ID@STEP`, or nothing for the newest.

Pure text.
Names are checked here, before anything touches the disk, so no reference leads out of the data
folder.
"""

import re
from dataclasses import dataclass

from nanogpt.option import Violation
from server.errors import InvalidArgument
from server.names import PATTERN, is_name

JOB = "job:"

FORMS = "NAME, NAME@STEP, job:ID or job:ID@STEP"


@dataclass(frozen=True, slots=True)
class ModelReference:
    """A model, the newest checkpoint of a job, or with a step one checkpoint of its run.

    The newest model if all is None.
    """

    name: str | None = None
    step: int | None = None
    job_id: str | None = None

    def __str__(self) -> str:
        source = self.name or "" if self.job_id is None else f"{JOB}{self.job_id}"
        return source if self.step is None else f"{source}@{self.step}"


def parse_reference(text: str, field: str) -> ModelReference:
    """What `text` refers to. Raises InvalidArgument naming `field`, the request's field."""
    if not text:
        return ModelReference()
    source, at, digits = text.partition("@")
    name = source.removeprefix(JOB)
    if is_name(name) and (not at or re.fullmatch("[0-9]{1,18}", digits)):
        step = int(digits) if at else None
        if source.startswith(JOB):
            return ModelReference(job_id=name, step=step)
        return ModelReference(name=name, step=step)
    allowed = f"{FORMS}, with names and ids that match {PATTERN}"
    raise InvalidArgument([Violation(field, f"must be {allowed}, got {text!r}")])
