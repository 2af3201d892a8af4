"""Texts that need no upload: one that every CPython carries, and one with a known address and hash.

text = SHIPPED["python_reference"]
text.write_text(Path("input.txt"))
prepare_text(Path("input.txt"), folder, tokenizer=text.tokenizer, val_ratio=text.val_ratio)
"""

import hashlib
import http.client
import os
import ssl
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from nanogpt.datasets.dataset import BadDataset

_CHUNK_BYTES = 1 << 16
_TIMEOUT_SECONDS = 30.0  # for each wait on the network


class DownloadFailed(OSError):
    """The text could not be fetched; says from where, why and what to do instead."""


@dataclass(frozen=True, slots=True)
class ShippedDataset:
    """A dataset that can be made by its name."""

    name: str
    description: str
    tokenizer: str
    """`char` or `gpt2`."""
    val_ratio: float
    sha256: str | None
    """Of the text's bytes; None if they come from the running Python and differ by its version."""
    url: str | None
    """Where the text is; None if it comes from the running Python."""

    def write_text(self, path: Path) -> None:
        """Writes the text to `path`, completely or not at all.

        Raises DownloadFailed if it cannot be fetched, BadDataset if what came is not the text.
        """
        chunks = [_python_reference()] if self.url is None else self._download(self.url)
        aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            with aside.open("wb") as file:
                file.writelines(chunks)
                file.flush()
                os.fsync(file.fileno())
            self.check_text(aside)
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)

    def check_text(self, path: Path) -> None:
        """Raises BadDataset unless the file is this dataset's text, byte for byte."""
        expected = self.sha256 or _sha256([_python_reference()])
        with path.open("rb") as file:
            actual = _sha256(iter(lambda: file.read(_CHUNK_BYTES), b""))
        if actual != expected:
            raise BadDataset(
                f"this is not the text of {self.name}: its SHA-256 is {actual}, not {expected}"
            )

    def _download(self, url: str) -> Iterator[bytes]:
        verifying = ssl.create_default_context()
        try:
            with urllib.request.urlopen(
                url, timeout=_TIMEOUT_SECONDS, context=verifying
            ) as response:
                while chunk := response.read(_CHUNK_BYTES):
                    yield chunk
        except (OSError, http.client.HTTPException) as error:
            host = urllib.parse.urlsplit(url).netloc
            raise DownloadFailed(
                f"could not download the text of {self.name} from {host} ({error}); "
                f"give it as a local file instead, got from {url} where there is a network"
            ) from error


def _python_reference() -> bytes:
    """Every topic of `help()` in alphabetical order, each with its title, between line breaks."""
    from pydoc_data.topics import topics  # half a megabyte, so only when it is asked for

    return "\n".join(topics[name] for name in sorted(topics)).encode()


def _sha256(chunks: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()


_TINY_SHAKESPEARE_URL = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
)
_TINY_SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"

SHIPPED: dict[str, ShippedDataset] = {
    dataset.name: dataset
    for dataset in (
        ShippedDataset(
            name="python_reference",
            description=(
                "The Python language reference out of the Python that runs the server, half a "
                "million characters, by character; needs no network, and the text differs by "
                "Python version."
            ),
            tokenizer="char",
            val_ratio=0.1,
            sha256=None,
            url=None,
        ),
        ShippedDataset(
            name="shakespeare_char",
            description="Tiny Shakespeare, 1.1 million characters of plays, by character.",
            tokenizer="char",
            val_ratio=0.1,
            sha256=_TINY_SHAKESPEARE_SHA256,
            url=_TINY_SHAKESPEARE_URL,
        ),
        ShippedDataset(
            name="shakespeare",
            description="Tiny Shakespeare, 1.1 million characters of plays, in GPT-2's encoding.",
            tokenizer="gpt2",
            val_ratio=0.1,
            sha256=_TINY_SHAKESPEARE_SHA256,
            url=_TINY_SHAKESPEARE_URL,
        ),
    )
}
