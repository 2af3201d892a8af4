"""The one rule for names of models and datasets. They become names of folders, so nothing else may
reach the disk."""

import re

from nanogpt.option import Violation

PATTERN = "[a-z0-9][a-z0-9_-]{0,62}"


def is_name(text: str) -> bool:
    """Whether the text is a name."""
    return re.fullmatch(PATTERN, text) is not None


def name_violations(field: str, name: str) -> list[Violation]:
    """What is wrong with a new name, if anything."""
    return [] if is_name(name) else [Violation(field, f"must match {PATTERN}, got {name!r}")]
