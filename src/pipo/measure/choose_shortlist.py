"""`pipo shortlist`: which tokens drafts are chosen from, by how often training answers use them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipo.convert.base import load_model, load_tokenizer
from pipo.convert.pad_token import id_list
from pipo.convert.save import check_new, save_model
from pipo.convert.shipped import resolve
from pipo.data.chat import Chat, Problem, read_chats
from pipo.data.examples import Examples
from pipo.errors import UsageError
from pipo.measure.bench.limit import speedup_limit
from pipo.model.pipo import PipoForCausalLM
from pipo.runtime.provenance import made_from

log = logging.getLogger(__name__)

HELD_OUT = 10
"""Every tenth conversation is not counted: coverage is measured on it."""

LADDER = (32, 16, 8, 4, 2)
"""Sizes that are tried unless told: the vocabulary divided by these."""


@dataclass(frozen=True)
class Size:
    """A size and what it would mean. Limits are those of the bytes that a step reads, see `speedup_limit`."""

    size: int
    coverage: float  # of the counted answers' tokens
    outside: float  # share of held-out tokens that are not in the list: at most this much acceptance is lost
    limit: float  # of the speed-up where every draft is kept
    expected: float  # where every draft in the list is kept
    pays: bool  # expected is above the limit without a list


def shortlist(
    source: str, files: Sequence[str], sizes: Sequence[int] = (), output: Path | None = None
) -> dict[str, Any]:
    """Compare sizes; write the model with the best one that pays. Returns what `--json` prints. Raises `UsageError`."""
    if output is not None:
        check_new(output, "--output")
    path = resolve(source)
    tokenizer, model = load_tokenizer(path), load_model(path)
    if not isinstance(model, PipoForCausalLM):
        raise UsageError("MODEL", f"{source} is no PIPO model", "convert it first with `pipo convert`")
    counted, held_out = count_answers(files, tokenizer, model.config.vocab_size)
    first = always(tokenizer, model)
    ranked = rank(counted, first, model.config.pad_token_id)
    wanted = _check_sizes(sizes, len(first), len(ranked)) or _ladder(len(first), model.config.vocab_size)
    rows = [judge(model, size, ranked, counted, held_out) for size in wanted]
    best = max(rows, key=lambda row: row.expected)
    without = speedup_limit(model, None)
    if output is not None:
        if not best.pays:
            problem = f"at best {best.expected:.3f} times regular decoding (with {best.size}), {without:.3f} without"
            raise UsageError("--size", problem, "try other sizes, or do without a shortlist")
        model.set_shortlist(ranked[: best.size].sort().values)
        facts = made_from(path) | {"shortlist": vars(best) | {"model": source, "data": list(files)}}
        save_model(model, tokenizer, output, **facts)
    return {
        "model": source,
        "vocab_size": model.config.vocab_size,
        "tokens_counted": int(counted.sum()),
        "tokens_held_out": int(held_out.sum()),
        "limit_without": without,
        "sizes": [vars(row) for row in rows],
        "best": best.size if best.pays else None,
    }


def count_answers(files: Sequence[str], tokenizer: Any, vocab_size: int) -> tuple[Tensor, Tensor]:  # [V], [V]
    """How often answers use each token: of the counted conversations, and of the held-out ones. Raises `UsageError`."""
    counts = torch.zeros(2, vocab_size, dtype=torch.long)
    for i, answer in enumerate(_answers(files, tokenizer)):
        counts[int(i % HELD_OUT == 0)] += torch.bincount(torch.tensor(answer, dtype=torch.long), minlength=vocab_size)
    if not counts.sum(1).all():
        raise UsageError("--data", f"fewer than two conversations in {', '.join(files)}", "see `pipo data FILE`")
    return counts[0], counts[1]


def _answers(files: Sequence[str], tokenizer: Any) -> Iterator[list[int]]:
    """The targets of every conversation; what is left out is named in the log."""
    examples = Examples(tokenizer)
    for file in files:
        for number, chat in read_chats(file):
            made = examples.rows(chat) if isinstance(chat, Chat) else chat.reason
            if isinstance(made, str):
                log.warning("left out %s", Problem(file, number, made))
            else:
                yield [token for row in made for start, stop, _ in row.answers for token in row.ids[start:stop]]


def always(tokenizer: Any, model: Any) -> set[int]:
    """What a list must hold: special tokens and whatever ends an answer, without PAD."""
    ids = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder, *id_list(model.generation_config.eos_token_id)}
    return {i for i in ids if i < model.config.vocab_size} - {model.config.pad_token_id}


def rank(counts: Tensor, first: set[int], pad: int | None) -> Tensor:  # [V] -> ids [V-1]
    """Every token but PAD: `first`, then by frequency; of two equally frequent ones the lower id, the earlier merge."""
    weight = counts.clone()
    weight[sorted(first)] += counts.sum() + 1
    ranked = weight.sort(descending=True, stable=True).indices
    return ranked if pad is None else ranked[ranked != pad]


def judge(model: Any, size: int, ranked: Tensor, counted: Tensor, held_out: Tensor) -> Size:
    """What a list of the first `size` tokens would mean."""
    seen, unseen = (float(counts[ranked[:size]].sum() / counts.sum()) for counts in (counted, held_out))
    expected = speedup_limit(model, size, acceptance=unseen)
    return Size(size, seen, 1 - unseen, speedup_limit(model, size), expected, expected > speedup_limit(model, None))


def _check_sizes(sizes: Sequence[int], fewest: int, most: int) -> list[int]:
    for size in sizes:
        if not fewest <= size <= most:
            problem = f"{size} is not from {fewest} (special tokens and ends of answers) to {most} (all but PAD)"
            raise UsageError("--size", problem, "choose one in between")
    return sorted(set(sizes))


def _ladder(fewest: int, vocab_size: int) -> list[int]:
    return sorted({max(fewest, vocab_size // part) for part in LADDER})
