"""The peer that benchmarks measure against computes the same, and results keep their form."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import benchmarks.__main__ as benchmarks
from benchmarks import time_to_quality, training_step
from benchmarks.cell import Cell, Guard
from benchmarks.plain_pytorch import PlainGPT, PlainLoop
from benchmarks.plan import Options, Plan, Unmeasurable
from benchmarks.report import report
from benchmarks.results import read_results, write_result
from nanogpt.config import TrainConfig
from nanogpt.model import GPT

CONFIG = TrainConfig(n_layer=2, n_head=2, n_embd=32, block_size=16, batch_size=4, dropout=0.0)


def test_peer_learns_the_same_as_our_network() -> None:
    torch.manual_seed(0)
    ours, theirs = GPT(CONFIG.model_config(65)), PlainGPT(CONFIG, 65)
    theirs.load_gpt(ours.state_dict())
    loops = [
        PlainLoop(ours, lambda inputs, targets: ours(inputs, targets)[1], CONFIG),
        PlainLoop(theirs, theirs, CONFIG),
    ]
    tokens = torch.randint(65, (CONFIG.batch_size, CONFIG.block_size + 1))
    losses = [[loop.step(tokens[:, :-1], tokens[:, 1:]) for _ in range(20)] for loop in loops]
    assert losses[0][-1] < losses[0][0] - 0.5
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=0, atol=1e-4)


CELL = Cell(
    suite="training-step",
    cell="tiny",
    ours=2.0,
    peers={"slow": 6.0, "fast": 3.0},
    bound=None,
    guard=Guard("difference", 0.03, 0.02),
    device="a processor",
    threads=2,
)


def test_results_are_one_object_a_cell(tmp_path: Path) -> None:
    path = tmp_path / "out" / "latest.json"
    assert not CELL.guard.holds
    write_result(CELL, path)
    (written,) = read_results(path)
    assert written["ratio_to_best_peer"] == 1.5
    assert written["guard"]["holds"] is False
    assert {"suite", "cell", "ours", "peers", "bound"} <= written.keys()
    write_result(replace(CELL, cell="other"), path)
    write_result(replace(CELL, ours=1.0), path)  # takes the place of the first
    assert [(r["cell"], r["ours"]) for r in read_results(path)] == [("tiny", 1.0), ("other", 2.0)]


def test_target_is_the_easier_of_best_peer_and_bound() -> None:
    assert CELL.target == pytest.approx(3.0 / 1.2)
    near = replace(CELL, bound=2.85)  # no device does it in less
    assert near.target == pytest.approx(2.85 / 0.95)
    far = replace(CELL, bound=1.0)
    assert far.target == CELL.target
    assert replace(near, bound_applies=False).target == CELL.target
    assert replace(near, peers={}).target == near.target
    assert replace(near, goal=9.0).target == 9.0
    alone = replace(CELL, peers={}, missing={"fast": "not installed"})
    assert (alone.target, alone.ratio_to_best_peer, alone.best_peer) == (None, None, None)
    assert alone.to_json()["meets_target"] is None


def test_report_says_what_was_measured_and_what_was_not() -> None:
    cell = replace(
        CELL,
        amount=100,
        unit="tokens",
        over_grpc=2.5,
        bound=1.0,
        bound_applies=False,
        missing={"absent": "not installed"},
    )
    lines = report(cell).splitlines()
    assert any("50.0 tokens/s  ours" in line for line in lines)
    assert any("40.0 tokens/s  ours over gRPC: 80% of in process" in line for line in lines)
    assert any("33.3 tokens/s  fast: ours is 1.50 times as fast" in line for line in lines)
    assert any("absent: not installed" in line for line in lines)
    assert any("ours reaches 50%, which does not apply" in line for line in lines)
    assert any("target: met" in line for line in lines)
    assert "DOES NOT HOLD" in lines[-1]


def test_a_run_measures_what_was_asked_for(tmp_path: Path, monkeypatch, capsys) -> None:
    def suite(options: Options) -> list[Plan]:
        names = ("small, float32", "small, int8")
        return [
            Plan(names, lambda wanted: [replace(CELL, cell=name) for name in wanted]),
            Plan(("large, int8",), missing),
            Plan(("broken",), broken),
        ]

    def missing(wanted: object) -> list[Cell]:
        raise Unmeasurable("no room")

    def broken(wanted: object) -> list[Cell]:
        raise RuntimeError("a bug")

    path = tmp_path / "latest.json"
    monkeypatch.setattr(benchmarks, "SUITES", {"one": (suite,)})
    monkeypatch.setattr(benchmarks, "write_result", lambda cell: write_result(cell, path))
    monkeypatch.setattr(benchmarks, "read_results", lambda: read_results(path))
    assert benchmarks.main(["--list"]) == 0
    assert capsys.readouterr().out.split("\n")[:3] == [
        "small, float32",
        "small, int8",
        "large, int8",
    ]
    assert benchmarks.main(["--cells=small*int8"]) == 1  # its guard does not hold
    assert [r["cell"] for r in read_results(path)] == ["small, int8"]
    capsys.readouterr()
    benchmarks.main(["--resume"])
    assert [r["cell"] for r in read_results(path)] == ["small, int8", "small, float32"]
    output, errors = capsys.readouterr()
    assert "RuntimeError: a bug" in errors
    assert "not measured: no room" in output and "measuring small, float32\n" in output
    with pytest.raises(SystemExit):
        benchmarks.main(["--suite=two"])
    assert "two: no such suite; there are one" in capsys.readouterr().err


def test_a_training_cell_and_its_peers_agree() -> None:
    work = training_step.Work("tiny", CONFIG, 65, warmup_steps=1, turns=1, steps_per_turn=2)
    cell = training_step.run(work)
    assert cell.guard.holds
    assert cell.guard.value < 1e-4  # float32 differs by rounding only
    assert len(cell.peers) == 2
    assert cell.ours > 0


def test_time_to_quality_runs_the_trainer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "input.txt"
    text.write_text("to be or not to be, that is the question\n" * 60)
    words = ["--preset=fast_shakespeare_char", f"--text={text}", "--target=3.4", "--device=cpu"]
    words += ["--max_iters=20", "--eval_interval=5", "--block_size=16", "--n_layer=1"]
    words += ["--n_embd=16", "--n_head=1", "--eval_iters=1", "--dtype=float32"]
    monkeypatch.setattr(sys, "argv", ["time_to_quality", *words])
    assert time_to_quality.main() == 0
    assert "3.4 reached after" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="not --key=value"):
        time_to_quality._values(["--n_layers=2"])
