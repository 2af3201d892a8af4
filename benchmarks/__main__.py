"""Runs every benchmark, prints ratios, writes benchmarks/out/latest.json.

    python -m benchmarks

Exits with 1 if a guard does not hold: what is fast and wrong does not count. Absolute figures
differ between machines and runs; the ratios were taken in one run.
"""

import sys

from benchmarks import training_step
from benchmarks.cell import RESULTS, Cell, write_results

SUITES = (training_step.run,)


def main() -> int:
    cells = [run() for run in SUITES]
    for cell in cells:
        report(cell)
    write_results(cells)
    print(f"written to {RESULTS}")
    return 0 if all(cell.guard.holds for cell in cells) else 1


def report(cell: Cell) -> None:
    """Prints one cell: medians in milliseconds, and how many times faster ours is."""
    print(f"{cell.suite}: {cell.cell}, on {cell.device}, {cell.threads} threads")
    print(f"  {cell.ours * 1e3:9.2f} ms  ours")
    for name, seconds in sorted(cell.peers.items(), key=lambda peer: peer[1]):
        print(f"  {seconds * 1e3:9.2f} ms  {name}: ours is {seconds / cell.ours:.2f} times as fast")
    if cell.bound is not None:
        print(f"  {cell.bound * 1e3:9.2f} ms  what the processor's measured peak would allow")
    guard = cell.guard
    verdict = "holds" if guard.holds else "DOES NOT HOLD"
    print(f"  guard {verdict}: {guard.what}: {guard.value:.2g}, allowed {guard.limit:g}")


if __name__ == "__main__":
    sys.exit(main())
