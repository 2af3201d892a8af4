"""Commands about datasets: list them and those that can be made, show one."""

from client.arguments import Options
from client.commands.connection import connect
from client.commands.figures import count, instant, percent, size, word
from client.commands.help import PROGRAM
from client.commands.output import print_fields, print_json, print_table
from client.exit_code import ExitCode
from protos.nanogpt.v1.datasets_pb2 import Dataset, DatasetInProgress, Tokenizer

COLUMNS = (
    "dataset",
    "tokenizer",
    "vocabulary",
    "train tokens",
    "val tokens",
    "size",
    "created",
    "warnings",
)


def datasets(options: Options) -> ExitCode:
    with connect(options) as client:
        found = client.datasets()
    if options.flag("json"):
        for dataset in found.datasets:
            print_json(dataset)
        return ExitCode.DONE
    if found.datasets:
        print_table(COLUMNS, map(_row, found.datasets))
    for making in found.in_progress:
        print(f"{making.name} is being made: {_progress(making)}")
    if found.shipped:
        print(f"`{PROGRAM} prepare NAME` makes:")
        for shipped in found.shipped:
            print(f"  {shipped.name}: {shipped.description}")
    return ExitCode.DONE


def dataset(options: Options) -> ExitCode:
    with connect(options) as client:
        found = client.dataset(options.arguments[0])
    if options.flag("json"):
        print_json(found)
    else:
        print_fields(_fields(found))
    return ExitCode.DONE


def summary(dataset: Dataset) -> str:
    """What a dataset holds, in half a sentence."""
    encoding = f" ({dataset.encoding})" if dataset.encoding else ""
    documents = dataset.report.documents
    of_documents = f" in {count(documents)} documents" if documents > 1 else ""
    return (
        f"{count(dataset.characters)} characters{encoding}{of_documents}, "
        f"{tokenizer_name(dataset)} vocabulary of {count(dataset.vocab_size)}, "
        f"{count(dataset.train_tokens)} train and {count(dataset.val_tokens)} val tokens"
    )


def tokenizer_name(dataset: Dataset) -> str:
    """`char` or `gpt2`."""
    return word(Tokenizer.Name(dataset.tokenizer), "TOKENIZER_")


def phase_name(making: DatasetInProgress) -> str:
    """`uploading`, `reading`, `tokenizing` or `checking`."""
    return word(DatasetInProgress.Phase.Name(making.phase), "PHASE_")


def _row(dataset: Dataset) -> tuple[str, ...]:
    warnings = len(dataset.report.warnings)
    return (
        dataset.name,
        tokenizer_name(dataset),
        count(dataset.vocab_size),
        count(dataset.train_tokens),
        count(dataset.val_tokens),
        size(dataset.size_bytes),
        instant(dataset.create_time),
        f"{warnings}: `dataset {dataset.name}`" if warnings else "",
    )


def _progress(making: DatasetInProgress) -> str:
    of_total = f" of {size(making.bytes_total)}" if making.HasField("bytes_total") else ""
    return f"{phase_name(making)}, {size(making.bytes_done)}{of_total}"


def _fields(dataset: Dataset) -> list[tuple[str, str]]:
    rows = [
        ("dataset", dataset.name),
        ("text", summary(dataset)),
        ("size", size(dataset.size_bytes)),
        ("made of", f"SHA-256 {dataset.source_sha256}" if dataset.source_sha256 else ""),
        ("created", instant(dataset.create_time)),
    ]
    if dataset.HasField("report"):
        report = dataset.report
        rows += [
            ("documents", count(report.documents)),
            ("without text", count(report.empty_documents)),
            ("undecodable", f"{count(report.undecodable_characters)} characters"),
            ("used", f"{count(report.used_tokens)} of {count(dataset.vocab_size)} tokens"),
            ("new in val", f"{count(report.unknown_val_tokens)} tokens"),
            ("overlap", f"{percent(report.train_val_overlap)} of val also stands in train"),
        ]
        rows += [("warning", warning) for warning in report.warnings]
    return rows
