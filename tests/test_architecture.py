"""The architecture page names files that exist and figures that are true."""

import re
import subprocess
from importlib import import_module
from pathlib import Path

import pytest
import torch

from nanogpt.config import TrainConfig
from nanogpt.flops import training_flops_per_token
from nanogpt.model import GPT

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
TEXT = (DOCS / "architecture.md").read_text("utf-8")


def test_files_that_it_names_exist() -> None:
    targets = [t for t in re.findall(r"\]\(([^)]+)\)", TEXT) if not t.startswith("https://")]
    assert targets
    assert [t for t in targets if not (DOCS / t).exists()] == []


MAP = TEXT.partition("## The map")[2].partition("```")[2].partition("```")[0].strip("\n")


def tracked(*names: str) -> list[Path]:
    command = ["git", "ls-files", *names]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [Path(name) for name in listed.stdout.splitlines()]


@pytest.mark.parametrize("top", ["nanogpt", "server", "client", "benchmarks"])
def test_the_map_names_every_file_of_code(top: str) -> None:
    """By its stem, or by saying of its folder that it has one file for each of something."""
    (entry,) = re.findall(rf"^{top}/.*(?:\n .*)*", MAP, re.MULTILINE)
    words = set(re.findall(r"\w+", entry))
    alike = set(re.findall(r"(\w+)/:? [^;/]*\bone file for each\b", entry))
    files = [path for path in tracked(f"{top}/*.py") if not path.stem.startswith("__")]
    assert files
    missing = [p for p in files if p.stem not in words and p.parent.name not in alike]
    assert missing == []


@pytest.mark.parametrize("package", ["nanogpt.inference", "nanogpt.interop", "server.jobs"])
def test_a_package_that_lists_its_files_lists_all(package: str) -> None:
    listed = re.findall(r"^(\w+)  *", import_module(package).__doc__ or "", re.MULTILINE)
    folder = ROOT / package.replace(".", "/")
    parts = {path.stem for path in folder.iterdir() if not path.name.startswith("__")}
    assert parts <= set(listed)


def test_the_map_shows_what_is_there() -> None:
    """Every folder stands in the map, and every file it names exists."""
    folder, named, folders = ROOT, [], set()
    for line in MAP.splitlines():
        path, *words = line.split()
        if not line.startswith(" "):
            folder = ROOT / path
            folders.add(path)
        elif not line.startswith("   "):
            named.append(folder / path.rstrip(";,:"))
        named += [folder / word for word in re.findall(r"\w+\.py", " ".join(words))]
    assert [str(path) for path in named if not path.exists()] == []
    tops = {path.parts[0] for path in tracked() if len(path.parts) > 1}
    assert {top for top in tops if not top.startswith(".")} == {
        name.split("/")[0] for name in folders
    }


def test_each_term_is_explained_once() -> None:
    explained = [
        term.lower()
        for line in re.findall(r"^(\*\*.+?): ", TEXT, re.MULTILINE)
        for term in re.findall(r"\*\*(.+?)\*\*", line)
    ]
    assert len(explained) > 90
    assert len(explained) == len(set(explained))


def test_figures_of_the_default_preset() -> None:
    train = TrainConfig()
    config = train.model_config(vocab_size=65)
    with torch.device("meta"):
        parameters = GPT(config).parameter_count()
    flops = training_flops_per_token(config)
    cache_bytes = 2 * config.n_layer * config.n_embd * torch.float32.itemsize
    for figure in (train.tokens_per_step, parameters, flops, cache_bytes):
        assert f"{figure:,}" in TEXT
