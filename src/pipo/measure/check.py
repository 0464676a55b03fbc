"""`pipo check`: the trainer's forward, the local decoder and vLLM agree on a checkpoint, token for token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from pipo.decoding.engine import Completion, LocalEngine
from pipo.decoding.options import GREEDY
from pipo.decoding.reader import PairReader
from pipo.errors import UsageError
from pipo.model.shortlist import restrict
from pipo.pairing import IGNORE, pad_to_even

THRESHOLDS = (0.0, 0.5, 2.0)
PROMPT_LENGTHS = (1, 12, 33)
NEW_TOKENS = 32
VLLM_PROMPT_LENGTHS = (1, 12, 33, 128, 301)
VLLM_CHUNK, VLLM_LENGTH = 256, 512
TIES = {torch.float32: 1e-3}
"""Two tokens whose logits are closer than this are equally right; 0.3 in lower precisions."""


@dataclass(frozen=True)
class CheckReport:
    """`max_abs_diff` is between cached and uncached logits."""

    ok: bool
    max_abs_diff: float
    tokens_compared: int
    paths: list[str]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@torch.no_grad()
def check(source: str, *, dtype: str = "float32", device: str = "cpu") -> CheckReport:
    """Greedy answers of the cached, batched decoder against the argmax of the uncached trainer forward."""
    engine = _load(source, dtype, device)
    prompts = _prompts(engine, PROMPT_LENGTHS)
    compared, wrong, worst = 0, 0, 0.0
    for threshold in THRESHOLDS:
        done = engine.complete(
            prompts, sampling=GREEDY, max_new_tokens=NEW_TOKENS, threshold=threshold, ignore_eos=True
        )
        for prompt, completion in zip(prompts, done, strict=True):
            wrong_here, worst_here = _compare(engine.model, prompt, completion)
            compared, wrong, worst = compared + len(completion.token_ids), wrong + wrong_here, max(worst, worst_here)
    return CheckReport(wrong == 0, worst, compared, ["trainer forward", "local decoder (cached, batch of 3)"])


@torch.no_grad()
def check_vllm(source: str, *, dtype: str = "float32") -> CheckReport:
    """Greedy answers of vLLM against the local decoder's, token for token: chunked prefill, then cached prefixes.

    Where they part, vLLM's must be as likely as the trainer's argmax, up to a tie.
    """
    from pipo.vllm.engine import VllmEngine

    engine = _load(source, dtype, "cpu")
    served = VllmEngine.load(source, dtype=dtype, max_model_len=VLLM_LENGTH, max_num_batched_tokens=VLLM_CHUNK)
    try:
        prompts = _prompts(engine, VLLM_PROMPT_LENGTHS)
        compared, wrong, worst = 0, 0, 0.0
        for threshold in THRESHOLDS:
            asked: dict[str, Any] = {"max_new_tokens": NEW_TOKENS, "threshold": threshold, "ignore_eos": True}
            theirs = served.complete(prompts, sampling=GREEDY, **asked)
            ours = engine.complete(prompts, sampling=GREEDY, **asked)
            for prompt, one, other in zip(prompts, theirs, ours, strict=True):
                compared += len(one.token_ids)
                if one.token_ids != other.token_ids:
                    wrong_here, worst_here = _compare(engine.model, prompt, one)
                    wrong, worst = wrong + wrong_here, max(worst, worst_here)
    finally:
        served.close()
    return CheckReport(wrong == 0, worst, compared, ["local decoder", "vLLM (batched, chunked prefill, prefix cache)"])


def _load(source: str, dtype: str, device: str) -> LocalEngine:
    engine = LocalEngine.load(source, dtype=dtype, device=device)
    if not engine.is_pipo:
        raise UsageError("MODEL", f"{source} is no PIPO model", "convert it first with `pipo convert`")
    return engine


def _prompts(engine: LocalEngine, lengths: Sequence[int]) -> list[list[int]]:
    """Ordinary tokens, drawn with a fixed seed; odd and even lengths."""
    special = {engine.model.config.pad_token_id, *engine.tokenizer.all_special_ids}
    ordinary = [i for i in range(min(len(engine.tokenizer), engine.model.config.vocab_size)) if i not in special]
    draw = torch.Generator().manual_seed(0)
    return [[ordinary[i] for i in torch.randint(len(ordinary), (n,), generator=draw).tolist()] for n in lengths]


def _compare(model: Any, prompt: Sequence[int], completion: Completion) -> tuple[int, float]:
    """Tokens that differ, and the largest difference of logits."""
    pad = model.config.pad_token_id
    even = pad_to_even(prompt, pad)
    pairs = [(slot.token1, slot.draft if slot.accepted else pad) for slot in completion.slots]
    ids = torch.tensor([[*even, *(token for pair in pairs for token in pair)]], device=model.device)
    drafts = [IGNORE if slot.draft is None else slot.draft for slot in completion.slots]
    known = torch.tensor([[IGNORE] * (len(even) // 2 - 1) + drafts], device=model.device)
    out = model(input_ids=ids, drafts=known, return_logits=True)
    start, tie = len(even) // 2 - 1, TIES.get(model.dtype, 0.3)
    logits1, logits2 = out.logits[0, start:-1].float(), restrict(out.mtp_logits[0, start:].float(), model.draft_ids)
    cached1, cached2 = _replay(model, prompt, ids[0, len(even) :].view(-1, 2))
    worst = max(_difference(logits1, cached1, pad), _difference(logits2, cached2, pad))
    wrong = sum(_differs(logits1[i], slot.token1, pad, tie) for i, slot in enumerate(completion.slots))
    drafted = [(i, slot.draft) for i, slot in enumerate(completion.slots) if slot.draft not in (None, pad)]
    wrong += sum(_differs(logits2[i], draft, pad, tie) for i, draft in drafted if draft is not None)
    confidence = torch.sigmoid(out.confidence_logits[0, start:].float()).tolist()
    wrong += sum(
        abs(confidence[i] - slot.confidence) > tie
        for i, slot in enumerate(completion.slots)
        if slot.confidence is not None
    )
    return wrong, worst


def _replay(model: Any, prompt: Sequence[int], pairs: Tensor) -> tuple[Tensor, Tensor]:  # [n, 2] -> [n, V] x 2
    """The decoder's logits when it is made to emit `pairs`."""
    reader = PairReader(model)
    hidden = reader.prefill([prompt])
    rows1, rows2 = [], []
    for pair in pairs:
        states = reader.draft(pair[:1])
        rows1.append(reader.logits(hidden))
        rows2.append(reader.draft_logits(states))
        hidden = reader.step(pair[None])
    return torch.cat(rows1).float(), torch.cat(rows2).float()


def _difference(a: Tensor, b: Tensor, pad: int) -> float:
    delta = torch.where(a == b, 0, (a - b).abs())  # -inf outside a shortlist
    delta[:, pad] = 0  # never sampled: the decoder sets it to -inf
    return float(delta.max())


def _differs(logits: Tensor, token: int, pad: int, tie: float) -> bool:
    logits = logits.index_fill(0, torch.tensor([pad], device=logits.device), float("-inf"))
    return bool(logits.max() - logits[token] > tie)
