"""Seconds until the trainer, run as a user would, brings a preset to a validation loss.

    python -m benchmarks.time_to_quality --preset=fast_shakespeare_char --text=input.txt

The text, Tiny Shakespeare for the presets made for it, is cut 90 : 10 into training and validation.
The loss is over the whole validation part, in windows that do not overlap. Time is that of the run,
evaluations and checkpoints included; the start of the process and the dataset are not.

    --target=1.8857    loss at which the run ends: what nanoGPT's CPU recipe ended with
    --key=value        any other hyperparameter, in place of the preset's
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from nanogpt.config import TrainConfig, load_preset
from nanogpt.datasets.prepare import prepare_text
from nanogpt.training.events import Evaluation, EventReader
from nanogpt.training.run_directory import RunDirectory, RunSpec
from nanogpt.training.trainer import train

TARGET = 1.8857


def main() -> int:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.time_to_quality",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--preset", required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--target", type=float, default=TARGET)
    options, rest = parser.parse_known_args()
    values = {**load_preset(options.preset).config, **_values(rest)}
    values |= {"eval_whole_split": True, "target_val_loss": options.target}
    with tempfile.TemporaryDirectory() as folder:
        prepare_text(options.text, Path(folder) / "dataset", tokenizer="char")
        run = RunDirectory(Path(folder) / "run")
        run.write_spec(RunSpec("run", "model", "../dataset", TrainConfig.from_mapping(values)))
        began, cpu = time.time(), time.process_time()
        train(run, run.read_spec())
        cpu = time.process_time() - cpu
        print(f"\n{'step':>6} {'seconds':>8} {'val loss':>9}")
        reached = None
        for event in EventReader(run.metrics_path).read():
            if isinstance(event.body, Evaluation):
                seconds, loss = event.time - began, event.body.val_loss
                print(f"{event.body.step:6} {seconds:8.1f} {loss:9.4f}")
                if reached is None and loss <= options.target:
                    reached = seconds
    print(f"{cpu:.0f} s of processor time in all")
    if reached is None:
        print(f"the target of {options.target} was not reached")
        return 1
    print(f"{options.target} reached after {reached:.1f} s")
    return 0


def _values(words: list[str]) -> dict[str, object]:
    """`--key=value` by the type of the key's default."""
    defaults = TrainConfig().to_mapping()
    values: dict[str, object] = {}
    for word in words:
        key, separator, text = word.removeprefix("--").partition("=")
        if key not in defaults or not separator:
            raise SystemExit(f"{word}: not --key=value with a hyperparameter as the key")
        kind = type(defaults[key])
        values[key] = text == "true" if kind is bool else kind(text)
    return values


if __name__ == "__main__":
    sys.exit(main())
