"""The peer that benchmarks measure against computes the same, and results keep their form."""

import json
from pathlib import Path

import torch

from benchmarks.cell import Cell, Guard, write_results
from benchmarks.plain_pytorch import PlainGPT, PlainLoop
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


def test_results_are_one_object_a_cell(tmp_path: Path) -> None:
    cell = Cell(
        suite="training-step",
        cell="tiny",
        ours=2.0,
        peers={"slow": 6.0, "fast": 3.0},
        bound=None,
        guard=Guard("difference", 0.03, 0.02),
        device="a processor",
        threads=2,
    )
    assert not cell.guard.holds
    write_results([cell], tmp_path / "out" / "latest.json")
    (written,) = json.loads((tmp_path / "out" / "latest.json").read_text())
    assert written["ratio_to_best_peer"] == 1.5
    assert written["guard"]["holds"] is False
    assert {"suite", "cell", "ours", "peers", "bound"} <= written.keys()
