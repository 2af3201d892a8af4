"""How a model's weights are held in memory: those that a caller may ask for. No torch."""

from typing import Literal, get_args

Precision = Literal["float32", "bfloat16", "int8", "int4"]

PRECISIONS: tuple[Precision, ...] = get_args(Precision)
