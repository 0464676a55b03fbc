"""Which token is PAD: one that neither ends a turn nor stands in a prompt."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from pipo.data.chat import turn_end
from pipo.errors import UsageError

SPARE_NAMES = re.compile(r"pad|reserved|unused|empty", re.IGNORECASE)
NEW_TOKEN = "<|pair_pad|>"


def choose_pad(tokenizer: Any, turn_ends: Iterable[int]) -> int:
    """The tokenizer's pad where it ends no turn and stands in no prompt, else a reserved special token that no template
    uses, else a new one.

    Sets it as the tokenizer's pad. A new token's id may lie beyond the embedding's rows.
    """
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id in {*turn_ends, tokenizer.bos_token_id}:
        spare = _spare_token(tokenizer)
        if spare is None:
            tokenizer.add_special_tokens({"pad_token": NEW_TOKEN})
        else:
            tokenizer.pad_token = spare
    return int(tokenizer.pad_token_id)


def _spare_token(tokenizer: Any) -> str | None:
    template = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else ""
    taken = {tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token}
    for _, token in sorted(tokenizer.added_tokens_decoder.items()):
        name = str(token)
        if token.special and name not in taken and name not in template and SPARE_NAMES.search(name):
            return name
    return None


def turn_ends(tokenizer: Any, generation_config: Any) -> list[int]:
    """The ids that end an answer: first the one that the chat template writes behind it, which training teaches, then
    the model's own; where neither is there, the tokenizer's EOS. Raises `UsageError` where there is nothing.
    """
    ends = id_list(generation_config.eos_token_id)
    if getattr(tokenizer, "chat_template", None):
        ends = [tokenizer.convert_tokens_to_ids(turn_end(tokenizer)), *ends]
    ends = ends or id_list(tokenizer.eos_token_id)
    if not ends:
        raise UsageError("eos_token_id", "nothing ends an answer", "give the tokenizer an eos_token")
    return list(dict.fromkeys(ends))


def id_list(ids: int | list[int] | None) -> list[int]:
    """One id, several or none -> a list."""
    return [] if ids is None else list(ids) if isinstance(ids, (list, tuple)) else [ids]


def without(ids: int | list[int] | None, pad: int | None) -> int | list[int] | None:
    """EOS ids less the PAD, which never ends a sequence."""
    left = [i for i in id_list(ids) if i != pad]
    return left[0] if len(left) == 1 else left or None
