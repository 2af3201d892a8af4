"""Who goes first, who never starves, and what those who leave take with them."""

import random

from nanogpt.inference.request import Request
from nanogpt.inference.sampling_params import SamplingParams, StoppingParams
from nanogpt.inference.sequence import Sequence
from nanogpt.inference.waiting_queue import AGEING_STEPS, WaitingQueue
from nanogpt.tokenizer import CharTokenizer

TOKENIZER = CharTokenizer("ab")


def sample(id: str, priority: int = 0) -> Sequence:
    request = Request(id, [0], SamplingParams(), StoppingParams(), priority=priority)
    return Sequence(request, 0, 8, TOKENIZER)


def order(queue: WaitingQueue) -> list[str]:
    return [queue.pop().request.id for _ in range(len(queue))]


def test_lower_numbers_first_and_among_equals_the_oldest() -> None:
    queue = WaitingQueue()
    for id, priority in [("a", 0), ("b", 5), ("c", -3), ("d", 0), ("e", 5), ("f", -3)]:
        queue.push(sample(id, priority), step=7)
    assert order(queue) == ["c", "f", "a", "d", "b", "e"]


def test_one_that_waits_long_moves_up() -> None:
    """A level of priority is worth AGEING_STEPS steps, so late ones do not overtake for ever."""
    queue = WaitingQueue()
    queue.push(sample("patient", 2), step=0)
    queue.push(sample("early", 0), step=2 * AGEING_STEPS - 1)
    queue.push(sample("late", 0), step=2 * AGEING_STEPS + 1)
    assert order(queue) == ["early", "patient", "late"]


def test_who_waits_knows_how_many_go_first() -> None:
    queue = WaitingQueue()
    assert queue.requests_ahead("a") is None
    samples = [sample("a"), sample("b", 5), sample("c", -3), sample("c", -3), sample("d")]
    for waiting in samples:
        queue.push(waiting, step=7)
    assert [queue.requests_ahead(id) for id in "abcd"] == [1, 3, 0, 2]
    queue.discard(samples[0])
    assert [queue.requests_ahead(id) for id in "abcd"] == [None, 2, 0, 1]
    assert order(queue) == ["c", "c", "d", "b"]


def test_random_pushes_pops_and_departures_equal_a_sorted_list() -> None:
    dice, queue = random.Random(3), WaitingQueue()
    naive: list[tuple[int, int, Sequence]] = []
    for step in range(3000):
        if dice.random() < 0.5:
            arriving = sample(str(step), dice.randint(-100, 100))
            queue.push(arriving, step)
            naive.append((step + AGEING_STEPS * arriving.request.priority, step, arriving))
        elif naive and dice.random() < 0.5:
            first = min(naive, key=lambda entry: entry[:2])
            naive.remove(first)
            assert queue.pop() is first[2]
        elif naive:
            leaving = naive.pop(dice.randrange(len(naive)))[2]
            assert leaving in queue
            queue.discard(leaving)
            queue.discard(leaving)  # twice is once
            assert leaving not in queue
        assert len(queue) == len(naive)


def test_those_who_leave_take_no_memory() -> None:
    queue = WaitingQueue()
    queue.push(sample("stays"), 0)
    for number in range(1000):
        leaving = sample(str(number))
        queue.push(leaving, number)
        queue.discard(leaving)
    assert len(queue) == 1 and len(queue._heap) < 100
