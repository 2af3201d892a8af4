"""One value that a caller may choose: its type, default, explanation and range, and what is said
of a wrong one. No torch.

    @dataclass
    class Shape:
        n_layer: int = option(12, "Transformer blocks.", ge=1, le=1024)
"""

import difflib
import math
import sys
from collections.abc import Iterable
from dataclasses import Field, dataclass, field, fields
from typing import Any


@dataclass(frozen=True, slots=True)
class Violation:
    """One field that is wrong, and what is allowed there."""

    field: str
    description: str


class InvalidConfig(ValueError):
    """One or more fields are wrong; `violations` names them all."""

    def __init__(self, violations: list[Violation]) -> None:
        self.violations = violations
        super().__init__("; ".join(f"{v.field}: {v.description}" for v in violations))


@dataclass(frozen=True, slots=True)
class Range:
    """The values a field may take: bounds for numbers, or a list of choices for text."""

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    choices: tuple[str, ...] | None = None

    def __str__(self) -> str:
        if self.choices is not None:
            return "one of " + ", ".join(self.choices)
        low = f"[{_shown(self.ge)}" if self.ge is not None else "(-inf"
        low = f"({_shown(self.gt)}" if self.gt is not None else low
        high = f"{_shown(self.le)}]" if self.le is not None else "inf)"
        high = f"{_shown(self.lt)})" if self.lt is not None else high
        return f"in {low}, {high}"

    def allows(self, value: Any) -> bool:
        if self.choices is not None:
            return value in self.choices
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return True
        return (
            (isinstance(value, int) or math.isfinite(value))
            and (self.ge is None or value >= self.ge)
            and (self.gt is None or value > self.gt)
            and (self.le is None or value <= self.le)
            and (self.lt is None or value < self.lt)
        )


def _shown(bound: float) -> str:
    """Whole numbers with all their digits, others with as many as they need."""
    return str(bound) if isinstance(bound, int) else f"{bound:g}"


LARGEST_INT32 = (1 << 31) - 1
LARGEST_INT64 = (1 << 63) - 1
"""What fields of the wire hold."""


def option(default: Any, help: str, **bounds: Any) -> Any:
    """A dataclass field with its explanation and range (`ge`, `gt`, `le`, `lt`, `choices`).

    Whole numbers without an upper bound are at most LARGEST_INT32.
    """
    if (
        isinstance(default, int)
        and not isinstance(default, bool)
        and bounds.keys().isdisjoint(("le", "lt"))
    ):
        bounds["le"] = LARGEST_INT32
    return field(default=default, metadata={"help": help, "range": Range(**bounds)})


def _type_problem(spec: "Field[Any]", value: Any) -> str | None:
    """What is wrong with the type of `value`, or None. An int is a fine float; a bool is no int."""
    expected = str(
        spec.type if isinstance(spec.type, str) else getattr(spec.type, "__name__", spec.type)
    )
    if value is None:
        return None if "None" in expected else f"must be {expected}, got nothing"
    expected = expected.removesuffix(" | None")
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    fits = {
        "int": is_whole,
        "float": isinstance(value, float) or (is_whole and abs(value) <= sys.float_info.max),
        "bool": isinstance(value, bool),
        "str": isinstance(value, str),
    }
    return None if fits.get(expected, True) else f"must be {expected}, got {value!r}"


def range_violations(config: Any) -> list[Violation]:
    """Every field of a config dataclass whose type or range is wrong."""
    found = []
    for spec in fields(config):
        value, allowed = getattr(config, spec.name), spec.metadata.get("range")
        problem = _type_problem(spec, value)
        if (
            problem is None
            and allowed is not None
            and value is not None
            and not allowed.allows(value)
        ):
            problem = f"must be {allowed}, got {value!r}"
        if problem is not None:
            found.append(Violation(spec.name, problem))
    return found


def unknown_key(key: str, allowed: Iterable[str]) -> Violation:
    """Says that `key` does not exist and which key was probably meant."""
    names = sorted(allowed)
    nearest = difflib.get_close_matches(key, names, n=1)
    meant = f"did you mean {nearest[0]!r}?" if nearest else "allowed: " + ", ".join(names)
    return Violation(key, f"unknown key; {meant}")
