"""Reads a pickle that holds plain data only, as nanoGPT's `meta.pkl` does.

Numbers, text and their containers need no class, so every class or function that a pickle names is
refused, and with it any code: https://docs.python.org/3/library/pickle.html#restricting-globals
"""

import io
import pickle
from typing import Any, NoReturn


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it names {module}.{name}, and only plain data is read")


def read_plain_pickle(data: bytes) -> Any:
    """The object that the bytes hold. Raises ValueError if they are damaged or name any code."""
    try:
        return _PlainUnpickler(io.BytesIO(data)).load()
    except Exception as error:  # a damaged pickle can raise any exception, says its documentation
        raise ValueError(f"not a pickle of plain data: {error}") from error
