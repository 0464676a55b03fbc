"""What a trainer reads: examples of conversations, in tokens or in pairs, and prompts."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from pipo.data.chat import NO_ANSWER, Problem
from pipo.data.examples import Examples
from pipo.data.layout import lay_out
from pipo.data.store import Store, open_store
from pipo.errors import UsageError
from pipo.pairing import IGNORE


class ChatDataset(Dataset[dict[str, list[int]]]):
    """Tokenized conversations, an answer of each a row. `problems` names every line that is left out, even in part.

    `shared`: answers share a row where what is read before one begins with all that was read up to the one before.
    Their targets and losses are the same, for a model that reads a token at a position. In pairs they are not: how an
    earlier answer was paired is not known from the prompt.
    """

    def __init__(
        self,
        files: Sequence[str],
        tokenizer: Any,
        *,
        max_length: int,
        prefix: str = "",
        template: dict[str, Any] | None = None,
        workers: int | None = None,
        shared: bool = False,
    ) -> None:
        examples = Examples(tokenizer, template=template, prefix=prefix)
        self.store = open_store(files, examples, workers=workers)
        fits = self.store.answers[:, 2] <= max_length
        self.answers: NDArray[np.int32] = self.store.answers[fits]  # [A, 4], see `Store`
        first = np.flatnonzero(np.diff(self.answers[:, 0], prepend=-1)) if shared else np.arange(len(self.answers))
        self.ends = np.append(first, len(self.answers))  # [N + 1]: row i has the answers from ends[i] to ends[i + 1]
        asked = (self.store.problem(int(row), NO_ANSWER) for row in self.store.unanswered())
        long = _too_long(self.store, fits, max_length)
        self.problems = self.store.in_order(chain(self.store.problems, asked, long))
        if not len(self):
            raise _nothing("nothing to train on in", files, self.problems)

    @property
    def lengths(self) -> NDArray[np.int64]:  # [N]
        """Tokens in each row, PADs not counted."""
        return self.answers[self.ends[1:] - 1, 2].astype(np.int64)

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        answers = self.answers[self.ends[index] : self.ends[index + 1]].tolist()
        ids = self.store.row(answers[-1][0], answers[-1][2])
        labels = [IGNORE] * len(ids)
        for _, start, stop, _ in answers:
            labels[start:stop] = ids[start:stop]
        return {"input_ids": ids, "labels": labels}


class PairDataset(Dataset[dict[str, Any]]):
    """A `ChatDataset` laid out in pairs; the PADs are drawn anew every epoch.

    Items depend on (seed, epoch, index) alone, so that a resumed run sees what an unbroken one sees. `noise` adds
    `draft_noise`, the uniform numbers that a pair's draft is drawn with (`PipoForCausalLM.forward`).
    """

    def __init__(
        self, chats: ChatDataset, pad: int, *, scheme: str, max_ratio: float, seed: int, noise: bool = False
    ) -> None:
        self.chats, self.pad, self.scheme, self.max_ratio, self.seed = chats, pad, scheme, max_ratio, seed
        self.noise = noise
        self.epoch = 0

    @property
    def lengths(self) -> NDArray[np.int64]:
        return self.chats.lengths

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.chats)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.chats[index]
        rng = random.Random(f"{self.seed}/{self.epoch}/{index}")
        ratio = rng.uniform(0, self.max_ratio)
        layout = lay_out(item["input_ids"], item["labels"], self.pad, self.scheme, ratio, rng)
        row: dict[str, Any] = {"input_ids": layout.ids, "labels": layout.labels}
        if self.noise:
            row["draft_noise"] = [rng.random() for _ in range(len(layout.ids) // 2 - 1)]
        return row


class PromptDataset(Dataset[dict[str, list[int]]]):
    """Tokenized prompts: each conversation up to its last answer. `problems` names every line that is left out."""

    def __init__(
        self,
        files: Sequence[str],
        tokenizer: Any,
        *,
        max_length: int,
        prefix: str = "",
        template: dict[str, Any] | None = None,
        workers: int | None = None,
    ) -> None:
        examples = Examples(tokenizer, template=template, prefix=prefix, prompts=True)
        self.store = open_store(files, examples, workers=workers)
        lengths = self.store.lengths()
        self.rows = np.flatnonzero(lengths <= max_length)
        self.lengths: NDArray[np.int64] = lengths[self.rows]
        long = (
            self.store.problem(row, f"{lengths[row]} tokens, more than max_length {max_length}")
            for row in np.flatnonzero(lengths > max_length)
        )
        self.problems = self.store.in_order(chain(self.store.problems, long))
        if not len(self):
            raise _nothing("no prompt in", files, self.problems)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return {"prompt": self.store.row(int(self.rows[index]))}


def _too_long(store: Store, fits: NDArray[np.bool_], max_length: int) -> list[Problem]:
    """The first answer of each line that is too long; later ones are longer still."""
    found: dict[tuple[int, int], Problem] = {}
    for row, _, stop, turn in store.answers[~fits].tolist():
        reason = f"message {turn + 1}: {stop} tokens, more than max_length {max_length}"
        found.setdefault((int(store.rows[row, 1]), int(store.rows[row, 2])), store.problem(row, reason))
    return list(found.values())


def _nothing(what: str, files: Sequence[str], problems: Sequence[Problem]) -> UsageError:
    first = f", first: {problems[0]}" if problems else ""
    return UsageError("data", f"{what} {', '.join(files)}{first}", "see `pipo data FILE`")
