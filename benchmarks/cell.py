"""One measurement of ours beside its peers: what it is, and whether it meets its target."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

BEST_PEER_FACTOR = 1.2
"""A cell's target: this many times as fast as the best peer, or BOUND_FRACTION of the bound,
whichever is easier."""
BOUND_FRACTION = 0.95


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
    guards: tuple[Guard, ...]
    """A cell without one is a duration and nothing else."""
    device: str
    threads: int
    amount: float = 1.0
    """What one piece of work consists of, in units: tokens, requests, bytes."""
    unit: str = ""
    """Plural noun, if a rate (amount / seconds) says more than a duration."""
    over_grpc: float | None = None
    """The same work, asked of a server over gRPC."""
    missing: Mapping[str, str] = field(default_factory=dict)
    """Peers that failed or are not there, and why; what they did before that counts."""
    bound_applies: bool = True
    """False if the work may beat the bound: what it reads may stay in the processor's caches."""
    notes: tuple[str, ...] = ()
    goal: float | None = None
    """The longest duration that is good enough, where not peers and bound decide."""
    memory: Mapping[str, int] = field(default_factory=dict)
    """Largest resident memory in bytes, of `ours` and of peers, each in a process of its own."""
    turns: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Seconds of every turn, of `ours` and of peers: what the medians are of."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Name and version of each peer's system."""

    @property
    def best_peer(self) -> str | None:
        """The fastest peer, None if none was measured."""
        return min(self.peers, key=lambda name: self.peers[name], default=None)

    @property
    def ratio_to_best_peer(self) -> float | None:
        """How many times as fast ours is as the fastest peer."""
        return self.peers[self.best_peer] / self.ours if self.best_peer else None

    @property
    def share_of_bound(self) -> float | None:
        """The bound's duration over ours: 1 is as fast as the device allows."""
        return self.bound / self.ours if self.bound else None

    @property
    def memory_ratio(self) -> float | None:
        """Ours over the most modest peer's; None if either was not measured."""
        peers = [size for name, size in self.memory.items() if name != "ours"]
        return self.memory["ours"] / min(peers) if peers and "ours" in self.memory else None

    @property
    def target(self) -> float | None:
        """The longest duration that is good enough, None if there is nothing to compare with."""
        if self.goal is not None:
            return self.goal
        targets = [self.peers[self.best_peer] / BEST_PEER_FACTOR] if self.best_peer else []
        if self.bound is not None and self.bound_applies:
            targets.append(self.bound / BOUND_FRACTION)
        return max(targets, default=None)

    @property
    def is_right(self) -> bool:
        """Whether every guard holds."""
        return all(guard.holds for guard in self.guards)

    @property
    def meets_target(self) -> bool | None:
        """Whether it is as fast as it should be, and right: what is fast and wrong does not count.
        None if there is nothing to compare with."""
        return None if self.target is None else self.is_right and self.ours <= self.target

    def to_json(self) -> dict[str, object]:
        checks = [{**asdict(guard), "holds": guard.holds} for guard in self.guards]
        fields = asdict(self)
        del fields["guards"]
        return {
            **fields,
            "memory_ratio": self.memory_ratio,
            "best_peer": self.best_peer,
            "ratio_to_best_peer": self.ratio_to_best_peer,
            "share_of_bound": self.share_of_bound,
            "target": self.target,
            "meets_target": self.meets_target,
            "guard": {"holds": self.is_right, "checks": checks},
        }
