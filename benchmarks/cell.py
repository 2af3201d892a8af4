"""One measurement of ours beside its peers, and where such measurements are kept."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

RESULTS = Path(__file__).parent / "out" / "latest.json"


@dataclass(frozen=True, slots=True)
class Guard:
    """The check, made in the same run, that what is fast is also right."""

    what: str
    value: float
    limit: float

    @property
    def holds(self) -> bool:
        return self.value <= self.limit


@dataclass(frozen=True, slots=True)
class Cell:
    """Durations of one piece of work: medians, in seconds."""

    suite: str
    cell: str
    ours: float
    peers: Mapping[str, float]
    bound: float | None
    """What the device's peak would allow; None if the peak is unknown."""
    guard: Guard
    device: str
    threads: int

    @property
    def ratio_to_best_peer(self) -> float:
        """How many times faster ours is than the fastest peer."""
        return min(self.peers.values()) / self.ours

    def to_json(self) -> dict[str, object]:
        return {
            **asdict(self),
            "peers": dict(self.peers),
            "ratio_to_best_peer": self.ratio_to_best_peer,
            "guard": {**asdict(self.guard), "holds": self.guard.holds},
        }


def write_results(cells: Sequence[Cell], path: Path = RESULTS) -> None:
    """Replaces the results of the latest run, one object a cell."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps([cell.to_json() for cell in cells], indent=2) + "\n")
