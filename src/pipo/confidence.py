"""The confidence head: how likely is the draft to be right (paper appendix B)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ConfidenceHead(nn.Module):
    """W2 SiLU(W1 norm([backbone state; MTP state])), a logit. Its inputs are detached: it probes, it does not steer."""

    def __init__(self, hidden_size: int, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm  # of width 2H, the backbone's kind
        self.fc1 = nn.Linear(2 * hidden_size, hidden_size, bias=False)
        self.fc2 = nn.Linear(hidden_size, 1, bias=False)

    def forward(self, backbone_hidden: Tensor, mtp_hidden: Tensor) -> Tensor:  # [..., H], [..., H] -> [...]
        states = torch.cat([backbone_hidden.detach(), mtp_hidden.detach()], dim=-1)
        logit: Tensor = self.fc2(F.silu(self.fc1(self.norm(states))))
        return logit.squeeze(-1)

    def probability(self, backbone_hidden: Tensor, mtp_hidden: Tensor) -> Tensor:  # [..., H], [..., H] -> [...]
        """That the draft is kept rightly, in float32."""
        logit: Tensor = self(backbone_hidden, mtp_hidden)
        return torch.sigmoid(logit.float())
