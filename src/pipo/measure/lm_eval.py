"""PIPO models in lm-evaluation-harness, as its model `pipo`.

The harness finds models by name among those that were imported, so its command line is started through this module,
which takes the same arguments: `python -m pipo.measure.lm_eval run --model pipo --model_args
pretrained=DIR --tasks ...`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor

from pipo.data.chat import render
from pipo.decoding.engine import LocalEngine, batches, pick_device
from pipo.decoding.options import Sampling
from pipo.decoding.reader import position_limit
from pipo.errors import UsageError
from pipo.model.head import head_logits, over_chunks
from pipo.pairing import IGNORE, accepts_none, check_threshold, pad_to_even, token1_targets, token2_targets

MAX_NEW_TOKENS = 256  # where a task names none
KNOWN = {"until", "max_gen_toks", "do_sample", "temperature", "top_p", "top_k"}
Request = tuple[tuple[str, str], list[int], list[int]]
"""((context, continuation), ids of the context, ids of the continuation)"""


@register_model("pipo")
class PipoLM(TemplateLM):
    """generate_until is PIPO decoding at `threshold` (default: the model's own).

    loglikelihood is the probability of a continuation that starts a pair, as an answer does: its 1st, 3rd, ... token
    are scored by the backbone, its 2nd, 4th, ... by the MTP head given the token before. That is what decoding at
    threshold 0 draws from (at temperature 1, all tokens). With `threshold` above 1 every token is alone in its pair
    and the backbone's. The two differ: PIPO's distribution depends on how a text is paired.
    """

    def __init__(
        self,
        pretrained: str,
        threshold: float | None = None,
        batch_size: int | str = 8,
        dtype: str = "auto",
        device: str | None = None,
        seed: int = 0,
        enable_thinking: bool | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__()
        for name in unknown.keys() - {"max_batch_size"}:  # the harness always passes that one
            raise UsageError(f"--model_args {name}", "is no option of pipo models", "leave it out")
        self.threshold = None if threshold is None else check_threshold(threshold)
        self.batch_size, self.seed, self.thinking = _count(batch_size), int(seed), enable_thinking
        self.engine = LocalEngine.load(pretrained, dtype=dtype, device=pick_device(device or "auto"))
        if not self.engine.is_pipo:
            raise UsageError("--model_args pretrained", f"{pretrained} is no PIPO model", "use --model hf")
        self.model, self.tokenizer, self.name = self.engine.model, self.engine.tokenizer, str(pretrained)
        self.alone = self.threshold is not None and accepts_none(self.threshold)

    @property
    def eot_token_id(self) -> int:
        """What conditions a text without a context."""
        return int(self.tokenizer.eos_token_id)

    @property
    def max_length(self) -> int:
        """Tokens that the model's positions hold: two each, or one where every token is alone."""
        return (position_limit(self.model) or 2**20) * (1 if self.alone else 2)

    @property
    def tokenizer_name(self) -> str:
        return self.name.replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as text."""
        options = {"add_generation_prompt": add_generation_prompt, "thinking": self.thinking}
        return render(self.tokenizer, chat_history, **options)  # type: ignore[arg-type]

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Ids; the tokenizer's first token is not put before a text that has it."""
        if add_special_tokens is None:
            begin = self.tokenizer.bos_token
            add_special_tokens = not (begin and string.startswith(begin))
        ids: list[int] = self.tokenizer(string, add_special_tokens=add_special_tokens)["input_ids"]
        return ids

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Answers in the order of the requests; equal options are decoded together."""
        orders = [(request.args[1], number, request.args[0]) for number, request in enumerate(requests)]
        orders.sort(key=lambda order: (repr(order[0]), len(order[2])))
        found: dict[int, str] = {}
        for _, group in groupby(orders, key=lambda order: repr(order[0])):
            for batch in batches(group, self.batch_size):
                texts = self._complete(batch[0][0], [order[2] for order in batch], [order[1] for order in batch])
                found |= {order[1]: text for order, text in zip(batch, texts, strict=True)}
        return [found[number] for number in range(len(requests))]

    def _complete(self, options: dict[str, Any], contexts: Sequence[str], numbers: Sequence[int]) -> list[str]:
        until, sampling, new_tokens = _options(options)
        room = self.max_length - new_tokens
        if room < 1:
            raise UsageError("max_gen_toks", f"{new_tokens} leaves no room for a prompt", "use fewer")
        found = self.engine.complete(
            [self.tok_encode(context)[-room:] for context in contexts],
            sampling=sampling,
            max_new_tokens=new_tokens,
            threshold=self.threshold,
            seeds=[self.seed + number for number in numbers],
            stop_strings=until,
        )
        return [_cut(one.text, until) for one in found]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Of whole texts, in windows of the model's length."""
        totals = []
        for request in requests:
            ids = self.tok_encode(request.args[0])
            rolling = get_rolling_token_windows(ids, self.prefix_token_id, self.max_length - 1, 1)
            windows = [(("", ""), *make_disjoint_window(window)) for window in rolling]
            totals.append(sum(score for score, _ in self._loglikelihood_tokens(windows)))
        return totals

    def _loglikelihood_tokens(self, requests: Sequence[Request], **_: Any) -> list[tuple[float, bool]]:
        """(log probability, whether every token is the likeliest) of each continuation."""
        order = sorted(range(len(requests)), key=lambda i: -len(requests[i][1]) - len(requests[i][2]))
        found: dict[int, tuple[float, bool]] = {}
        for batch in batches(order, self.batch_size):
            scores = self._score([requests[i] for i in batch])
            found |= dict(zip(batch, scores, strict=True))
        return [found[i] for i in range(len(requests))]

    @torch.no_grad()
    def _score(self, requests: Sequence[Request]) -> list[tuple[float, bool]]:
        """One pass; rows are filled up at their end, which a causal model does not see."""
        rows = [self._layout(context, continuation) for _, context, continuation in requests]
        width, pad = max(len(ids) for ids, _ in rows), self.model.config.pad_token_id
        ids = torch.tensor([ids + [pad] * (width - len(ids)) for ids, _ in rows], device=self.model.device)
        labels = torch.tensor([row + [IGNORE] * (width - len(row)) for _, row in rows], device=self.model.device)
        out = self.model(input_ids=ids)
        first = self._head(out.backbone_hidden_states[:, :-1], token1_targets(labels))
        second = self._head(out.mtp_hidden_states, token2_targets(labels))
        scores = (first[0] + second[0]).tolist()
        return list(zip(scores, (first[1] & second[1]).tolist(), strict=True))

    def _layout(self, context: list[int], continuation: list[int]) -> tuple[list[int], list[int]]:
        """Whole pairs, and labels on the continuation. What does not fit is cut off the context's beginning."""
        pad = self.model.config.pad_token_id
        room = self.max_length - len(continuation)
        head = pad_to_even(context[-room:] if room > 0 else context[-1:], pad)
        if self.alone:
            tail = [token for one in continuation for token in (one, pad)]
            labels = [label for one in continuation for label in (one, IGNORE)]
        else:
            tail, labels = pad_to_even(continuation, pad), pad_to_even(continuation, IGNORE)
        return head + tail, [IGNORE] * len(head) + labels

    def _head(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:  # [B, L, H], [B, L] -> [B], bool [B]
        """Sum of log probabilities over a row's targets, PAD left out of the distribution; are all the likeliest?"""
        valid = targets != IGNORE
        weight, pad = self.model.lm_head.weight, self.model.config.pad_token_id

        def score(states: Tensor, wanted: Tensor) -> Tensor:  # [C, H], [C] -> [C, 2]
            logits = head_logits(states, weight, pad)
            chosen = logits.log_softmax(-1).gather(-1, wanted[:, None])[:, 0]
            return torch.stack([chosen, (logits.argmax(-1) == wanted).float()], dim=-1)

        found = over_chunks(score, hidden[valid], targets[valid])
        scores = torch.zeros(targets.shape, device=found.device).masked_scatter(valid, found[:, 0])
        likeliest = torch.ones_like(valid).masked_scatter(valid, found[:, 1].bool())
        return scores.sum(-1), likeliest.all(-1)


def _count(batch_size: int | str) -> int:
    if not str(batch_size).isdecimal() or int(batch_size) < 1:
        raise UsageError("--batch_size", f"{batch_size!r} is no number of 1 or more", "give one")
    return int(batch_size)


def _options(options: dict[str, Any]) -> tuple[list[str], Sampling, int]:
    """A request's stop strings, sampling (greedy unless it says otherwise) and longest answer."""
    for name in options.keys() - KNOWN:
        raise UsageError(f"gen_kwargs {name}", "is not supported by pipo models", f"use {', '.join(sorted(KNOWN))}")
    until = options.get("until") or []
    temperature = float(options.get("temperature", 1.0)) if options.get("do_sample", False) else 0.0
    sampling = Sampling.of(
        temperature=temperature, top_p=float(options.get("top_p", 1.0)), top_k=int(options.get("top_k", 0))
    )
    texts = [until] if isinstance(until, str) else list(until)
    return texts, sampling, int(options.get("max_gen_toks", MAX_NEW_TOKENS))


def _cut(text: str, until: Sequence[str]) -> str:
    """The text before the first of the stop strings."""
    ends = [place for place in map(text.find, until) if place >= 0]
    return text[: min(ends)] if ends else text


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except UsageError as error:
        sys.exit(f"error: {error}")
