"""The same network and training step as PyTorch's own modules give them: the peer to beat.

Shares no code with nanogpt.model and nanogpt.training: a pre-norm torch.nn.TransformerEncoder with
a causal mask, float32, eager, AdamW in its fused kernel.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanogpt.config import TrainConfig


class PlainGPT(nn.Module):
    """A GPT of PyTorch's modules; no dropout, no biases."""

    def __init__(self, config: TrainConfig, vocab_size: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, config.n_embd)
        self.positions = nn.Embedding(config.block_size, config.n_embd)
        layer = nn.TransformerEncoderLayer(
            config.n_embd,
            config.n_head,
            dim_feedforward=4 * config.n_embd,
            dropout=0.0,
            activation="gelu",
            batch_first=True,
            norm_first=True,
            bias=False,
        )
        self.blocks = nn.TransformerEncoder(layer, config.n_layer, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(config.n_embd, bias=False)
        mask = nn.Transformer.generate_square_subsequent_mask(config.block_size)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy of token ids and targets (B, T), T = block_size."""
        x = self.tokens(tokens) + self.positions.weight
        x = self.norm(self.blocks(x, mask=self.mask, is_causal=True))
        logits = x @ self.tokens.weight.t()
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def load_gpt(self, state: dict[str, Tensor]) -> None:
        """Takes the weights of a nanogpt.model.GPT of the same shape."""
        names = {
            "attn.c_attn.weight": "self_attn.in_proj_weight",
            "attn.c_proj.weight": "self_attn.out_proj.weight",
            "mlp.c_fc.weight": "linear1.weight",
            "mlp.c_proj.weight": "linear2.weight",
            "ln_1.weight": "norm1.weight",
            "ln_2.weight": "norm2.weight",
        }
        mapped = {
            "tokens.weight": state["transformer.wte.weight"],
            "positions.weight": state["transformer.wpe.weight"],
            "norm.weight": state["transformer.ln_f.weight"],
        }
        for layer in range(len(self.blocks.layers)):
            for ours, theirs in names.items():
                mapped[f"blocks.layers.{layer}.{theirs}"] = state[f"transformer.h.{layer}.{ours}"]
        self.load_state_dict(mapped)


class PlainLoop:
    """Forward, backward, clip, update, in float32, as every PyTorch tutorial writes it."""

    def __init__(
        self, model: nn.Module, loss_of: Callable[[Tensor, Tensor], Tensor], config: TrainConfig
    ) -> None:
        """`loss_of` maps token ids and targets to the model's loss."""
        self._weights, self._loss_of, self._config = list(model.parameters()), loss_of, config
        groups = [
            {"params": [w for w in self._weights if w.dim() >= 2]},
            {"params": [w for w in self._weights if w.dim() < 2], "weight_decay": 0.0},
        ]
        self._optimizer = torch.optim.AdamW(
            groups,
            lr=config.learning_rate,
            betas=(config.beta1, config.beta2),
            weight_decay=config.weight_decay,
            fused=True,
        )

    def step(self, inputs: Tensor, targets: Tensor) -> float:
        """Takes one step on token ids (B, T) and returns its loss."""
        self._optimizer.zero_grad(set_to_none=True)
        loss = self._loss_of(inputs, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(self._weights, self._config.grad_clip)
        self._optimizer.step()
        return loss.item()
