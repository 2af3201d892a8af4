"""What a caller wants a dataset to be, completed and checked: for every edge of the server.

It knows neither protobuf nor HTTP, nor how a dataset is made.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from nanogpt.datasets.documents import FORMATS
from nanogpt.datasets.shipped import SHIPPED, ShippedDataset
from nanogpt.option import Violation, unknown_key
from server.dataset_store import TEXT, NewDataset
from server.errors import InvalidArgument
from server.names import name_violations

TOKENIZERS = ("char", "gpt2")
ENCODINGS = ("utf-8", "cp1252")
DEFAULT_VAL_RATIO = 0.1
DEFAULT_TEXT_FIELD = "text"
MAX_TEXT_FIELD_CHARACTERS = 256


@dataclass(frozen=True, slots=True)
class DatasetRequest:
    """What a caller says of a new dataset. What is empty or None is left to the server."""

    name: str
    shipped: str = ""
    """One of SHIPPED, whose text and settings it gets."""
    tokenizer: str = ""
    val_ratio: float | None = None
    encoding: str = ""
    format: str = ""
    text_field: str = ""
    max_documents: int | None = None


def new_dataset(
    wanted: DatasetRequest, *, prefix: str = "", found: Iterable[Violation] = ()
) -> NewDataset:
    """What to make, with defaults filled in.

    Fields are called `prefix` and their name; `found` is what is wrong already. Raises
    InvalidArgument naming all faults.
    """
    shipped = SHIPPED.get(wanted.shipped)
    faults = [*_violations(wanted)]
    if shipped is not None and not faults:
        faults += _differences(shipped, wanted)
    faults = [*found, *(replace(fault, field=prefix + fault.field) for fault in faults)]
    if faults:
        raise InvalidArgument(faults)
    if shipped is not None:
        name = wanted.name or shipped.name
        return NewDataset(name, shipped.tokenizer, shipped.val_ratio, "utf-8", shipped)
    return NewDataset(
        name=wanted.name,
        tokenizer=wanted.tokenizer or TOKENIZERS[0],
        val_ratio=DEFAULT_VAL_RATIO if wanted.val_ratio is None else wanted.val_ratio,
        encoding=wanted.encoding or None,
        format=wanted.format or TEXT,
        text_field=wanted.text_field or DEFAULT_TEXT_FIELD,
        max_documents=wanted.max_documents,
    )


def _violations(wanted: DatasetRequest) -> Iterable[Violation]:
    """What no dataset may be."""
    if wanted.name or not wanted.shipped:
        yield from name_violations("name", wanted.name)
    if wanted.shipped and wanted.shipped not in SHIPPED:
        description = unknown_key(wanted.shipped, SHIPPED).description
        yield Violation("shipped", description.replace("key", "dataset"))
    yield from _choice("tokenizer", wanted.tokenizer, TOKENIZERS)
    if wanted.val_ratio is not None and not 0 < wanted.val_ratio <= 0.5:
        yield Violation("val_ratio", f"must be in (0, 0.5], got {wanted.val_ratio:g}")
    yield from _choice("encoding", wanted.encoding, ENCODINGS)
    yield from _choice("format", wanted.format, (TEXT, *FORMATS))
    if len(wanted.text_field) > MAX_TEXT_FIELD_CHARACTERS:
        length = len(wanted.text_field)
        yield Violation(
            "text_field", f"may have {MAX_TEXT_FIELD_CHARACTERS} characters, got {length}"
        )
    if wanted.max_documents is not None and wanted.max_documents < 1:
        yield Violation("max_documents", f"must be at least 1, got {wanted.max_documents}")


def _choice(field: str, given: str, allowed: Sequence[str]) -> Iterable[Violation]:
    if given and given not in allowed:
        words = f"{', '.join(allowed[:-1])} or {allowed[-1]}"
        yield Violation(field, f"must be {words}, got {given!r}")


def _differences(shipped: ShippedDataset, wanted: DatasetRequest) -> Iterable[Violation]:
    """Fields that ask for something else than the shipped dataset is."""
    for field, given, value in (
        ("tokenizer", wanted.tokenizer, shipped.tokenizer),
        ("val_ratio", wanted.val_ratio, shipped.val_ratio),
        ("encoding", wanted.encoding, "utf-8"),
        ("format", wanted.format, TEXT),
    ):
        if given not in ("", None, value):
            yield Violation(field, f"is {value} for {shipped.name!r}")
