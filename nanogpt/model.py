"""The one network definition that training and inference share, in two architectures.

It knows nothing about batching, caches or devices: attention is a function that the caller
passes in (`attend`), so training hands over causal attention and the engine its KV cache.
Names of weights are nanoGPT's, so that checkpoints can be exchanged by name.

    gpt2    LayerNorm, learned positions, exact (erf) GELU, output tied to the token embedding
            https://d4mucfpksywv.cloudfront.net/better-language-models/language_models_are_unsupervised_multitask_learners.pdf
    modern  RMSNorm without weights, also of the embeddings, queries and keys; rotary positions,
            ReLU squared, no biases, an output layer of its own, whose logits are soft-capped
            https://github.com/karpathy/nanochat/blob/master/nanochat/gpt.py of October 2025,
            which transformers has as NanoChatForCausalLM

Both are pre-norm blocks of the same matrices under the same names.

Shapes: B = sequences, T = tokens, C = n_embd, H = n_head, D = head size, V = vocab_size.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanogpt.config import ModelConfig
from nanogpt.dropout import Dropout
from nanogpt.rms_norm import RMSNorm, rms_norm
from nanogpt.squared_relu import squared_relu

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""Attention of one layer: (layer index, q, k, v), each (B, H, T, D), to (B, H, T, D)."""

Rotation = tuple[Tensor, Tensor]
"""Cosine and sine of each position's angles: (T, D/2), or (B, 1, T, D/2)."""

ROTARY_BASE = 10_000.0
SOFT_CAP = 15.0
"""Of modern logits: they are in (-SOFT_CAP, SOFT_CAP). https://arxiv.org/abs/2408.00118"""


def rotation(positions: Tensor, head_size: int) -> Rotation:
    """The angles by which `rotate` turns queries and keys at positions (T,) or (B, T).

    https://arxiv.org/abs/2104.09864, section 3.4.2
    """
    pairs = torch.arange(0, head_size, 2, device=positions.device)
    angles = positions[..., None] * ROTARY_BASE ** (-pairs / head_size)  # (..., T, D/2)
    if positions.dim() == 2:
        angles = angles[:, None]  # the same for all heads
    return angles.cos(), angles.sin()


def rotate(x: Tensor, by: Rotation) -> Tensor:
    """Turns pair i of x (..., T, D), its numbers i and D/2 + i, clockwise, as nanochat does."""
    cos, sin = (part.to(x.dtype) for part in by)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos + second * sin, second * cos - first * sin), dim=-1)


def _norm(config: ModelConfig) -> nn.Module:
    """The normalization of the residual stream."""
    return RMSNorm() if config.is_modern else nn.LayerNorm(config.n_embd, bias=config.bias)


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

    def forward(self, x: Tensor, attend: Attend | None, angles: Rotation | None) -> Tensor:
        B, T, C = x.shape
        qkv = self.c_attn(x).view(B, T, 3, self.n_head, C // self.n_head)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, T, D)
        if angles is not None:  # both at once: half as many calls
            q, k = rms_norm(rotate(qkv[:, :, :2].permute(2, 0, 3, 1, 4), angles))
        if attend is None:
            dropout = self.attention_dropout if self.training else 0.0
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout)
        else:
            y = attend(self.layer, q, k, v)
        y = y.transpose(1, 2).reshape(B, T, C)
        return self.resid_dropout(self.c_proj(y))


class MLP(nn.Module):
    """Two linear layers around a GELU or a squared ReLU, four times as wide inside.

    https://arxiv.org/abs/1606.08415
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.dropout = Dropout(config.dropout)
        self.is_modern = config.is_modern

    def forward(self, x: Tensor) -> Tensor:
        x = self.c_fc(x)  # (B, T, 4C)
        x = squared_relu(x) if self.is_modern else F.gelu(x)
        return self.dropout(self.c_proj(x))


class Block(nn.Module):
    """Normalize, attend, add; normalize, MLP, add."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.ln_1 = _norm(config)
        self.attn = CausalSelfAttention(config, layer)
        self.ln_2 = _norm(config)
        self.mlp = MLP(config)

    def forward(
        self, x: Tensor, attend: Attend | None = None, angles: Rotation | None = None
    ) -> Tensor:
        """(B, T, C) of that shape. A modern block needs the rotation of its positions."""
        x = x + self.attn(self.ln_1(x), attend, angles)
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """Embeddings, blocks and the final normalization: the weights below `transformer.`"""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        if not config.is_modern:
            self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.drop = Dropout(config.dropout)
        self.h = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.ln_f = _norm(config)
        self.config = config

    def forward(self, tokens: Tensor, positions: Tensor, attend: Attend | None) -> Tensor:
        x = self.wte(tokens)  # (B, T, C)
        angles = self.rotation(positions)
        x = x + self.wpe(positions) if angles is None else rms_norm(x)
        x = self.drop(x)
        for block in self.h:
            x = block(x, attend, angles)
        return self.ln_f(x)

    def rotation(self, positions: Tensor) -> Rotation | None:
        """What a block needs to know of positions; None of gpt2, where embeddings say it all."""
        return rotation(positions, self.config.head_size) if self.config.is_modern else None


class GPT(nn.Module):
    """Token ids to logits."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.attend: Attend | None = None
        """Attention of `forward`; None is torch's fused one."""
        self.transformer = Transformer(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.tie()
        self.apply(_init_weights)
        if config.is_modern:  # as nanochat: the first loss is that of a uniform guess
            nn.init.normal_(self.transformer.wte.weight)
            nn.init.zeros_(self.lm_head.weight)
        for name, weight in self.named_parameters():
            if name.endswith("c_proj.weight"):
                # each block adds to the residual stream twice (GPT-2 paper, section 2.3)
                nn.init.normal_(weight, mean=0.0, std=0.02 / math.sqrt(2 * config.n_layer))

    def tie(self) -> None:
        """Makes one tensor of token embedding and head, unless the architecture has two.

        https://arxiv.org/abs/1608.05859
        """
        if not self.config.is_modern:
            self.transformer.wte.weight = self.lm_head.weight

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

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., V) of final hidden states (..., C)."""
        logits = self.lm_head(hidden)
        return soft_cap(logits) if self.config.is_modern else logits

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
            return self.logits(x[:, [-1], :]), None
        logits = self.logits(x)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)
        return logits, loss

    def parameter_count(self, position_embeddings: bool = True) -> int:
        """Number of weights, tied ones counted once, with or without position embeddings."""
        count = sum(weight.numel() for weight in self.parameters())
        if not position_embeddings and not self.config.is_modern:
            count -= self.transformer.wpe.weight.numel()
        return count

    @property
    def members(self) -> tuple["GPT", ...]:
        """The networks that it consists of, see ensemble.py: itself."""
        return (self,)

    @property
    def device(self) -> torch.device:
        return self.lm_head.weight.device


def soft_cap(logits: Tensor) -> Tensor:
    """Modern logits in float32, those near 0 almost as they were, none beyond SOFT_CAP."""
    return SOFT_CAP * torch.tanh(logits.float() / SOFT_CAP)


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

    Raises ValueError if there are fewer. Modern weights, which know no positions, are returned.
    """
    found = {name: w for name, w in state.items() if name.endswith("transformer.wpe.weight")}
    for positions in found.values():
        if block_size > positions.shape[0]:
            raise ValueError(
                f"block_size {block_size} is more than the {positions.shape[0]} positions of the "
                f"model"
            )
    return {**state, **{name: w[:block_size].clone() for name, w in found.items()}}
