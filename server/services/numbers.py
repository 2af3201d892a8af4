"""Numbers off the wire."""

import numpy as np


def decimal(value: float) -> float:
    """The shortest decimal that is this float32: a caller's 0.9 and not 0.8999999761581421."""
    return float(str(np.float32(value)))
