"""Which steps may not change the weights: losses and gradients far from those of the last steps.

Pure arithmetic on two numbers a step; no torch. What is done about such steps is the trainer's.
"""

from collections import deque
from statistics import fmean, pstdev

WINDOW_STEPS = 128  # as llm.c's detector: https://github.com/karpathy/llm.c/blob/master/llmc/outlier_detector.h

LEAST_DEVIATION = 0.1
"""Smallest standard deviation that is assumed, as a share of the mean: a calm run is no reason to
take a small change for a spike."""


class Window:
    """Losses and gradient norms of the latest updates."""

    def __init__(self, threshold: float) -> None:
        """`threshold` is in standard deviations above the mean; 0 accepts everything."""
        self._threshold = threshold
        self._losses: deque[float] = deque(maxlen=WINDOW_STEPS)
        self._grad_norms: deque[float] = deque(maxlen=WINDOW_STEPS)

    def accepts(self, loss: float, grad_norm: float) -> bool:
        """Whether neither is a spike. Nothing is one before the window is full."""
        if not self._threshold or len(self._losses) < WINDOW_STEPS:
            return True
        return not (
            self._is_spike(loss, self._losses) or self._is_spike(grad_norm, self._grad_norms)
        )

    def add(self, loss: float, grad_norm: float) -> None:
        """Takes in an update that was applied."""
        self._losses.append(loss)
        self._grad_norms.append(grad_norm)

    def _is_spike(self, value: float, latest: deque[float]) -> bool:
        mean = fmean(latest)
        deviation = max(pstdev(latest, mean), LEAST_DEVIATION * abs(mean))
        return value - mean > self._threshold * deviation

    def state(self) -> dict[str, list[float]]:
        """As JSON, exactly."""
        return {"losses": list(self._losses), "grad_norms": list(self._grad_norms)}

    def load_state(self, state: dict[str, list[float]]) -> None:
        """Puts back what `state` gave."""
        self._losses = deque(state["losses"], maxlen=WINDOW_STEPS)
        self._grad_norms = deque(state["grad_norms"], maxlen=WINDOW_STEPS)
