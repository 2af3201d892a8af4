"""A short text by the model as it is, to show what it has learned.

Plain recomputation of the whole text for each token: short and rare enough not to need a cache.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from nanogpt.ensemble import Network
from nanogpt.option import InvalidConfig, Violation
from nanogpt.tokenizer import Tokenizer, UnknownCharacters
from nanogpt.training.batches import Stream
from nanogpt.training.evaluate import Interrupted
from nanogpt.training.step import autocast

TEMPERATURE = 0.8  # as nanoGPT samples


@torch.no_grad()
def write_sample(
    model: Network,
    tokenizer: Tokenizer,
    prompt_ids: Sequence[int],
    *,
    num_tokens: int,
    seed: int,
    step: int,
    index: int,
    dtype: torch.dtype,
    should_stop: Callable[[], bool],
) -> str:
    """What the model writes after a prompt, which is the run's number `index`.

    A pure function of weights, prompt, seed, step and index. Raises Interrupted as soon as a stop
    is asked for.
    """
    draws = np.random.default_rng((seed, Stream.SAMPLE, step, index))
    ids = list(prompt_ids)
    was_training = model.training
    model.eval()
    try:
        for _ in range(num_tokens):
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
    return tokenizer.decode(ids[len(prompt_ids) :])


def prompts_of(texts: Sequence[str], tokenizer: Tokenizer) -> list[list[int]]:
    """Ids of the prompts; without any, one that is the start of a text. Raises InvalidConfig."""
    prompts, found = [], []
    for index, text in enumerate(texts):
        try:
            prompts.append(tokenizer.encode(text))
        except UnknownCharacters as error:
            found.append(Violation(f"sample_prompts[{index}]", f"has {error}"))
    if found:
        raise InvalidConfig(found)
    return prompts or [[start_id(tokenizer)]]


def start_id(tokenizer: Tokenizer) -> int:
    """End of text if there is such a token, else a newline, else the first token."""
    if tokenizer.end_of_text_id is not None:
        return tokenizer.end_of_text_id
    try:
        return tokenizer.encode("\n")[0]
    except ValueError:  # no newline in the vocabulary
        return 0
