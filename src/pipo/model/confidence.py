"""The confidence head: how likely is the draft to be right (paper appendix B)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipo.errors import UsageError
from pipo.model.head import head_logits, over_chunks

INPUTS = ("states", "draft")
"""What the head sees: the states alone (the paper's), or the drafted token and its log-probability too."""

FLOOR = -30.0
"""Log-probabilities below this are read as this."""


class ConfidenceHead(nn.Module):
    """W2 SiLU(W1 norm([backbone state; MTP state])), a logit. Its inputs are detached: it probes, it does not steer.

    With `inputs` "draft", W3 [e(draft) / RMS; log q(draft)] is added inside the SiLU, so that it judges this token and
    not the position.
    """

    def __init__(self, hidden_size: int, norm: nn.Module, inputs: str = "states") -> None:
        super().__init__()
        if inputs not in INPUTS:
            raise UsageError("confidence_inputs", f"unknown name {inputs!r}", f"choose one of {', '.join(INPUTS)}")
        self.norm = norm  # of width 2H, the backbone's kind
        self.fc1 = nn.Linear(2 * hidden_size, hidden_size, bias=False)
        self.draft = nn.Linear(hidden_size + 1, hidden_size, bias=False) if inputs == "draft" else None
        self.fc2 = nn.Linear(hidden_size, 1, bias=False)

    def forward(
        self,
        backbone_hidden: Tensor,  # [..., H]
        mtp_hidden: Tensor,  # [..., H]
        draft: Tensor | None = None,  # [..., H] embedding of the drafted token
        log_prob: Tensor | None = None,  # [...] of the drafted token
    ) -> Tensor:  # [...]
        states = torch.cat([backbone_hidden.detach(), mtp_hidden.detach()], dim=-1)
        inner = self.fc1(self.norm(states))
        if self.draft is not None:
            assert draft is not None and log_prob is not None
            unit = F.rms_norm(draft.detach(), draft.shape[-1:])
            likely = log_prob.detach().clamp(min=FLOOR)[..., None].to(unit.dtype)
            inner = inner + self.draft(torch.cat([unit, likely], dim=-1))
        logit: Tensor = self.fc2(F.silu(inner))
        return logit.squeeze(-1)

    def probability(self, *states: Tensor) -> Tensor:  # as `forward` takes them -> [...]
        """That the draft is kept rightly, in float32."""
        logit: Tensor = self(*states)
        return torch.sigmoid(logit.float())

    @torch.no_grad()
    def start(self) -> None:
        """Where training starts: what the draft adds is zero."""
        if self.draft is not None:
            self.draft.weight.zero_()


def draw_drafts(
    hidden: Tensor,  # [N, H] MTP states
    weight: Tensor,  # [V, H] the LM head
    pad: int,  # never drafted
    noise: Tensor,  # [N] uniform in [0, 1)
) -> Tensor:  # [N]
    """One token a state from the draft distribution at temperature 1, by its cumulative shares."""

    def draw(states: Tensor, uniform: Tensor) -> Tensor:
        shares = torch.softmax(head_logits(states, weight, pad), dim=-1).cumsum(-1)
        at = torch.searchsorted(shares, (uniform.to(shares) * shares[:, -1])[:, None], right=True)
        return at.squeeze(-1).clamp(max=weight.shape[0] - 1)

    return over_chunks(draw, hidden, noise)


def token_log_probs(
    hidden: Tensor,  # [N, H]
    weight: Tensor,  # [V, H] the LM head
    pad: int,  # never drawn
    tokens: Tensor,  # [N]
) -> Tensor:  # fp32 [N]
    """Log-probability of every token at temperature 1, without top-k, top-p or penalties."""

    def look_up(states: Tensor, chosen: Tensor) -> Tensor:
        return torch.log_softmax(head_logits(states, weight, pad), dim=-1).gather(-1, chosen[:, None]).squeeze(-1)

    return over_chunks(look_up, hidden, tokens)
