"""Networks of one shape that learn side by side and answer with one voice.

Each reads the same batches from a start of its own, so they agree on what a text shows clearly and
err apart where they guess: the mean of their probabilities is better than any of them, most of all
where a small text is read often. https://arxiv.org/abs/1612.01474

Shapes: B = sequences, T = tokens, V = vocab_size, M = n_member.
"""

import math
from dataclasses import replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanogpt.config import ModelConfig
from nanogpt.model import GPT


class Ensemble(nn.Module):
    """Token ids to the logarithms of mean probabilities."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        one = replace(config, n_member=1)
        self.networks = nn.ModuleList(GPT(one) for _ in range(config.n_member))

    @property
    def members(self) -> tuple[GPT, ...]:
        return tuple(cast(GPT, network) for network in self.networks)

    def forward(
        self, tokens: Tensor, targets: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Logits and loss of token ids (B, T), shaped as those of `GPT.forward`.

        In training the loss is the mean of the members', so each learns by itself but for the
        clipping of their common gradient, and the logits are the first one's. Else the logits are
        log-probabilities of the mean.
        """
        found = [member(tokens, targets) for member in self.members]
        if self.training and targets is not None:
            return found[0][0], torch.stack([loss for _, loss in found]).mean()
        members = torch.stack([logits.float().log_softmax(-1) for logits, _ in found])
        logits = members.logsumexp(0) - math.log(len(found))  # (B, T, V)
        if targets is None:
            return logits, None
        return logits, F.nll_loss(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)

    def tie(self) -> None:
        """As `GPT.tie`, for each member."""
        for member in self.members:
            member.tie()

    def parameter_count(self, position_embeddings: bool = True) -> int:
        """Number of weights of all members, as `GPT.parameter_count`."""
        return sum(member.parameter_count(position_embeddings) for member in self.members)

    @property
    def device(self) -> torch.device:
        return self.members[0].device


Network = GPT | Ensemble


def make_network(config: ModelConfig) -> Network:
    """With random weights, by torch's generator."""
    return GPT(config) if config.n_member == 1 else Ensemble(config)
