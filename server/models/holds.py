"""Checkpoints of runs that are in use as models: kept as long as they are.

Their trainer prunes in a process of its own, at any moment, so a hold is a file that it sees, as a
pin is; unlike a pin it ends with its user, and with the server. It does not know what models are.
"""

import threading
from collections import Counter
from pathlib import Path

from nanogpt.checkpoint_folder import hold_checkpoint, release_checkpoint, release_checkpoints


class Holds:
    """Who holds which checkpoint below a folder of runs. Safe to use from any thread."""

    def __init__(self, runs: Path) -> None:
        """Releases what a server that died has held."""
        self._counts: Counter[Path] = Counter()
        self._lock = threading.Lock()
        for checkpoints in runs.glob("*/checkpoints"):
            release_checkpoints(checkpoints)

    def take(self, folder: Path) -> None:
        """Keeps a checkpoint until it is given back as often as it was taken.

        Raises FileNotFoundError if there is none.
        """
        with self._lock:
            if not self._counts[folder]:
                hold_checkpoint(folder)
            self._counts[folder] += 1

    def give_back(self, folder: Path) -> None:
        with self._lock:
            self._counts[folder] -= 1
            if not self._counts[folder]:
                del self._counts[folder]
                release_checkpoint(folder)
