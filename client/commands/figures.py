"""Numbers, times and names as people read them."""

from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp

from protos.nanogpt.v1.inference_pb2 import Percentiles


def count(number: int) -> str:
    """1234567 -> `1,234,567`."""
    return f"{number:,}"


def size(num_bytes: int) -> str:
    """Bytes with a decimal unit: `43.1 MB`."""
    amount = float(num_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


def duration(seconds: float) -> str:
    """Hours, minutes and seconds: `1:04:09`, `4:09`."""
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{left:02}" if hours else f"{minutes}:{left:02}"


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.1f}"


def spread(of: Percentiles) -> str:
    """Median, 95th and 99th percentile in milliseconds: `1.2 / 3.4 / 5.6`."""
    return " / ".join(map(milliseconds, (of.p50, of.p95, of.p99)))


def percent(ratio: float) -> str:
    """0.123 -> `12.3 %`."""
    return f"{ratio * 100:.1f} %"


def instant(time: Timestamp) -> str:
    """Local date and time."""
    return time.ToDatetime(UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def elapsed(start: Timestamp, end: Timestamp | None) -> str:
    """Time from start to end, or until now."""
    last = datetime.now(UTC) if end is None else end.ToDatetime(UTC)
    return duration((last - start.ToDatetime(UTC)).total_seconds())


def word(enum_name: str, prefix: str) -> str:
    """`STATE_OUT_OF_MEMORY` without its prefix -> `out of memory`."""
    return enum_name.removeprefix(prefix).replace("_", " ").lower()
