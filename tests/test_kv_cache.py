"""Hidden states computed piece by piece through the cache equal those of the whole window."""

import random

import pytest
import torch

from nanogpt.config import ModelConfig
from nanogpt.inference.kv_cache import CachedAttention, KVCache, Span
from nanogpt.model import GPT

CONFIG = ModelConfig(block_size=16, vocab_size=50, n_layer=2, n_head=4, n_embd=32, dropout=0.0)
NUM_SLOTS = 12


@pytest.fixture(scope="module")
def model() -> GPT:
    torch.manual_seed(0)
    model = GPT(CONFIG).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.2)
    return model


@pytest.fixture
def cache() -> KVCache:
    return KVCache(CONFIG, NUM_SLOTS, torch.float32, torch.device("cpu"))


class Windows:
    """Windows in slots, computed piece by piece and compared with the uncached model."""

    def __init__(self, model: GPT, cache: KVCache, seed: int = 0) -> None:
        self.model, self.cache = model, cache
        self.random = random.Random(seed)
        self.tokens = {slot: [self.random.randrange(50) for _ in range(16)] for slot in range(12)}
        self.cached = dict.fromkeys(range(NUM_SLOTS), 0)

    @torch.inference_mode()
    def compute(self, counts: dict[int, int]) -> None:
        """Computes the next `counts[slot]` tokens of each slot in one pass, and compares."""
        spans = [Span(slot, self.cached[slot], count) for slot, count in sorted(counts.items())]
        decodes = [span for span in spans if span.num_tokens == 1]
        prefills = [span for span in spans if span.num_tokens > 1]
        self.random.shuffle(prefills)
        spans = decodes + prefills
        tokens = [token for s in spans for token in self.tokens[s.slot][s.start : s.end]]
        positions = [position for s in spans for position in range(s.start, s.end)]
        hidden = self.model.hidden(
            torch.tensor([tokens]),
            torch.tensor([positions]),
            CachedAttention(self.cache, decodes, prefills),
        )[0]
        parts = hidden.split([s.num_tokens for s in spans])
        for span, part in zip(spans, parts, strict=True):
            whole = self.model.hidden(torch.tensor([self.tokens[span.slot][: span.end]]))[0]
            torch.testing.assert_close(part, whole[span.start :], atol=1e-5, rtol=1e-5)
            self.cached[span.slot] = span.end


@pytest.mark.parametrize(
    "slots",
    [[0], [0, 1, 2, 3], [1, 2, 3], [0, 2, 5], [11], [0, 11], list(range(NUM_SLOTS))],
    ids=str,
)
def test_decoding_equals_the_whole_window(model: GPT, cache: KVCache, slots: list[int]) -> None:
    """Full prefixes of the slots, prefixes with holes, and scattered slots."""
    windows = Windows(model, cache)
    windows.compute({slot: 2 + slot % 3 for slot in slots})
    for _ in range(8):
        windows.compute(dict.fromkeys(slots, 1))


def test_any_mixture_of_chunks_and_decodes(model: GPT, cache: KVCache) -> None:
    windows = Windows(model, cache, seed=1)
    choose = windows.random
    while open_slots := [slot for slot, cached in windows.cached.items() if cached < 16]:
        chosen = choose.sample(open_slots, choose.randint(1, len(open_slots)))
        windows.compute(
            {
                slot: min(choose.choice([1, 1, 1, 2, 3, 7]), 16 - windows.cached[slot])
                for slot in chosen
            }
        )


def test_slots_can_be_used_again(model: GPT, cache: KVCache) -> None:
    """What the former owner left beyond the new one's tokens is not seen."""
    Windows(model, cache, seed=2).compute({slot: 16 for slot in range(4)})
    windows = Windows(model, cache, seed=3)
    windows.compute({0: 3, 1: 1, 2: 9, 3: 2})
    windows.compute({0: 1, 1: 1, 2: 1, 3: 1})


def test_a_copy_goes_its_own_way(model: GPT, cache: KVCache) -> None:
    windows = Windows(model, cache)
    windows.compute({0: 9})
    windows.tokens[5] = windows.tokens[0][:7] + windows.tokens[5][7:]
    cache.copy(0, 5, 7)
    windows.cached[5] = 7
    windows.compute({0: 1, 5: 1})
    windows.compute({0: 2, 5: 4})


def test_what_failed_stays_in_its_slot_and_can_be_cleared(model: GPT, cache: KVCache) -> None:
    windows = Windows(model, cache)
    windows.compute({0: 3, 1: 5, 2: 4})
    cache.keys[:, 1] = cache.values[:, 1] = float("nan")
    windows.compute({0: 1, 2: 1})  # slot 1 is an idle row of this step
    cache.clear(1)
    windows.cached[1] = 0
    windows.compute({0: 1, 1: 2, 2: 1})
    windows.compute({0: 1, 1: 1, 2: 1})


def test_a_cache_may_be_of_another_type_than_the_model(cache: KVCache) -> None:
    torch.manual_seed(0)
    half = GPT(CONFIG).eval().to(torch.bfloat16)
    attend = CachedAttention(cache, [], [Span(0, 0, 5)])
    with torch.inference_mode():
        hidden = half.hidden(torch.arange(5)[None], torch.arange(5)[None], attend)
        whole = half.hidden(torch.arange(5)[None])
    assert hidden.dtype == torch.bfloat16
    torch.testing.assert_close(hidden, whole, atol=0.05, rtol=0.05)
