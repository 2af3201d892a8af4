"""The runner of our own kernels: a CPU, float32 or weights of fewer bits. No torch.

A token's logits have the same bits whatever else is in the step, however its prompt is cut into
chunks, and however many threads compute. It knows nothing of requests, see ../runner.py.
"""

import ctypes
import weakref
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from nanogpt.config import ModelConfig
from nanogpt.inference.native.library import (
    LAYER_WEIGHTS,
    NETWORK_WEIGHTS,
    FloatPointer,
    Library,
    Shape,
    Status,
)
from nanogpt.inference.precision import PRECISIONS, Precision
from nanogpt.inference.runner import ChunkInput
from nanogpt.inference.sampler import Floats


class NativeRunner:
    """A Runner over weights by name, each a float32 array as in `GPT.state_dict()`.

    `vocab_size` is the tokenizer's; `num_threads` includes the one that calls. Matrices are held in
    `precision`, keys and values in float32 if that is float32, else in bfloat16. They are
    copied; embeddings are used where they are, and kept alive. Raises ValueError if the model has
    fewer tokens than the tokenizer, MemoryError.
    """

    def __init__(
        self,
        library: Library,
        config: ModelConfig,
        weights: Mapping[str, Floats],
        vocab_size: int,
        *,
        num_slots: int = 32,
        precision: Precision = "float32",
        num_threads: int = 1,
    ) -> None:
        if vocab_size > config.vocab_size:
            raise ValueError(
                f"the tokenizer has {vocab_size} tokens; this model has {config.vocab_size}"
            )
        self.num_slots = num_slots
        self.block_size = config.block_size
        self.vocab_size = vocab_size
        self.precision = precision
        self._library = library
        self._stride = -(-vocab_size // library.panel) * library.panel
        arrays = [_contiguous(weights, name, config) for name in NETWORK_WEIGHTS]
        self._embeddings = arrays[:2]
        arrays += [
            _contiguous(weights, f"transformer.h.{layer}.{name}", config)
            for layer in range(config.n_layer)
            for name in LAYER_WEIGHTS
        ]
        pointers = (FloatPointer * len(arrays))(*(_pointer(array) for array in arrays))
        layers = ctypes.byref(pointers, len(NETWORK_WEIGHTS) * ctypes.sizeof(FloatPointer))
        network = ctypes.c_void_p()
        status = library.create(
            Shape(
                config.n_layer,
                config.n_head,
                config.n_embd,
                vocab_size,
                config.block_size,
                num_slots,
                config.is_modern,
            ),
            pointers,
            ctypes.cast(layers, ctypes.POINTER(FloatPointer)),
            PRECISIONS.index(precision),
            num_threads,
            network,
        )
        _check(status)
        self._network = network
        weakref.finalize(self, library.destroy, network)

    def forward(self, chunks: Sequence[ChunkInput]) -> Floats:
        """Float32 logits (rows, V), see Runner."""
        tokens = np.array([id for chunk in chunks for id in chunk.token_ids], dtype=np.int32)
        layout = np.array(  # of gpt.cpp's Chunk
            [(slot, start, len(ids), num_logits) for slot, start, ids, num_logits in chunks],
            dtype=np.int32,
        )
        rows = sum(chunk.num_logits for chunk in chunks)
        logits: Floats = np.empty((rows, self._stride), dtype=np.float32)
        status = self._library.forward(
            self._network,
            layout.ctypes.data,
            len(chunks),
            tokens.ctypes.data,
            logits.ctypes.data,
        )
        _check(status)
        return logits[:, : self.vocab_size]

    def copy(self, from_slot: int, to_slot: int, num_tokens: int) -> None:
        """See Runner."""
        _check(self._library.copy(self._network, from_slot, to_slot, num_tokens))

    def clear(self, slot: int) -> None:
        """See Runner."""
        _check(self._library.clear(self._network, slot))

    @property
    def weight_bytes(self) -> int:
        """Bytes that a step of one token reads of the matrices."""
        return int(self._library.weight_bytes(self._network))


MODERN_LACKS = ("wpe.weight", "ln_1.weight", "ln_2.weight", "ln_f.weight")


def _contiguous(weights: Mapping[str, Floats], name: str, config: ModelConfig) -> Floats | None:
    """A weight as rows one after another; None for one that such a model does not have."""
    if name not in weights and name.endswith(".bias"):
        return None
    if config.is_modern and name.endswith(MODERN_LACKS):
        return None
    return np.ascontiguousarray(weights[name], dtype=np.float32)


def _pointer(array: npt.NDArray[np.float32] | None) -> "ctypes._Pointer[ctypes.c_float]":
    return FloatPointer() if array is None else array.ctypes.data_as(FloatPointer)


def _check(status: int) -> None:
    if status == Status.OUT_OF_MEMORY:
        raise MemoryError("out of memory in the kernels")
    if status != Status.OK:
        raise ValueError("slots, positions or tokens that do not exist")
