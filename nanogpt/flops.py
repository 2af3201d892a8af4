"""Floating-point operations and bytes that a GPT needs, by formula. No torch, no measuring.

Those of an ensemble are the sums of its members'.

Names: L layers, H heads, Q head size, C = H·Q width, T context, N weights without those that are
looked up and never multiplied: position embeddings, and the token embedding unless it is tied to
the output layer, where it is multiplied.
"""

from nanogpt.config import ModelConfig


def multiplied_weights(config: ModelConfig) -> int:
    """N: number of weights, those apart that are only looked up."""
    C = config.n_embd
    if config.is_modern:
        return config.n_member * (config.vocab_size * C + config.n_layer * 12 * C * C)
    attention, mlp, norms = 4 * C * C, 8 * C * C, 2 * C
    if config.bias:
        attention, mlp, norms = attention + 4 * C, mlp + 5 * C, norms + 2 * C
    final_norm = 2 * C if config.bias else C
    blocks = config.n_layer * (attention + mlp + norms)
    return config.n_member * (config.vocab_size * C + blocks + final_norm)


def parameter_count(config: ModelConfig) -> int:
    """Number of weights, tied ones counted once."""
    looked_up = config.vocab_size if config.is_modern else config.block_size
    return multiplied_weights(config) + config.n_member * looked_up * config.n_embd


def training_flops_per_token(config: ModelConfig) -> int:
    """Forward and backward for one token of a full sequence: 6N + 12LHQT.

    nanoGPT's count; PaLM, appendix B: https://arxiv.org/abs/2204.02311
    """
    attention = 12 * config.num_blocks * config.n_embd * config.block_size
    return 6 * multiplied_weights(config) + attention


def decode_flops_per_token(config: ModelConfig, context_tokens: int) -> int:
    """Sampling one token that attends to `context_tokens`: 2N + 4LCt.

    https://kipp.ly/transformer-inference-arithmetic
    """
    attention = 4 * config.num_blocks * config.n_embd * context_tokens
    return 2 * multiplied_weights(config) + attention


def request_flops(config: ModelConfig, prompt_tokens: int, new_tokens: int) -> int:
    """Sampling `new_tokens` after a prompt.

    All tokens but the last sampled one pass through the network, at contexts of 1, 2, 3, ...;
    the count is linear in the context, so the mean context gives the sum. The output layer,
    2 * vocab_size * n_embd for each member, runs for sampled tokens only.
    """
    num_tokens = prompt_tokens + new_tokens - 1
    mean_context = min((num_tokens + 1) // 2, config.block_size)
    head = 2 * config.n_member * config.vocab_size * config.n_embd
    return num_tokens * decode_flops_per_token(config, mean_context) - (prompt_tokens - 1) * head


def decode_bytes_per_step(
    config: ModelConfig,
    *,
    bytes_per_weight: float,
    bytes_per_kv_value: float,
    batch: int,
    context_tokens: int,
) -> float:
    """Bytes that must be read to sample one token for each sequence of a batch.

    Every weight once, and for each sequence the keys and values of its context.
    """
    kv_cache = 2 * config.num_blocks * config.n_embd * context_tokens
    return bytes_per_weight * multiplied_weights(config) + bytes_per_kv_value * batch * kv_cache


def mfu(flops_per_second: float, peak: float | None) -> float | None:
    """Model FLOPs utilization: the fraction of the peak in use, None if the peak is unknown."""
    return None if peak is None else flops_per_second / peak
