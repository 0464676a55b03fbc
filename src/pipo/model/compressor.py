"""Pair-in: two token embeddings become one latent (paper sec. 3.1, appendix B)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipo.errors import UsageError

KINDS = ("mlp", "linear")


class Compressor(nn.Module):
    """f([a; b]) = residual * (a + b) + branch([a; b]), the branch a linear map or an MLP with SiLU."""

    def __init__(self, hidden_size: int, kind: str, residual: float) -> None:
        super().__init__()
        if kind not in KINDS:
            raise UsageError("compressor", f"unknown kind {kind!r}", f"choose one of {', '.join(KINDS)}")
        self.residual = residual
        if kind == "linear":
            self.linear = nn.Linear(2 * hidden_size, hidden_size)
        else:
            self.mlp = nn.Sequential(
                nn.Linear(2 * hidden_size, 2 * hidden_size), nn.SiLU(), nn.Linear(2 * hidden_size, hidden_size)
            )

    @property
    def branch(self) -> nn.Module:
        return self.linear if hasattr(self, "linear") else self.mlp

    def forward(self, embeddings: Tensor) -> Tensor:  # [B, 2L, H] -> [B, L, H]
        pairs = embeddings.unflatten(1, (-1, 2))
        latent: Tensor = self.branch(pairs.flatten(-2))
        return latent + self.residual * pairs.sum(-2) if self.residual else latent

    @torch.no_grad()
    def start(self) -> None:
        """Where training of a converted model starts.

        With a residual the branch ends in zeros, so f is `residual * (a + b)`. Without one it is the authors' start:
        the sum for `linear`, SiLU(a) + SiLU(b) for `mlp`.
        """
        layers = [layer for layer in self.modules() if isinstance(layer, nn.Linear)]
        for layer in layers:
            nn.init.zeros_(layer.bias)
        last, size = layers[-1].weight, layers[-1].out_features
        if self.residual:
            nn.init.zeros_(last)
        else:
            last.copy_(torch.eye(size, dtype=last.dtype, device=last.device).repeat(1, 2))
            if len(layers) == 2:
                nn.init.eye_(layers[0].weight)
