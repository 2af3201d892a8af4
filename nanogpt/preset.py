"""Hyperparameters under a name, as they ship with the package in presets/."""

import difflib
import json
from dataclasses import dataclass
from importlib import resources
from typing import Any

from nanogpt.option import InvalidConfig, Violation


@dataclass(frozen=True, slots=True)
class Preset:
    """A named set of hyperparameters, and the dataset and output name it was made for."""

    name: str
    config: dict[str, Any]
    dataset: str | None
    out_dir: str | None


def preset_names() -> list[str]:
    """Names of the presets that ship with the package, sorted."""
    folder = resources.files("nanogpt").joinpath("presets")
    return sorted(
        f.name.removesuffix(".json") for f in folder.iterdir() if f.name.endswith(".json")
    )


def load_preset(name: str) -> Preset:
    """The preset of that name. Raises InvalidConfig naming the nearest one if there is none."""
    names = preset_names()
    if name not in names:
        nearest = difflib.get_close_matches(name, names, n=1)
        meant = f"did you mean {nearest[0]!r}?" if nearest else "there are " + ", ".join(names)
        raise InvalidConfig([Violation("preset", f"no preset {name!r}; {meant}")])
    text = resources.files("nanogpt").joinpath(f"presets/{name}.json").read_text("utf-8")
    values = json.loads(text)
    dataset, out_dir = values.pop("dataset", None), values.pop("out_dir", None)
    return Preset(name=name, config=values, dataset=dataset, out_dir=out_dir)
