"""The functions of the compiled kernels, with their types. It adds nothing to them.

The structures are those of gpt.cpp; memory that a pointer leads to is the caller's to keep.
"""

import ctypes
from enum import IntEnum
from pathlib import Path

from nanogpt.inference.native.compiler import KernelsUnavailable

FloatPointer = ctypes.POINTER(ctypes.c_float)


class Status(IntEnum):
    """What a function returns."""

    OK = 0
    INVALID = 1
    OUT_OF_MEMORY = 2


class Shape(ctypes.Structure):
    """Sizes of a network and its slots, and its architecture."""

    _fields_ = tuple(
        (name, ctypes.c_int32)
        for name in (
            "n_layer",
            "n_head",
            "n_embd",
            "vocab_size",
            "block_size",
            "num_slots",
            "is_modern",
        )
    )


NETWORK_WEIGHTS = (
    "transformer.wte.weight",
    "transformer.wpe.weight",
    "transformer.ln_f.weight",
    "transformer.ln_f.bias",
    "lm_head.weight",
)
"""Pointers of `Weights`, in order, by the weights' names."""

LAYER_WEIGHTS = (
    "ln_1.weight",
    "ln_1.bias",
    "attn.c_attn.weight",
    "attn.c_attn.bias",
    "attn.c_proj.weight",
    "attn.c_proj.bias",
    "ln_2.weight",
    "ln_2.bias",
    "mlp.c_fc.weight",
    "mlp.c_fc.bias",
    "mlp.c_proj.weight",
    "mlp.c_proj.bias",
)
"""Pointers of `LayerWeights`, in order, by the weights' names below `transformer.h.N.`"""


class Library:
    """A loaded library. Raises KernelsUnavailable if the file cannot be loaded."""

    def __init__(self, path: Path) -> None:
        try:
            library = ctypes.CDLL(str(path))  # CDLL: other Python threads run meanwhile
        except OSError as error:
            raise KernelsUnavailable(f"{path.name} cannot be loaded: {error}") from error
        int32, pointer = ctypes.c_int32, ctypes.c_void_p
        self.create = library.nanogpt_create
        self.create.argtypes = [
            ctypes.POINTER(Shape),
            ctypes.POINTER(FloatPointer),
            ctypes.POINTER(FloatPointer),
            int32,
            int32,
            ctypes.POINTER(pointer),
        ]
        self.create.restype = int32
        self.destroy = library.nanogpt_destroy
        self.destroy.argtypes, self.destroy.restype = [pointer], None
        self.forward = library.nanogpt_forward
        self.forward.argtypes = [pointer, pointer, int32, pointer, pointer]
        self.forward.restype = int32
        self.copy = library.nanogpt_copy
        self.copy.argtypes, self.copy.restype = [pointer, int32, int32, int32], int32
        self.clear = library.nanogpt_clear
        self.clear.argtypes, self.clear.restype = [pointer, int32], int32
        self.weight_bytes = library.nanogpt_weight_bytes
        self.weight_bytes.argtypes, self.weight_bytes.restype = [pointer], ctypes.c_int64
        library.nanogpt_panel.argtypes, library.nanogpt_panel.restype = [], int32
        self.panel: int = library.nanogpt_panel()
        """Logits lie in rows of vocab_size rounded up to a multiple of this."""
        multiplies_bfloat16 = library.nanogpt_multiplies_bfloat16
        multiplies_bfloat16.argtypes, multiplies_bfloat16.restype = [], ctypes.c_bool
        self.multiplies_bfloat16: bool = multiplies_bfloat16()
        """Whether bfloat16 weights are multiplied in bfloat16, else in float32."""
