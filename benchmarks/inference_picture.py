"""The results of the suite `inference` as a picture: throughput over concurrency, beside the best.

python -m benchmarks.inference_picture     writes docs/inference.svg
"""

import sys
from collections.abc import Sequence
from typing import Any

from benchmarks.inference_cells import loads
from benchmarks.networks import CHAR, GPT2, Network
from benchmarks.picture import DOCS, keep_picture
from benchmarks.plan import Options
from benchmarks.results import read_results
from client.picture import Line, Panel, draw

PICTURE = DOCS / "inference.svg"
SHOWN = ("float32", "int8")

Result = dict[str, Any]


def picture(results: Sequence[Result]) -> str | None:
    """An SVG document with a panel for each network, None if no network is measured whole."""
    cells = {result["cell"]: result for result in results if result["suite"] == "inference"}
    panels = [panel for network in (GPT2, CHAR) if (panel := _panel(network, cells))]
    if not panels:
        return None
    first = next(iter(cells.values()))
    title = f"Greedy generation on {first['device']}, {first['threads']} threads"
    return draw(title, panels, "concurrent requests")


def _panel(network: Network, cells: dict[str, Result]) -> Panel | None:
    shown = [load for load in loads(Options()) if load.network is network and load.new_tokens > 1]
    lines = []
    for precision in SHOWN:
        found = [cells.get(load.cell(precision)) for load in shown]
        whole = [result for result in found if result and result["best_peer"]]
        if len(whole) == len(shown):
            best = [result["peers"][result["best_peer"]] for result in whole]
            lines.append(Line(f"ours {precision}", [r["amount"] / r["ours"] for r in whole]))
            rates = [r["amount"] / seconds for r, seconds in zip(whole, best, strict=True)]
            lines.append(Line(f"peer {precision}", rates))
    places = [str(load.concurrency) for load in shown]
    return Panel(network.title, "tokens/s", places, lines) if lines else None


def main() -> int:
    missing = "no network was measured at every concurrency beside a peer"
    return keep_picture(picture(read_results()), PICTURE, missing)


if __name__ == "__main__":
    sys.exit(main())
