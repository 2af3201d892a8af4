"""What is guessed, when, and when guessing ends."""

import random

from nanogpt.inference.prompt_lookup import MIN_ACCEPTANCE, NGRAM_SIZES, REST_STEPS, PromptLookup


def naive_guess(tokens: list[int], most: int) -> list[int]:
    """The same by scanning the whole text each time."""
    for size in NGRAM_SIZES:
        for end in range(len(tokens) - 1, size - 1, -1):
            if tokens[end - size : end] == tokens[-size:] and len(tokens) > size:
                guess = list(tokens)
                while len(guess) < len(tokens) + most:
                    guess.append(guess[len(guess) - (len(tokens) - end)])
                return guess[len(tokens) :]
    return []


def test_guesses_are_those_of_a_scan() -> None:
    dice = random.Random(2)
    for _ in range(200):
        lookup, tokens = PromptLookup(), dice.choices(range(4), k=dice.randint(1, 6))
        for _ in range(30):
            most = dice.randint(1, 5)
            assert lookup.guess(tokens, most) == naive_guess(tokens, most)
            tokens += dice.choices(range(4), k=dice.randint(1, 3))


def test_what_followed_last_time() -> None:
    assert PromptLookup().guess([1, 2, 3, 4, 9, 1, 2, 3], 2) == [4, 9]
    assert PromptLookup().guess([7, 2, 3, 4, 9, 1, 2, 3], 1) == [4]  # two in common
    assert PromptLookup().guess([1, 2, 3, 4], 3) == []
    assert PromptLookup().guess([5], 3) == PromptLookup().guess([5, 5], 3) == []
    assert PromptLookup().guess([1, 2, 1, 2], 5) == [1, 2, 1, 2, 1]  # it goes on repeating


def test_bad_guesses_are_given_up_for_a_while() -> None:
    lookup, tokens = PromptLookup(), [1, 2, 3, 1, 2, 3]
    rounds = 0
    while lookup.guess(tokens, 4):
        lookup.learn(4, 0)
        rounds += 1
    assert 5 <= rounds <= 10
    assert sum(bool(lookup.guess(tokens, 4)) for _ in range(REST_STEPS)) == 1  # the last one
    for _ in range(100):
        assert lookup.guess(tokens, 4)
        lookup.learn(4, 2)  # a half is worth it
    assert 0.5 > MIN_ACCEPTANCE
