from server.serving import figures
from server.serving.figures import Percentiles, Window


def test_percentiles_are_measurements() -> None:
    window = Window()
    assert window.percentiles(0.0) is None
    for hundredth in range(100, 0, -1):
        window.add(hundredth / 100, now=10.0)
    assert window.percentiles(10.0) == Percentiles(p50=0.5, p95=0.95, p99=0.99)
    one = Window()
    one.add(0.25, now=0.0)
    assert one.percentiles(0.0) == Percentiles(0.25, 0.25, 0.25)


def test_a_window_forgets_after_a_minute() -> None:
    window = Window()
    window.add(1.0, now=0.0)
    window.add(2.0, now=30.0, count=3)
    assert window.percentiles(59.0) == Percentiles(2.0, 2.0, 2.0)
    assert window.percentiles(61.0) == Percentiles(2.0, 2.0, 2.0)
    assert len(window._values) == 3
    assert window.percentiles(91.0) is None


def test_a_window_is_bounded_however_busy_the_minute(monkeypatch) -> None:
    monkeypatch.setattr(figures, "MAX_VALUES", 4)
    window = Window()
    window.add(1.0, now=0.0, count=1_000_000)
    assert len(window._values) <= figures.MAX_VALUES
