"""The text of one result, for a terminal."""

from collections.abc import Iterator

from benchmarks.cell import Cell


def report(cell: Cell) -> str:
    """Every figure of a cell: ours, over gRPC, each peer with its ratio, bound, target, guard."""
    return "\n".join(_lines(cell))


def _lines(cell: Cell) -> Iterator[str]:
    yield f"{cell.suite}: {cell.cell}, on {cell.device}, {cell.threads} threads"
    yield f"  {_speed(cell, cell.ours)}  ours"
    if cell.over_grpc is not None:
        share = cell.ours / cell.over_grpc
        yield f"  {_speed(cell, cell.over_grpc)}  ours over gRPC: {share:.0%} of in process"
    for name, seconds in sorted(cell.peers.items(), key=lambda peer: peer[1]):
        ratio = seconds / cell.ours
        yield f"  {_speed(cell, seconds)}  {name}: ours is {ratio:.2f} times as fast"
    for name, why in sorted(cell.missing.items()):
        yield f"  {'-':>16}  {name}: {why}"
    if cell.bound is not None and cell.share_of_bound is not None:
        applies = "" if cell.bound_applies else ", which does not apply: it may stay in the cache"
        reached = f"ours reaches {cell.share_of_bound:.0%}{applies}"
        yield f"  {_speed(cell, cell.bound)}  what the measured peak would allow; {reached}"
    if cell.target is not None:
        met = "met" if cell.meets_target else "NOT MET"
        yield f"  {_speed(cell, cell.target)}  target: {met}"
    for name, size in sorted(cell.memory.items(), key=lambda memory: memory[1]):
        yield f"  {size / 1e6:13,.0f} MB  at most, {name}"
    if cell.memory_ratio is not None:
        yield f"  {cell.memory_ratio:16.2f}  memory of ours over the most modest peer's"
    for note in cell.notes:
        yield f"  {note}"
    for guard in cell.guards:
        verdict = "holds" if guard.holds else "DOES NOT HOLD"
        yield f"  guard {verdict}: {guard.what}: {guard.value:.3g}, allowed {guard.limit:g}"


def _speed(cell: Cell, seconds: float) -> str:
    if cell.unit:
        return f"{cell.amount / seconds:9,.1f} {cell.unit}/s"
    return f"{seconds * 1e3:9.2f} ms"
