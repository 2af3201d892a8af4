"""A progress bar for making a dataset: first what is sent, then what the server does with it."""

import threading
from collections.abc import Iterable, Iterator
from typing import Self

from client.client import Client
from client.commands.datasets import phase_name
from client.commands.output import transfer_bar
from client.errors import NanoGPTError
from protos.nanogpt.v1.datasets_pb2 import DatasetInProgress

POLL_SECONDS = 0.3


class UploadBar:
    """Shows the making of one dataset on stderr, if that is a terminal; else does nothing."""

    def __init__(self, client: Client, name: str, label: str, size_bytes: int) -> None:
        """`name` is the dataset's, `label` names what is uploaded, of about `size_bytes`."""
        self._client, self._name, self._size_bytes = client, name, size_bytes
        self._bar = transfer_bar()
        self._task = self._bar.add_task(f"uploading {label}", total=size_bytes)
        self._ended = threading.Event()
        self._poll = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Self:
        self._bar.start()
        if not self._bar.disable:
            self._poll.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        if not self._bar.disable:
            self._poll.join()
        self._bar.stop()

    def counted(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        """The pieces; moves the bar on as they are taken."""
        for piece in pieces:
            yield piece
            self._bar.advance(self._task, len(piece))

    def _follow(self) -> None:
        """Asks the server how far it is until the dataset is made."""
        phase = DatasetInProgress.PHASE_UPLOADING
        while not self._ended.wait(POLL_SECONDS):
            try:
                found = self._client.datasets().in_progress
            except NanoGPTError:  # the upload itself will say what is wrong
                continue
            for dataset in found:
                if dataset.name != self._name or not dataset.HasField("bytes_total"):
                    continue
                if dataset.phase != phase:  # speed and time begin anew
                    phase = dataset.phase
                    self._bar.reset(self._task, description=phase_name(dataset))
                self._bar.update(
                    self._task, completed=dataset.bytes_done, total=dataset.bytes_total
                )
