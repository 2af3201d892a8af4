"""The peer that benchmarks measure against computes the same, and results keep their form."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

import benchmarks.__main__ as benchmarks
from benchmarks import (
    checkpoint_wait,
    inference_cells,
    time_to_quality,
    training_memory,
    training_step,
    training_works,
)
from benchmarks.cell import Cell, Guard
from benchmarks.contender import ContenderFailed, Entry
from benchmarks.inference_peers import Contender
from benchmarks.networks import CHAR
from benchmarks.plain_pytorch import PlainGPT, PlainLoop
from benchmarks.plan import Options, Plan
from benchmarks.report import report
from benchmarks.results import read_results, write_result
from benchmarks.time_to_quality import Run
from benchmarks.training_picture import picture
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
    guards=(Guard("difference", 0.01, 0.02),),
    device="a processor",
    threads=2,
)


WRONG = Guard("difference", 0.03, 0.02)


def test_results_are_one_object_a_cell(tmp_path: Path) -> None:
    path = tmp_path / "out" / "latest.json"
    write_result(CELL, path)
    (written,) = read_results(path)
    assert written["ratio_to_best_peer"] == 1.5
    assert written["guard"] == {
        "holds": True,
        "checks": [{"what": "difference", "value": 0.01, "limit": 0.02, "holds": True}],
    }
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


def test_what_is_fast_and_wrong_meets_no_target() -> None:
    assert CELL.meets_target
    assert "target: met" in report(CELL)
    wrong = replace(CELL, guards=(*CELL.guards, WRONG))
    assert not wrong.is_right and wrong.meets_target is False
    assert wrong.to_json()["meets_target"] is False
    assert "target: NOT MET" in report(wrong)
    unknown = replace(CELL, guards=(Guard("difference", math.nan, 0.02),))
    assert not unknown.is_right


def test_report_says_what_was_measured_and_what_was_not() -> None:
    cell = replace(
        CELL,
        amount=100,
        unit="tokens",
        over_grpc=2.5,
        bound=1.0,
        bound_applies=False,
        missing={"absent": "not installed"},
        guards=(*CELL.guards, WRONG),
    )
    lines = report(cell).splitlines()
    assert any("50.0 tokens/s  ours" in line for line in lines)
    assert any("40.0 tokens/s  ours over gRPC: 80% of in process" in line for line in lines)
    assert any("33.3 tokens/s  fast: ours is 1.50 times as fast" in line for line in lines)
    assert any("absent: not installed" in line for line in lines)
    assert any("ours reaches 50%, which does not apply" in line for line in lines)
    assert "guard holds" in lines[-2] and "DOES NOT HOLD" in lines[-1]


def test_a_run_measures_what_was_asked_for(tmp_path: Path, monkeypatch, capsys) -> None:
    measured = [replace(CELL, guards=(WRONG,))]

    def suite(options: Options) -> list[Plan]:
        names = ("small, float32", "small, int8")
        return [
            Plan(names, lambda wanted: [replace(measured[0], cell=name) for name in wanted]),
            Plan(("large, int8",), broken),
            Plan(("broken",), broken),
        ]

    def broken(wanted: object) -> list[Cell]:
        raise RuntimeError("a bug")

    path, quick = tmp_path / "latest.json", tmp_path / "quick.json"
    monkeypatch.setattr(benchmarks, "SUITES", {"one": (suite,)})
    monkeypatch.setattr(benchmarks, "RESULTS", path)
    monkeypatch.setattr(benchmarks, "QUICK_RESULTS", quick)
    assert benchmarks.main(["--list"]) == 0
    assert capsys.readouterr().out.split("\n")[:3] == [
        "small, float32",
        "small, int8",
        "large, int8",
    ]
    assert benchmarks.main(["--cells=small*int8"]) == 1  # its guard does not hold
    assert [r["cell"] for r in read_results(path)] == ["small, int8"]
    measured[0] = CELL
    assert benchmarks.main(["--cells=small*int8", "--quick"]) == 0
    assert read_results(quick)[0]["guard"]["holds"]
    assert not read_results(path)[0]["guard"]["holds"]
    assert benchmarks.main(["--cells=small*int8", "--resume"]) == 0  # the wrong one again
    assert read_results(path)[0]["guard"]["holds"]
    capsys.readouterr()
    benchmarks.main(["--resume"])
    assert [r["cell"] for r in read_results(path)] == ["small, int8", "small, float32"]
    output, errors = capsys.readouterr()
    assert "RuntimeError: a bug" in errors
    assert "measuring small, float32\n" in output
    with pytest.raises(SystemExit):
        benchmarks.main(["--suite=two"])
    assert "two: no such suite; there are one" in capsys.readouterr().err


def test_a_training_cell_and_its_peers_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = training_memory.peak_memory
    monkeypatch.setattr(training_step, "peak_memory", lambda work, names: measured(work, ["ours"]))
    work = training_works.Work("tiny", CONFIG, 65, warmup_steps=1, turns=1, steps_per_turn=2)
    cell = training_step.run(work)
    (guard,) = cell.guards
    assert guard.holds and guard.value < 1e-4  # float32 differs by rounding only
    assert len(cell.peers) == 2
    assert any(version.startswith("torch 2.") for version in cell.versions.values())
    assert cell.ours > 0
    assert cell.goal == pytest.approx(cell.peers[training_works.PLAIN] / 3)
    assert 5e7 < cell.memory["ours"] < 5e9


class FakeProcess:
    """A contender that takes one second a turn, so many turns, and fails."""

    version = "Fake 1.0"

    def __init__(self, num_turns: int) -> None:
        self._turns_left = num_turns

    def generate(self, prompts: list, max_new_tokens: int) -> tuple[float, list]:
        if self._turns_left == 0:
            raise ContenderFailed("it crashed")
        self._turns_left -= 1
        return 1.0, [[0] * max_new_tokens for _ in prompts]

    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def close(self) -> None: ...


def inference_cells_of(monkeypatch: pytest.MonkeyPatch, turns: dict[str, int]) -> Iterator[Cell]:
    """The float32 cell of three rounds, where those who are named take so many turns."""

    def enter(load: inference_cells.Load, contender: Contender, threads: int) -> Entry:
        if contender.name not in turns:
            raise ContenderFailed("not installed")
        name = inference_cells._label(contender)
        process = FakeProcess(turns[contender.name])
        entry = Entry(name, contender.precision, process, is_rival="ours" not in name)
        entry.take_turn(load.prompts(1), load.new_tokens)
        return entry

    monkeypatch.setattr(inference_cells, "prepare_network", lambda network: None)
    monkeypatch.setattr(inference_cells, "enter", enter)
    monkeypatch.setattr(inference_cells, "guards_of", lambda *_: [Guard("wrong", 0, 0)])
    monkeypatch.setattr(inference_cells, "agreement", lambda *_: [])
    load = inference_cells.Load("char x 1", CHAR, 1, 4, 2, 3, 3)
    return inference_cells.measure(load, [load.cell("float32")])


def test_a_peer_that_fails_late_keeps_its_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = {"ours": 3, "ours over gRPC": 3, "llama.cpp f32": 2}
    (cell,) = inference_cells_of(monkeypatch, turns)
    assert (cell.best_peer, cell.peers["llama.cpp f32"]) == ("llama.cpp f32", 1.0)
    assert cell.missing["llama.cpp f32"] == "it crashed"
    assert cell.missing["vLLM float32"] == "not installed"
    assert cell.versions == {"llama.cpp f32": "Fake 1.0"}
    assert {name: len(seconds) for name, seconds in cell.turns.items()} == turns


def test_the_slowest_leaves_where_memory_is_short() -> None:
    def entry(name: str, precision: str, seconds: float, **more: bool) -> Entry:
        return Entry(name, precision, FakeProcess(0), seconds=[seconds], **more)

    entries = [
        entry("ours", "int8", 9.0, is_rival=False),
        entry("best", "float32", 2.0),
        entry("second", "float32", 2.5),
        entry("narrow", "int8", 2.4),  # the best of float32 counts there too
        entry("narrow and best", "int8", 1.0),
    ]
    left = []
    while (last := inference_cells.farthest_behind(entries)) is not None:
        last.leave()
        left.append(last.name)
    assert left == ["narrow", "second"]
    assert inference_cells.farthest_behind([]) is None


def test_a_run_in_which_ours_fails_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    with pytest.raises(RuntimeError, match=r"^ours over gRPC float32: it crashed$"):
        for cell in inference_cells_of(monkeypatch, {"ours": 3, "ours over gRPC": 2}):
            found.append(cell)
    assert [cell.over_grpc for cell in found] == [None]
    with pytest.raises(RuntimeError, match="ours float32: not installed"):
        list(inference_cells_of(monkeypatch, {}))


def test_a_loss_that_is_no_number_is_not_that_of_the_peers() -> None:
    losses = {"ours": [4.0, math.nan], "a": [4.001, 3.0], "b": [4.0, 3.0]}
    assert training_step.loss_guard(losses).value == math.inf
    losses["ours"] = [4.0, 3.01]
    assert training_step.loss_guard(losses).value == pytest.approx(0.01)
    assert training_step.loss_guard(losses).holds


def test_memory_is_compared_with_the_most_modest_peer() -> None:
    cell = replace(CELL, memory={"ours": 600, "slow": 800, "fast": 1000})
    assert cell.to_json()["memory_ratio"] == 0.75
    assert "0.75  memory of ours" in report(cell)
    assert replace(cell, memory={"ours": 600}).memory_ratio is None


def test_steps_beside_checkpoints_are_compared_with_those_between() -> None:
    cell = checkpoint_wait.run(CONFIG, steps=4, turns=2)
    assert cell.ours > 0
    assert cell.goal == pytest.approx(1.05 * cell.peers["steps without"])
    assert "in every 4 steps" in cell.notes[0]


def test_time_to_quality_runs_the_trainer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In turns; a run that is over is kept, and not run again."""
    text = tmp_path / "input.txt"
    text.write_text("to be or not to be, that is the question\n" * 60)
    tiny = {"max_iters": 20, "eval_interval": 5, "block_size": 16, "n_layer": 1, "n_embd": 16}
    tiny |= {"n_head": 1, "eval_iters": 1, "dtype": "float32", "device": "cpu"}
    monkeypatch.setattr(time_to_quality, "NANOGPT_CPU", tiny)
    results = tmp_path / "latest.json"
    monkeypatch.setattr(time_to_quality, "RUNS", tmp_path / "runs.json")
    monkeypatch.setattr(time_to_quality, "write_result", lambda cell: write_result(cell, results))
    words = [f"--text={text}", "--target=2.65", "--goal=99", "--seeds=1,2"]
    words += [f"--{key}={value}" for key, value in tiny.items()]
    assert time_to_quality.main(words) == 0
    printed = capsys.readouterr().out
    assert "fast_shakespeare_char: 2.65 reached after" in printed
    runs = time_to_quality.read_runs(tmp_path / "runs.json")
    order = [(run.recipe, run.seed) for run in runs]
    assert order == [(name, n) for n in (1, 2) for name in ("fast_shakespeare_char", "nanogpt_cpu")]
    (written,) = read_results(results)
    assert written["suite"] == "quality" and written["meets_target"] is True
    assert "nanogpt_cpu, seed 2: " in written["notes"][-1]
    with monkeypatch.context() as without:
        without.setattr(time_to_quality, "measure", None)
        assert time_to_quality.main(words) == 0
    assert time_to_quality.main([*words[:3], "--seeds=1", "--learning_rate=0.02", *words[4:]]) == 0
    assert len(time_to_quality.read_runs(tmp_path / "runs.json")) == 5  # another run of ours
    with pytest.raises(SystemExit, match="not --key=value"):
        time_to_quality._values(["--n_layers=2"])


