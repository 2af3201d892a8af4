"""Files of results: one object a cell or run, written after each one, so that a run can go on."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.cell import Cell

RESULTS = Path(__file__).parent / "out" / "latest.json"
QUICK_RESULTS = RESULTS.with_name("quick.json")
"""Of runs that only show that all runs: their figures never stand among the others."""


def read_results(path: Path = RESULTS) -> list[dict[str, Any]]:
    """All that is in the file, which may not be there yet; of cells, the latest result of each."""
    return json.loads(path.read_text()) if path.exists() else []


def write_result(cell: Cell, path: Path = RESULTS) -> None:
    """Adds a result, in the place of an earlier one of the same cell."""
    results = {(result["suite"], result["cell"]): result for result in read_results(path)}
    measured_at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    results[cell.suite, cell.cell] = {**cell.to_json(), "measured_at": measured_at}
    write_results(list(results.values()), path)


def write_results(results: Sequence[dict[str, Any]], path: Path) -> None:
    """Writes a file of results, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writing = path.with_suffix(".writing")
    writing.write_text(json.dumps(results, indent=2) + "\n")
    writing.rename(path)
