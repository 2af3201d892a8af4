"""Single values on the wire: numbers and times."""

import numpy as np
from google.protobuf.timestamp_pb2 import Timestamp


def decimal(value: float) -> float:
    """The shortest decimal that is this float32: a caller's 0.9 and not 0.8999999761581421."""
    return float(str(np.float32(value)))


def timestamp(seconds: float) -> Timestamp:
    """Seconds since 1970, to the microsecond."""
    found = Timestamp()
    found.FromMicroseconds(round(seconds * 1e6))
    return found
