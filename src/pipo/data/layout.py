"""How a conversation is laid out in pairs for training: parity PADs and imitated rejections."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pydantic import Field

from pipo.pairing import IGNORE
from pipo.runtime.recipe import Section

Reject = Callable[[], bool]


class Pads(Section):
    """How rejected drafts are imitated in training."""

    scheme: Literal["shift", "split", "none"] = Field(
        default="shift", description="shift: as decoding does; split: the paper's; see `pipo.data.layout.lay_out`"
    )
    max_ratio: float = Field(default=0.7, ge=0, le=1, description="each sequence draws its ratio from U[0, max_ratio]")


@dataclass(slots=True)
class Layout:
    """Token ids and labels of equal, even length; PADs only second in a pair, never a target."""

    pad: int
    ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)

    def put(self, token: int, label: int) -> None:
        self.ids.append(token)
        self.labels.append(label)

    def fill(self) -> None:
        """PAD as the second of a pair that has only its first."""
        if len(self.ids) % 2:
            self.put(self.pad, IGNORE)


def lay_out(
    ids: Sequence[int],
    labels: Sequence[int],  # IGNORE on the prompt; not shifted
    pad: int,
    scheme: str = "none",
    ratio: float = 0.0,
    rng: random.Random | None = None,
) -> Layout:
    """Pair up one conversation.

    Every answer starts a pair, as after a prefill. `shift` imitates decoding: with probability `ratio` the second of an
    answer's pair is rejected and becomes the first of the next, so all that follows moves by one. `split` is the
    paper's augmentation (appendix C): that share of the answers' pairs (a, b) becomes (a, PAD), (b, PAD), and the
    others keep their partners.
    """
    rng = rng or random.Random(0)
    shifted = _walk(ids, labels, pad, (lambda: rng.random() < ratio) if scheme == "shift" else (lambda: False))
    return _split(shifted, ratio, rng) if scheme == "split" else shifted


def _walk(ids: Sequence[int], labels: Sequence[int], pad: int, reject: Reject) -> Layout:
    out = Layout(pad)
    answering = False
    for token, label in zip(ids, labels, strict=True):
        starts = label != IGNORE and not answering
        answering = label != IGNORE
        if len(out.ids) % 2 and (starts or (answering and reject())):
            out.fill()
        out.put(token, label)
    out.fill()
    return out


def _split(layout: Layout, ratio: float, rng: random.Random) -> Layout:
    seconds = [i for i in range(1, len(layout.ids), 2) if layout.labels[i] != IGNORE]
    chosen = set(rng.sample(seconds, round(len(seconds) * ratio)))
    out = Layout(layout.pad)
    for i, (token, label) in enumerate(zip(layout.ids, layout.labels, strict=True)):
        if i in chosen:
            out.fill()
        out.put(token, label)
        if i in chosen:
            out.fill()
    return out
