"""The prefix cache's policy against a naive one, and what it promises of a slot it gives."""

import random

import pytest

from nanogpt.inference.free_slots import FreeSlots, shared_prefix

NUM_SLOTS = 6


def naive_shared(a: list[int], b: list[int]) -> int:
    count = 0
    while count < min(len(a), len(b)) and a[count] == b[count]:
        count += 1
    return count


class NaiveSlots:
    """The same policy over a list of (slot, tokens), the longest unused first."""

    def __init__(self) -> None:
        self.free: list[tuple[int, list[int]]] = [(slot, []) for slot in range(NUM_SLOTS)]

    def take(self, prompt: list[int] | None) -> tuple[int, int]:
        best = max(
            self.free[::-1], key=lambda entry: naive_shared(entry[1], prompt or []), default=None
        )
        shared = naive_shared(best[1], prompt or [])
        empty = sorted(slot for slot, tokens in self.free if not tokens)
        if shared and (2 * shared >= len(best[1]) or len(self.free) == 1):
            return self._give(best[0]), shared
        if empty:
            return self._give(empty[0]), 0
        others = [slot for slot, _ in self.free if not shared or slot != best[0]]
        return self._give(others[0]), 0

    def _give(self, slot: int) -> int:
        self.free = [entry for entry in self.free if entry[0] != slot]
        return slot


def test_100_000_random_rounds_over_two_tokens_equal_the_naive_policy() -> None:
    """No slot is given twice, and each holds what it is said to hold."""
    dice = random.Random(11)
    slots, naive = FreeSlots(NUM_SLOTS), NaiveSlots()
    contents: dict[int, list[int]] = {slot: [] for slot in range(NUM_SLOTS)}
    taken: list[int] = []
    hits = 0
    for _ in range(100_000):
        prompt = dice.choices((0, 1), k=dice.randint(0, 9))
        if taken and (len(taken) == NUM_SLOTS or dice.random() < 0.5):
            slot = taken.pop(dice.randrange(len(taken)))
            contents[slot] = [] if dice.random() < 0.1 else prompt
            slots.put(slot, contents[slot])
            naive.free.append((slot, contents[slot]))
        elif dice.random() < 0.2:
            slot, shared = slots.longest_match(prompt)
            assert shared == max(naive_shared(held, prompt) for _, held in naive.free)
            if slot is not None:
                slots.touch(slot)
                naive.free.append(naive.free.pop(naive.free.index((slot, contents[slot]))))
        else:
            wanted = prompt if dice.random() < 0.8 else None
            slot, shared = slots.take(wanted)
            assert (slot, shared) == naive.take(wanted)
            assert slot not in taken and contents[slot][:shared] == prompt[:shared]
            taken.append(slot)
            hits += shared > 0
        assert len(slots) + len(taken) == NUM_SLOTS
    assert sorted([*slots, *taken]) == list(range(NUM_SLOTS))
    assert hits > 10_000


def test_what_two_lists_begin_with_in_common() -> None:
    dice = random.Random(5)
    for _ in range(5000):
        a = dice.choices((0, 1), weights=(9, 1), k=dice.randint(0, 40))
        b = dice.choices((0, 1), weights=(9, 1), k=dice.randint(0, 40))
        assert shared_prefix(a, b) == naive_shared(a, b)


def test_empty_slots_go_first_then_the_longest_unused() -> None:
    slots = FreeSlots(3)
    assert [slots.take(None)[0] for _ in range(2)] == [0, 1]
    slots.put(1, [7, 7])
    slots.put(0, [8, 8])
    assert slots.take([5]) == (2, 0)
    assert slots.take([5]) == (1, 0)
    assert slots.take(None) == (0, 0)
    with pytest.raises(IndexError):
        slots.take([5])


def test_a_conversation_goes_on_in_its_slot_and_a_long_text_stays_for_others() -> None:
    slots = FreeSlots(2)
    slots.take(None), slots.take(None)
    slots.put(0, [1, 2, 3, 4])
    slots.put(1, [9])
    assert slots.take([1, 2, 3, 4, 5]) == (0, 4)
    slots.put(0, list(range(100)))
    # a copy of the two that it shares is cheap, and the 100 may be asked for again
    assert slots.take([0, 1, 50]) == (1, 0)
    assert slots.longest_match([0, 1, 50]) == (0, 2)
    assert slots.take([0, 1, 50]) == (0, 2)  # there is no other