def test_time_to_quality_is_the_first_crossing_and_may_never_come() -> None:
    def run(recipe: str, seed: int, losses: list[float]) -> Run:
        curve = [(step, 10.0 * step, loss) for step, loss in enumerate(losses)]
        config = {"target_val_loss": 1.9, "seed": seed}
        return Run(recipe, config, curve, 1.0, "a processor", 2)

    runs = [run("ours", 1, [4.0, 1.8]), run("ours", 2, [4.0, 2.0, 1.9, 2.0, 1.7])]
    runs += [run("ours", 3, [4.0, 2.0, 2.0])]
    runs += [run("theirs", seed, [4.0, 1.95]) for seed in (1, 2, 3)]
    assert [r.seconds for r in runs[:3]] == [10.0, 20.0, math.inf]
    cell = time_to_quality.cell(["ours", "theirs"], runs, goal=15.0)
    assert (cell.ours, dict(cell.peers)) == (20.0, {})
    assert cell.missing == {"theirs": "ends at 1.9500"}
    assert cell.to_json()["meets_target"] is False
    assert time_to_quality.cell(["theirs", "ours"], runs, goal=None) is None


def test_the_picture_of_training_has_speeds_and_losses() -> None:
    cells = [
        replace(CELL, suite="training", cell=work.cell, ours=1.0, peers=peers)
        for work, peers in [
            (training_works.SMALL, {training_works.PLAIN: 3.0, training_works.TRANSFORMERS: 6.0}),
            (training_works.GPT2, {training_works.PLAIN: 5.0, training_works.TRANSFORMERS: 4.0}),
        ]
    ]
    curve = [(0, 0.5, 4.0), (100, 12.0, 2.0)]
    configs = [{"target_val_loss": 2.0, "seed": seed} for seed in (1, 2, 3)]
    runs = [Run("ours", config, curve, 1.0, "a processor", 2) for config in configs]
    assert picture([], []) is None
    drawing = ElementTree.fromstring(picture([cell.to_json() for cell in cells], runs) or "")
    svg = "{http://www.w3.org/2000/svg}"
    speeds, losses = ([tip.text for tip in g.iter(f"{svg}title")] for g in drawing.iter(f"{svg}g"))
    assert speeds[:3] == [f"{label} times a plain float32 loop" for label in
                          ("ours: 3", "ours: 5", "transformers: 0.5")]  # fmt: skip
    assert losses[0] == "ours: 4 nats" and losses[-1] == "ours: 2 nats"
