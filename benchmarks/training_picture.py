"""The results of the suites `training` and `quality` as a picture.

python -m benchmarks.training_picture     writes docs/training.svg

One panel has the speed of a step beside peers, as multiples of a plain float32 loop's; the others,
one a target, the validation loss over seconds of training: medians of all seeds, up to the median
run's end.
"""

import sys
from collections.abc import Sequence
from statistics import median
from typing import Any

from benchmarks.picture import DOCS, keep_picture
from benchmarks.results import read_results
from benchmarks.time_to_quality import RUNS, Run, is_of_recipe, read_runs
from benchmarks.training_works import CHARACTERS, ENCODER, GPT2, PLAIN, SMALL, TRANSFORMERS
from client.picture import Line, Panel, draw

PICTURE = DOCS / "training.svg"
PLACES = {SMALL: "4/4/128", CHARACTERS: "6/6/384", GPT2: "GPT-2 124M"}
CONTENDERS = {"ours": "ours", TRANSFORMERS: "transformers", PLAIN: "plain", ENCODER: "encoder"}
POINTS = 12

Result = dict[str, Any]


def picture(results: Sequence[Result], runs: Sequence[Run]) -> str | None:
    """An SVG document, None if there is nothing to show."""
    panels = [*_speeds(results), *_losses(runs)]
    if not panels:
        return None
    return draw("Training on a processor", panels, "network, or seconds of training")


def _speeds(results: Sequence[Result]) -> list[Panel]:
    """A place for each cell that was measured; a peer that is not in all of them is left out."""
    cells = {result["cell"]: result for result in results if result["suite"] == "training"}
    shown = [(label, cells[work.cell]) for work, label in PLACES.items() if work.cell in cells]
    lines = []
    for name, label in CONTENDERS.items():
        seconds = [{**cell["peers"], "ours": cell["ours"]}.get(name) for _, cell in shown]
        if shown and all(seconds):
            plain = [cell["peers"][PLAIN] for _, cell in shown]
            lines.append(Line(label, [p / s for p, s in zip(plain, seconds, strict=True)]))
    title = "one step", "times a plain float32 loop"
    return [Panel(*title, [label for label, _ in shown], lines)] if lines else []


def _losses(runs: Sequence[Run]) -> list[Panel]:
    panels = []
    for target in sorted({run.target for run in runs}, reverse=True):
        found = [run for run in runs if run.target == target]
        recipes = list(dict.fromkeys(run.recipe for run in found))[:4]
        longest = max(_end([r for r in found if r.recipe == recipe]) for recipe in recipes)
        moments = [longest * (point + 1) / POINTS for point in range(POINTS)]
        lines = []
        for recipe in recipes:
            its = [run for run in found if run.recipe == recipe]
            until = _end(its)
            # one moment more than there is: the loss it ended with
            shown = [m for m in moments if m < until] + [m for m in moments if m >= until][:1]
            lines.append(Line(recipe, [median(_loss_at(run, m) for run in its) for m in shown]))
        labels = [f"{moment:.0f}" if point % 3 == 2 else "" for point, moment in enumerate(moments)]
        panels.append(Panel(f"loss until {target:g}", "nats", labels, lines))
    return panels


def _end(runs: Sequence[Run]) -> float:
    """Seconds of the median run."""
    return median(run.curve[-1][1] for run in runs)


def _loss_at(run: Run, moment: float) -> float:
    """The latest loss that was known then, or the first one."""
    known = [loss for _, seconds, loss in run.curve if seconds <= moment]
    return known[-1] if known else run.curve[0][2]


def main() -> int:
    runs = [run for run in read_runs(RUNS) if is_of_recipe(run)]
    missing = "neither training steps nor times to a loss are measured yet"
    return keep_picture(picture(read_results(), runs), PICTURE, missing)


if __name__ == "__main__":
    sys.exit(main())
