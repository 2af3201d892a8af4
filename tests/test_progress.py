from fake_trainer import checkpoint, evaluation, started, step, tiny_config

from nanogpt.training.events import Body, Divergence, Event
from server.jobs.progress import Progress

CONFIG = tiny_config(max_iters=20, eval_interval=10)


def after(*bodies: Body) -> Progress:
    progress = Progress()
    for sequence, body in enumerate(bodies, start=1):
        progress = progress.after(Event(sequence, 0.0, body))
    return progress


def test_nothing_is_known_before_the_first_event() -> None:
    assert Progress().remaining_seconds(CONFIG) is None
    assert Progress().best_val_loss is None


def test_the_best_loss_is_the_lowest_and_the_latest_the_latest() -> None:
    progress = after(evaluation(0, 4.0), evaluation(10, 3.0), evaluation(20, 3.5))
    assert progress.best_val_loss == 3.0
    assert progress.latest_evaluation == evaluation(20, 3.5)


def test_steps_count_as_far_as_any_event_tells() -> None:
    assert after(started(), step(8)).step == 8
    assert after(started(), step(8), evaluation(10)).step == 10
    assert after(started(), step(8), checkpoint(9)).checkpoint_step == 9


def test_remaining_time_counts_steps_and_evaluations() -> None:
    assert after(step(8)).remaining_seconds(CONFIG) == 12 * 0.25
    assert after(evaluation(0), step(8)).remaining_seconds(CONFIG) == 12 * 0.25 + 2 * 2.0
    assert after(evaluation(10), step(18)).remaining_seconds(CONFIG) == 2 * 0.25 + 2.0
    assert after(step(20), evaluation(20)).remaining_seconds(CONFIG) == 0
    # another limit may end the run before
    assert after(started(10), step(8)).remaining_seconds(CONFIG) == 2 * 0.25


def test_a_run_that_goes_back_has_done_fewer_steps() -> None:
    skipped = Divergence(9, "skipped", 2.0, None, None, 1.0)
    back = Divergence(10, "rolled_back", 2.0, None, 6, 0.5)
    assert after(step(9), skipped).step == 9
    assert after(step(9), skipped, back).step == 6
    assert after(step(9), skipped, back, step(7)).step == 7
