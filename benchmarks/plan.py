"""What a suite offers to measure, before anything is measured."""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from benchmarks.cell import Cell


@dataclass(frozen=True, slots=True)
class Options:
    """How much time a run may take."""

    quick: bool = False
    """Shorter work and fewer repetitions: shows that all runs, not how fast it is."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Cells that are measured together, because they share peers."""

    cells: tuple[str, ...]
    measure: Callable[[Collection[str]], Iterable[Cell]]
    """Measures those of the cells that are wanted."""


Suite = Callable[[Options], Iterable[Plan]]


def single(cell: str, measure: Callable[[], Cell]) -> Plan:
    """A plan of one cell."""
    return Plan((cell,), lambda wanted: [measure()])
