"""How long a queue takes, learnt from how fast it went so far. Pure arithmetic."""


class DrainRate:
    """How fast a queue empties, measured only while there is one: idle time says nothing."""

    _WEIGHT = 0.2  # of the newest measurement in the moving average

    def __init__(self) -> None:
        self.seconds_per_request: float | None = None
        self._seconds = 0.0

    def step(self, seconds: float, waiting: int, completed: int) -> None:
        """A step of this duration completed some requests while `waiting` sequences waited."""
        if not waiting:
            self._seconds = 0.0
            return
        self._seconds += seconds
        if completed:
            measured, self._seconds = self._seconds / completed, 0.0
            known = self.seconds_per_request
            self.seconds_per_request = (
                measured if known is None else known + self._WEIGHT * (measured - known)
            )
