"""How callers name models: `NAME`, `NAME@STEP`, `job:ID`, or nothing for the newest. Pure text.

Names are checked here, before anything touches the disk, so no reference leads out of the data
folder.
"""

import re
from dataclasses import dataclass

from nanogpt.config import Violation
from server.errors import InvalidArgument
from server.names import PATTERN, is_name


@dataclass(frozen=True, slots=True)
class ModelReference:
    """One of: a model, one checkpoint of the job that trained it, the newest of a job, newest."""

    name: str | None = None
    step: int | None = None
    job_id: str | None = None

    def __str__(self) -> str:
        if self.job_id is not None:
            return f"job:{self.job_id}"
        if self.step is not None:
            return f"{self.name}@{self.step}"
        return self.name or ""


def parse_reference(text: str, field: str) -> ModelReference:
    """What `text` refers to. Raises InvalidArgument naming `field`, the request's field."""
    if not text:
        return ModelReference()
    kind, colon, job_id = text.partition(":")
    if colon and kind == "job" and is_name(job_id):
        return ModelReference(job_id=job_id)
    name, at, step = text.partition("@")
    if is_name(name) and not at:
        return ModelReference(name=name)
    if is_name(name) and re.fullmatch("[0-9]{1,18}", step):
        return ModelReference(name=name, step=int(step))
    allowed = f"NAME, NAME@STEP or job:ID, with names and ids that match {PATTERN}"
    raise InvalidArgument([Violation(field, f"must be {allowed}, got {text!r}")])
