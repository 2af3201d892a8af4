"""A short text by the model as it is, to show what it has learned.

Plain recomputation of the whole text for each token: short and rare enough not to need a cache.
"""

from collections.abc import Callable

import numpy as np
import torch

from nanogpt.model import GPT
from nanogpt.tokenizer import Tokenizer
from nanogpt.training.batches import Stream
from nanogpt.training.evaluate import Interrupted
from nanogpt.training.step import autocast

NUM_TOKENS = 64
TEMPERATURE = 0.8  # as nanoGPT samples


@torch.no_grad()
def write_sample(
    model: GPT,
    tokenizer: Tokenizer,
    *,
    seed: int,
    step: int,
    dtype: torch.dtype,
    should_stop: Callable[[], bool],
) -> tuple[str, str]:
    """A prompt, and what the model writes after it.

    A pure function of weights, seed and step. Raises Interrupted as soon as a stop is asked for.
    """
    draws = np.random.default_rng((seed, Stream.SAMPLE, step))
    prompt_id = start_id(tokenizer)
    ids = [prompt_id]
    was_training = model.training
    model.eval()
    try:
        for _ in range(NUM_TOKENS):
            if should_stop():
                raise Interrupted
            window = torch.tensor([ids[-model.config.block_size :]], device=model.device)
            with autocast(model.device, dtype):
                logits, _ = model(window)
            logits = logits[0, 0, : tokenizer.vocab_size].float().cpu()  # rows beyond are padding
            totals = torch.softmax(logits / TEMPERATURE, dim=-1).double().cumsum(0).numpy()
            draw = draws.random() * totals[-1]
            ids.append(int(np.searchsorted(totals, draw, side="right")))
    finally:
        model.train(was_training)
    return tokenizer.decode([prompt_id]), tokenizer.decode(ids[1:])


def start_id(tokenizer: Tokenizer) -> int:
    """End of text if there is such a token, else a newline, else the first token."""
    if tokenizer.end_of_text_id is not None:
        return tokenizer.end_of_text_id
    try:
        return tokenizer.encode("\n")[0]
    except ValueError:  # no newline in the vocabulary
        return 0
