"""The results as tables of docs/performance.md, so that no figure there is typed by hand.

    python -m benchmarks.table            prints the tables of the latest results
    python -m benchmarks.table --write    puts them into docs/performance.md

In the document a table stands between two comments, `<!-- table SUITE -->` and `<!-- end -->`.
"""

import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.results import read_results

DOCUMENT = Path(__file__).parent.parent / "docs" / "performance.md"
PLACE = re.compile(r"(<!-- table (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

COLUMNS = (
    "cell",
    "ours",
    "over gRPC",
    "best peer",
    "ours / best",
    "of the bound",
    "target",
    "guard",
)
TRAINING = tuple("memory / least" if name == "over gRPC" else name for name in COLUMNS)
NARROW = ("cell", "measured", "allowed", "compared with", "target", "guard")
QUALITY = NARROW[:-1]

Result = dict[str, Any]


def table(suite: str, results: Sequence[Result]) -> str:
    """The Markdown of one suite: what was measured where, then a row a cell."""
    found = [result for result in results if result["suite"] == suite]
    columns, row = SHAPES.get(suite, (COLUMNS, _row))
    lines = [*_machine(found), "", _line(columns), _line("---" for _ in columns)]
    lines += [_line(row(result)) for result in found]
    remarks = _runs(found) if suite == "quality" else _remarks(found)
    return "\n".join([*lines, *remarks]) + "\n"


def with_tables(document: str, results: Sequence[Result]) -> str:
    """The document with the table of every suite that has results; others stay as they are."""
    suites = {result["suite"] for result in results}

    def keep_or_replace(place: re.Match[str]) -> str:
        if place[2] not in suites:
            return place[0]
        return place[1] + table(place[2], results) + place[3]

    return PLACE.sub(keep_or_replace, document)


def _machine(results: Sequence[Result]) -> Iterator[str]:
    for where in sorted({(r["device"], r["threads"], r["measured_at"][:10]) for r in results}):
        device, threads, day = where
        yield f"Measured on {day}: {device}, {threads} threads."


def _remarks(results: Sequence[Result]) -> Iterator[str]:
    """Below the table: which versions were measured, and which peers were not, with the reason."""
    versions = sorted({v for result in results for v in result["versions"].values()})
    if versions:
        yield ""
        yield f"Versions: {', '.join(versions)}."
    absent: dict[str, list[str]] = {}
    for result in results:
        for name, why in result["missing"].items():
            reason, _, _ = why.partition("; see ")  # a log on the machine that measured
            absent.setdefault(f"{name}: {reason}", []).append(result["cell"])
    if absent:
        yield ""
        yield "Not measured, or not to the end (the turns before that count):"
        yield ""
        for reason, cells in absent.items():
            where = f" ({'; '.join(cells) if len(cells) < 3 else f'{len(cells)} cells'})"
            yield f"- {reason}{where}"


def _runs(results: Sequence[Result]) -> Iterator[str]:
    """Below the table of times to a loss: each run."""
    yield ""
    yield from (f"- {note}" for result in results for note in result["notes"])


def _row(result: Result) -> Iterator[str]:
    ours, best = result["ours"], result["best_peer"]
    yield result["cell"]
    yield _speed(result, ours)
    over_grpc = result["over_grpc"]
    yield f"{_speed(result, over_grpc)} ({ours / over_grpc:.0%})" if over_grpc else ""
    yield f"{_speed(result, result['peers'][best])} {best}" if best else "none measured"
    yield f"{result['ratio_to_best_peer']:.2f}" if best else ""
    share = result["share_of_bound"]
    applies = "" if result["bound_applies"] else " (in cache)"
    yield f"{share:.0%}{applies}" if share is not None else ""
    yield _met(result)
    yield _guard(result)


def _training_row(result: Result) -> Iterator[str]:
    """As others, but with memory where they have gRPC."""
    figures = list(_row(result))
    ratio = result.get("memory_ratio")
    figures[TRAINING.index("memory / least")] = (
        f"{result['memory']['ours'] / 1e6:,.0f} MB ({ratio:.2f})" if ratio else ""
    )
    yield from figures


def _narrow_row(result: Result) -> Iterator[str]:
    yield result["cell"]
    yield _speed(result, result["ours"])
    yield _speed(result, result["goal"]) if result["goal"] else ""
    peers = [f"{_speed(result, seconds)} {name}" for name, seconds in result["peers"].items()]
    yield "; ".join([*peers, *(f"{name}: {why}" for name, why in result["missing"].items())])
    yield _met(result)
    yield _guard(result)


def _quality_row(result: Result) -> Iterator[str]:
    """Without a guard: the loss is what is measured."""
    *row, _ = _narrow_row(result)
    yield from row


SHAPES = {
    "serving": (NARROW, _narrow_row),
    "quality": (QUALITY, _quality_row),
    "training": (TRAINING, _training_row),
}
"""Columns and rows of suites that differ from the rest."""


def _speed(result: Result, seconds: float) -> str:
    if result["unit"]:
        return f"{result['amount'] / seconds:,.0f} {result['unit']}/s"
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.2f} ms"


def _met(result: Result) -> str:
    return {None: "", True: "met", False: "**missed**"}[result["meets_target"]]


def _guard(result: Result) -> str:
    """The first check, any that fails, and how many more there are."""
    checks = result["guard"]["checks"]
    shown = [check for number, check in enumerate(checks) if number == 0 or not check["holds"]]
    texts = [_check(check) for check in shown]
    if more := len(checks) - len(shown):
        texts.append(f"{more} more hold" if more > 1 else "one more holds")
    return "; ".join(texts)


def _check(check: Result) -> str:
    verdict = "" if check["holds"] else ", **fails**"
    return f"{check['what']}: {check['value']:.4g} (at most {check['limit']:g}{verdict})"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main(arguments: Sequence[str]) -> int:
    results = read_results()
    if list(arguments) == ["--write"]:
        DOCUMENT.write_text(with_tables(DOCUMENT.read_text(), results))
        print(f"written to {DOCUMENT}")
        return 0
    if arguments:
        print(__doc__)
        return 2
    for suite in dict.fromkeys(result["suite"] for result in results):
        print(f"## {suite}\n\n{table(suite, results)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
