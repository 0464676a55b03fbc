"""`pipo chat`: a conversation on the terminal, streamed, drafts coloured."""

from __future__ import annotations

import random
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipo_cli import options
from pipo_cli.errors import usage_line
from pipo_cli.options import Dtype

if TYPE_CHECKING:
    from rich.console import Console

    from pipo.decoding.engine import LocalEngine
    from pipo.decoding.options import Sampling
    from pipo.pairing import Slot


@options.with_sampling
def chat(
    model: options.ModelArgument,
    threshold: options.ThresholdOption = None,
    max_new_tokens: options.MaxNewTokensOption = 1024,
    sampling: Any = None,
    seed: options.SeedOption = None,
    dtype: options.DtypeOption = Dtype.auto,
    device: options.DeviceOption = "auto",
) -> None:
    """Talk with a model. Ctrl-C stops an answer, Ctrl-D leaves."""
    from rich.console import Console

    from pipo_cli.drafts import COLOURS

    threshold = options.check_threshold(threshold)
    engine = options.load_engine(model, dtype, device, threshold)
    console = Console(highlight=False)
    draws = random.Random(seed)
    console.print(f"{COLOURS} /reset starts anew, /quit or Ctrl-D leaves.", soft_wrap=True)
    Conversation(engine, sampling, max_new_tokens, threshold, draws, console).run()


@dataclass
class Conversation:
    """What was said so far, and how to go on."""

    engine: LocalEngine
    sampling: Sampling
    max_new_tokens: int
    threshold: float | None
    draws: random.Random
    console: Console
    messages: list[dict[str, Any]] = field(default_factory=list)

    def run(self) -> None:
        """Read and answer until /quit or the end of input."""
        with suppress(ImportError):
            import readline  # noqa: F401 - line editing and history for input()
        while True:
            try:
                said = input("> ").strip()
            except EOFError:
                break
            except KeyboardInterrupt:
                self.console.print()
                continue
            if said == "/quit":
                break
            if said == "/reset":
                self.messages.clear()
            elif said.startswith("/"):
                self.console.print("/reset or /quit", style="red")
            elif said:
                self.answer(said)

    def answer(self, said: str) -> None:
        """Print the answer as it comes. One that is stopped stays in the conversation as far as it came."""
        from pipo.errors import UsageError

        self.messages.append({"role": "user", "content": said})
        slots: list[Slot] = []
        try:
            self._decode(slots)
        except KeyboardInterrupt:
            self.console.print(" (stopped)", style="dim", end="")
        except UsageError as error:
            self.messages.pop()
            self.console.print(f"{usage_line(error)}, or /reset", style="red", soft_wrap=True, markup=False)
            return
        self._finish(slots)

    def _decode(self, slots: list[Slot]) -> None:
        from pipo_cli.drafts import DraftPainter

        painter = DraftPainter(self.engine.tokenizer, self.console)

        def show(_: int, slot: Slot) -> None:
            slots.append(slot)
            self.console.print(painter.paint(slot), end="", soft_wrap=True)

        try:
            self.engine.complete(
                [self.engine.encode(self.messages)],
                sampling=self.sampling,
                max_new_tokens=self.max_new_tokens,
                threshold=self.threshold,
                seeds=[self.draws.randrange(2**32)],
                on_slot=show,
            )
        finally:
            self.console.print(painter.finish(), end="", soft_wrap=True)

    def _finish(self, slots: list[Slot]) -> None:
        from pipo.decoding.text_stream import decode
        from pipo_cli.drafts import legend

        content = decode(self.engine.tokenizer, [token for slot in slots for token in slot.tokens])
        self.messages.append({"role": "assistant", "content": content})
        self.console.print()
        self.console.print(legend(slots), style="dim")
