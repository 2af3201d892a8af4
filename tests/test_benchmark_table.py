"""Tables of docs/performance.md are made of the results, and only between their comments."""

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

from benchmarks.cell import Cell, Guard
from benchmarks.inference_picture import picture
from benchmarks.networks import CHAR
from benchmarks.results import read_results, write_result
from benchmarks.table import DOCUMENT, PLACE, table, with_tables

CELL = Cell(
    suite="inference",
    cell="small x 1, int8",
    ours=2.0,
    peers={"slow": 6.0, "fast": 3.0},
    bound=1.0,
    bound_applies=False,
    guards=(Guard("rise, in %", 1.25, 1.0), Guard("wrong tokens", 0, 0)),
    device="a processor",
    threads=2,
    amount=100,
    unit="tokens",
    over_grpc=2.5,
)
SERVING = Cell(
    suite="serving",
    cell="cold start",
    ours=3.5,
    peers={},
    bound=None,
    goal=3.0,
    guards=(Guard("lost", 0, 0),),
    device="a processor",
    threads=2,
)


def results(tmp_path: Path) -> list[dict]:
    for cell in (CELL, SERVING):
        write_result(cell, tmp_path / "latest.json")
    return read_results(tmp_path / "latest.json")


def rows(text: str) -> list[list[str]]:
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line] for line in lines]


def test_a_row_has_every_figure(tmp_path: Path) -> None:
    text = table("inference", results(tmp_path))
    assert "a processor, 2 threads" in text
    columns, _, row = rows(text)
    assert dict(zip(columns, row, strict=True)) == {
        "cell": "small x 1, int8",
        "ours": "50 tokens/s",
        "over gRPC": "40 tokens/s (80%)",
        "best peer": "33 tokens/s fast",
        "ours / best": "1.50",
        "of the bound": "50% (in cache)",
        "target": "**missed**",  # fast enough, and wrong
        "guard": "rise, in %: 1.25 (at most 1, **fails**); one more holds",
    }


def test_a_row_of_serving_shows_what_is_allowed(tmp_path: Path) -> None:
    _, _, row = rows(table("serving", results(tmp_path)))
    assert row == ["cold start", "3.50 s", "3.00 s", "", "**missed**", "lost: 0 (at most 0)"]


def test_below_the_table_stand_versions_and_who_was_not_measured(tmp_path: Path) -> None:
    why = {"broken": "it ended with exit code 1; see build/broken.log"}
    versions = {"fast": "Fast 2.0", "slow": "Slow 1.0"}
    path = tmp_path / "latest.json"
    write_result(replace(CELL, missing=why, versions=versions), path)
    write_result(replace(CELL, cell="small x 8, int8", missing={"absent": "not installed"}), path)
    text = table("inference", read_results(path))
    assert "\nVersions: Fast 2.0, Slow 1.0.\n" in text
    assert "\n- broken: it ended with exit code 1 (small x 1, int8)\n" in text
    assert "\n- absent: not installed (small x 8, int8)\n" in text


def test_the_runs_to_a_loss_stand_below_their_table(tmp_path: Path) -> None:
    path = tmp_path / "latest.json"
    runs = replace(SERVING, suite="quality", guards=(), notes=("ours, seed 1: 1.4",))
    write_result(replace(runs, missing={"theirs": "ends at 2.0"}), path)
    text = table("quality", read_results(path))
    assert rows(text)[2] == ["cold start", "3.50 s", "3.00 s", "theirs: ends at 2.0", "**missed**"]
    assert text.endswith("\n- ours, seed 1: 1.4\n")


def test_only_places_of_tables_change(tmp_path: Path) -> None:
    document = "before\n<!-- table serving -->\nstale\n<!-- end -->\nafter <!-- table other -->\n"
    changed = with_tables(document, results(tmp_path))
    assert "stale" not in changed and "cold start" in changed
    assert changed.startswith("before\n") and changed.endswith("after <!-- table other -->\n")
    assert with_tables(changed, results(tmp_path)) == changed


def test_the_table_of_a_suite_that_was_not_measured_stays() -> None:
    document = "<!-- table serving -->\nof before\n<!-- end -->\n"
    assert with_tables(document, []) == document


def test_the_document_has_places_for_suites() -> None:
    assert {"inference", "serving"} <= {place[2] for place in PLACE.finditer(DOCUMENT.read_text())}


def test_the_picture_shows_ours_beside_the_best_peer(tmp_path: Path) -> None:
    measured = []
    for concurrency in (1, 8, 32):
        cell = replace(
            CELL,
            cell=f"{CHAR.title} x {concurrency}, int8",
            ours=1 / concurrency,
            peers={"a": 4 / concurrency, "b": 2 / concurrency},
        )
        measured.append({**cell.to_json(), "measured_at": "2026-01-01T00:00:00Z"})
    assert picture(measured[:2]) is None
    drawing = ElementTree.fromstring(picture(measured))
    svg = "{http://www.w3.org/2000/svg}"
    (panel,) = drawing.findall(f"{svg}g")
    assert [tip.text for tip in panel.iter(f"{svg}title")] == [
        "ours int8: 100 tokens/s",
        "ours int8: 800 tokens/s",
        "ours int8: 3,200 tokens/s",
        "peer int8: 50 tokens/s",
        "peer int8: 400 tokens/s",
        "peer int8: 1,600 tokens/s",
    ]
