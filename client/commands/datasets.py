"""Command about datasets: list them and those that can be made."""

from client.arguments import Options
from client.commands.connection import connect
from client.commands.figures import count, instant, word
from client.commands.help import PROGRAM
from client.commands.output import print_json, print_table
from client.exit_code import ExitCode
from protos.nanogpt.v1.datasets_pb2 import Dataset, Tokenizer

COLUMNS = ("dataset", "tokenizer", "vocabulary", "train tokens", "val tokens", "created")


def datasets(options: Options) -> ExitCode:
    with connect(options) as client:
        found = client.datasets()
    if options.flag("json"):
        for dataset in found.datasets:
            print_json(dataset)
        return ExitCode.DONE
    if found.datasets:
        print_table(COLUMNS, map(_row, found.datasets))
    if found.shipped:
        print(f"`{PROGRAM} prepare NAME` makes:")
        for shipped in found.shipped:
            print(f"  {shipped.name}: {shipped.description}")
    return ExitCode.DONE


def tokenizer_name(dataset: Dataset) -> str:
    """`char` or `gpt2`."""
    return word(Tokenizer.Name(dataset.tokenizer), "TOKENIZER_")


def _row(dataset: Dataset) -> tuple[str, ...]:
    return (
        dataset.name,
        tokenizer_name(dataset),
        count(dataset.vocab_size),
        count(dataset.train_tokens),
        count(dataset.val_tokens),
        instant(dataset.create_time),
    )
