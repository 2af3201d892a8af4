"""Data as a pure function of (seed, stream, step), drawn as nanoGPT draws it."""

import threading

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nanogpt.datasets.dataset import BadDataset
from nanogpt.training import batches as module
from nanogpt.training.batches import Batches, Prefetcher, Stream

TOKENS = np.arange(1000, dtype=np.uint16)  # each token is its own position


def batches(shape=(2, 3, 8), tokens=TOKENS, seed=1337, stream=Stream.TRAIN):
    return Batches(tokens, shape=shape, seed=seed, stream=stream)


@given(step=st.integers(0, 10**7), seed=st.integers(0, 2**64 - 1))
def test_targets_are_the_inputs_shifted_by_one(step, seed):
    inputs, targets = batches(seed=seed).at(step)
    assert inputs.shape == targets.shape == (2, 3, 8)
    assert inputs.dtype == targets.dtype == torch.int64
    assert torch.equal(targets, inputs + 1)
    assert torch.equal(inputs[..., 1:], targets[..., :-1])


def test_starts_are_uniform_over_every_position_that_fits():
    tokens = np.arange(12, dtype=np.uint16)
    starts = torch.cat([batches((1, 100, 8), tokens).at(step)[0][0, :, 0] for step in range(40)])
    counts = torch.bincount(starts)
    assert len(counts) == 12 - 8  # 0..N-T-1
    assert (counts - 1000).abs().max() < 150  # five standard deviations


@pytest.mark.parametrize("num_tokens", [0, 8])
def test_a_split_that_is_too_short_is_refused_with_the_numbers(num_tokens):
    with pytest.raises(BadDataset) as raised:
        batches(tokens=TOKENS[:num_tokens])
    assert str(raised.value) == (
        f"the training split has {num_tokens} tokens, but block_size 8 needs at least 9"
    )


def test_the_shortest_split_has_one_crop():
    inputs, targets = batches(tokens=TOKENS[:9]).at(5)
    assert (inputs == torch.arange(8)).all()
    assert (targets == torch.arange(1, 9)).all()


def test_steps_seeds_and_streams_are_independent():
    first = batches().at(0)[0]
    assert torch.equal(batches().at(0)[0], first)
    others = [
        batches().at(1)[0],
        batches(seed=1338).at(0)[0],
        batches(stream=Stream.EVALUATE_TRAIN).at(0)[0],
        batches(stream=Stream.EVALUATE_VAL).at(0)[0],
    ]
    assert all(not torch.equal(first, other) for other in others)


def test_accumulation_cuts_a_step_and_does_not_change_what_it_sees():
    whole = batches((1, 6, 8)).at(7)[0]
    cut = batches((3, 2, 8)).at(7)[0]
    assert torch.equal(whole.flatten(0, 1), cut.flatten(0, 1))


def test_neither_torchs_nor_numpys_generator_is_touched():
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    batches().at(3)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()


@pytest.mark.parametrize("first_step", [0, 17])
def test_prefetching_changes_nothing(first_step):
    source = batches()
    with Prefetcher(source, torch.device("cpu"), first_step) as prefetcher:
        for step in range(first_step, first_step + 5):
            for found, expected in zip(prefetcher.next(), source.at(step), strict=True):
                assert torch.equal(found, expected)


@pytest.mark.parametrize(("kind", "reads_ahead"), [("mps", False), ("cuda", True)])
def test_the_device_is_used_by_a_thread_that_may(monkeypatch, kind, reads_ahead):
    """MPS by the one that trains alone; to a GPU the next step's tokens go beside this one."""
    threads = set()

    def to_device(tensor, device):
        threads.add(threading.current_thread())
        return tensor

    monkeypatch.setattr(module, "to_device", to_device)
    with Prefetcher(batches(), torch.device(kind), 0) as prefetcher:
        prefetcher.next()
    assert threading.main_thread() in threads
    assert (len(threads) > 1) == reads_ahead


def test_an_error_while_reading_ahead_is_raised():
    class Broken(Batches):
        def at(self, step):
            raise OSError("the disk is gone")

    broken = Broken(TOKENS, shape=(1, 1, 8), seed=0, stream=Stream.TRAIN)
    with (
        Prefetcher(broken, torch.device("cpu"), 0) as prefetcher,
        pytest.raises(OSError, match="the disk is gone"),
    ):
        prefetcher.next()
