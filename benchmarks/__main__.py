"""Runs benchmarks, prints every figure, keeps them in benchmarks/out/latest.json.

    python -m benchmarks --suite=training,inference,serving --cells='GPT-2*bfloat16'

    --suite=NAMES     which suites, separated by commas; all by default
    --cells=PATTERN   only cells whose name matches; * stands for any text, at both ends too
    --quick           shorter work, fewer repetitions: shows that all runs, not how fast it is;
                      its results go to benchmarks/out/quick.json
    --resume          leaves out cells that the file of results has already, and right
    --list            prints the names of the cells and measures nothing

Exits with 1 if a guard does not hold, or a cell failed: what is fast and wrong does not count.
Absolute figures differ between machines and runs; the ratios were taken in one run.
"""

import argparse
import fnmatch
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from benchmarks import (
    checkpoint_wait,
    inference_cells,
    serving_cells,
    training_beside,
    training_step,
)
from benchmarks.plan import Options, Suite
from benchmarks.report import report
from benchmarks.results import QUICK_RESULTS, RESULTS, read_results, write_result

SUITES: dict[str, tuple[Suite, ...]] = {
    "training": (training_step.plans, checkpoint_wait.plans),
    "inference": (inference_cells.plans,),
    "serving": (serving_cells.plans, training_beside.plans),
}


def main(arguments: Sequence[str]) -> int:
    asked = _parse(arguments)
    options = Options(quick=asked.quick)
    path = QUICK_RESULTS if asked.quick else RESULTS
    known = _right_cells(path) if asked.resume else set()
    plans = [plan for name in asked.suite for suite in SUITES[name] for plan in suite(options)]
    pattern = f"*{asked.cells}*"
    right = True
    for plan in plans:
        wanted = [c for c in plan.cells if fnmatch.fnmatchcase(c, pattern) and c not in known]
        if asked.list:
            print("\n".join(wanted), end="\n" if wanted else "")
        elif wanted:
            print(f"[{time.strftime('%H:%M:%S')}] measuring {'; '.join(wanted)}", flush=True)
            try:
                for cell in plan.measure(wanted):
                    write_result(cell, path)
                    print(report(cell), flush=True)
                    right = right and cell.is_right
            except Exception:  # an hour of other cells is not lost to one
                traceback.print_exc()
                right = False
    if not asked.list:
        print(f"written to {path}")
    return 0 if right else 1


def _right_cells(path: Path) -> set[str]:
    """Names of the cells that were measured and are right."""
    return {result["cell"] for result in read_results(path) if result["guard"]["holds"]}


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m benchmarks", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--suite", type=_suites, default=list(SUITES))
    parser.add_argument("--cells", default="*")
    for switch in ("--quick", "--resume", "--list"):
        parser.add_argument(switch, action="store_true")
    return parser.parse_args(arguments)


def _suites(names: str) -> list[str]:
    found = names.split(",")
    for name in found:
        if name not in SUITES:
            raise argparse.ArgumentTypeError(
                f"{name}: no such suite; there are {', '.join(SUITES)}"
            )
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
