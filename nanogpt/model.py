"""GPT-2: the one network definition that training and inference share.

It knows nothing about batching, caches or devices: attention is a function that the caller
passes in (`attend`), so training hands over causal attention and the engine its KV cache.
Names of weights are nanoGPT's, so that checkpoints can be exchanged by name.

Architecture: https://d4mucfpksywv.cloudfront.net/better-language-models/language_models_are_unsupervised_multitask_learners.pdf
Pre-norm blocks, learned positions, exact (erf) GELU, output tied to the token embedding.

Shapes: B = sequences, T = tokens, C = n_embd, H = n_head, D = head size, V = vocab_size.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanogpt.config import ModelConfig
from nanogpt.dropout import Dropout

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""Attention of one layer: (layer index, q, k, v), each (B, H, T, D), to (B, H, T, D)."""


class CausalSelfAttention(nn.Module):
    """Multi-head attention around an `attend` function. https://arxiv.org/abs/1706.03762"""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.resid_dropout = Dropout(config.dropout)
        self.layer = layer
        self.n_head = config.n_head
        self.attention_dropout = config.dropout

    def forward(self, x: Tensor, attend: Attend | None) -> Tensor:
        B, T, C = x.shape
        qkv = self.c_attn(x).view(B, T, 3, self.n_head, C // self.n_head)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, T, D)
        if attend is None:
            dropout = self.attention_dropout if self.training else 0.0
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout)
        else:
            y = attend(self.layer, q, k, v)
        y = y.transpose(1, 2).reshape(B, T, C)
        return self.resid_dropout(self.c_proj(y))


class MLP(nn.Module):
    """Two linear layers around a GELU, four times as wide inside."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.c_proj(F.gelu(self.c_fc(x))))


class Block(nn.Module):
    """Normalize, attend, add; normalize, MLP, add."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.attn = CausalSelfAttention(config, layer)
        self.ln_2 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, attend: Attend | None) -> Tensor:
        x = x + self.attn(self.ln_1(x), attend)
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """Embeddings, blocks and the final normalization: the weights below `transformer.`"""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.drop = Dropout(config.dropout)
        self.h = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, bias=config.bias)

    def forward(self, tokens: Tensor, positions: Tensor, attend: Attend | None) -> Tensor:
        x = self.drop(self.wte(tokens) + self.wpe(positions))  # (B, T, C)
        for block in self.h:
            x = block(x, attend)
        return self.ln_f(x)


class GPT(nn.Module):
    """Token ids to logits."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.attend: Attend | None = None
        """Attention of `forward`; None is torch's fused one."""
        self.transformer = Transformer(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        # tied: https://arxiv.org/abs/1608.05859
        self.transformer.wte.weight = self.lm_head.weight
        self.apply(_init_weights)
        for name, weight in self.named_parameters():
            if name.endswith("c_proj.weight"):
                # each block adds to the residual stream twice (GPT-2 paper, section 2.3)
                nn.init.normal_(weight, mean=0.0, std=0.02 / math.sqrt(2 * config.n_layer))

    def hidden(
        self, tokens: Tensor, positions: Tensor | None = None, attend: Attend | None = None
    ) -> Tensor:
        """Final normalized hidden states, (B, T, C), of token ids (B, T).

        Positions, (T,) or (B, T), default to 0..T-1; each must be below block_size. Without
        `attend`, each token attends to itself and those before it.
        """
        if positions is None:
            if tokens.shape[1] > self.config.block_size:
                raise ValueError(
                    f"sequence has {tokens.shape[1]} tokens; "
                    f"this model takes at most {self.config.block_size}"
                )
            positions = torch.arange(tokens.shape[1], device=tokens.device)
        return self.transformer(tokens, positions, attend)

    def forward(
        self, tokens: Tensor, targets: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Logits and loss of token ids (B, T).

        With targets (B, T), logits are (B, T, V) and the loss is the mean cross-entropy in nats
        over targets that are not -1. Without, logits are (B, 1, V), of the last position only,
        and the loss is None.
        """
        x = self.hidden(tokens, attend=self.attend)
        if targets is None:
            return self.lm_head(x[:, [-1], :]), None
        logits = self.lm_head(x)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)
        return logits, loss

    def parameter_count(self, position_embeddings: bool = True) -> int:
        """Number of weights, tied ones counted once, with or without position embeddings."""
        count = sum(weight.numel() for weight in self.parameters())
        if not position_embeddings:
            count -= self.transformer.wpe.weight.numel()
        return count

    @property
    def device(self) -> torch.device:
        return self.lm_head.weight.device


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, mean=0.0, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


@torch.no_grad()
def zero_init_projections(model: GPT) -> None:
    """Lets every block begin as the identity: the last projection of attention and MLP is zero.

    https://arxiv.org/abs/2203.03466, appendix D.2
    """
    for name, weight in model.named_parameters():
        if name.endswith("c_proj.weight"):
            weight.zero_()


LONGEST_WAVE = 100.0
"""Times 2π positions. Short runs on characters learn more from 100 than from 1,000 or 10,000."""


@torch.no_grad()
def sinusoidal_positions(model: GPT, scale: float = 0.1) -> None:
    """Lets positions begin as sines and cosines of `scale`, and tokens as large as they.

    Of such positions one matrix makes those that are some tokens away, so heads soon find what
    came just before. https://arxiv.org/abs/1706.03762, section 3.5
    """
    positions = model.transformer.wpe.weight  # (T, C)
    T, C = positions.shape
    frequencies = LONGEST_WAVE ** (-torch.arange(0, C, 2) / C)  # (C/2,)
    angles = torch.outer(torch.arange(T), frequencies)  # (T, C/2)
    positions.copy_(scale * torch.cat((angles.sin(), angles.cos()), dim=1)[:, :C])
    nn.init.normal_(model.transformer.wte.weight, mean=0.0, std=scale)


def crop_block_size(state: dict[str, Tensor], block_size: int) -> dict[str, Tensor]:
    """The weights with position embeddings cut to the first `block_size` positions.

    Raises ValueError if there are fewer.
    """
    positions = state["transformer.wpe.weight"]
    if block_size > positions.shape[0]:
        raise ValueError(
            f"block_size {block_size} is more than the {positions.shape[0]} positions of the model"
        )
    return {**state, "transformer.wpe.weight": positions[:block_size].clone()}
