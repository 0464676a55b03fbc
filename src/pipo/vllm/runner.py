"""One step of the served model: the runner's forward, token 1, the draft, accept or PAD (paper sec. 3.3).

A mixin over vLLM's model runner. The runner schedules, gathers and keeps its books in tokens; a step reads whole pairs
and returns two tokens for every request, the second of them PAD where the draft was not kept.

On a GPU a step of the runner waits for the device once, for vLLM's copy of the tokens. What is added here only queues
work, but where rules on token 2 need token 1 on the host (`_histories`), and where drafts are kept for a trainer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.forward_context import get_forward_context, override_forward_context, set_forward_context
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.outputs import LogprobsTensors, SamplerOutput
from vllm.v1.sample.logits_processor.builtin import MinTokensLogitsProcessor
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from pipo.decoding.loop import Coin
from pipo.pairing import accept
from pipo.vllm.model import pair_positions
from pipo.vllm.requests import PairOptions

NO_CONFIDENCE = torch.zeros(1)
"""A coin does not look at it."""


@dataclass
class Forward:
    """What the draft needs of the forward that was just made."""

    input_ids: Tensor  # [N]
    positions: Tensor  # [N] or [3, N], of tokens
    hidden: Tensor  # [N / 2, H]
    context: Any  # attention metadata of the batch


@dataclass
class Rows:
    """The requests of the batch, in its order; made anew when the batch changes."""

    metadata: Any  # the sampling metadata that it was made with: vLLM makes a new one for a new batch
    drafts: Tensor  # bool [B]: is a draft compared at all?
    mute: Any  # bool [B], numpy: the others
    threshold: Tensor  # float32 [B]
    records: list[str | None]  # names under which drafts are kept
    coins: dict[int, Coin]


class PairRunner(GPUModelRunner):
    """Goes before the platform's own subclass of `GPUModelRunner`."""

    pair_forward: Forward | None = None
    pair_rows: Rows | None = None
    pair_drafts: dict[str, list[int]] | None = None  # of requests with a name for it; None: none are kept
    pair_coins: dict[str, Coin]

    # -- the forward ---------------------------------------------------------------------------------------------------

    def initialize_kv_cache(self, *args: Any, **kwargs: Any) -> None:
        super().initialize_kv_cache(*args, **kwargs)
        self.pair_coins = {}
        count_visible_tokens(self.input_batch.logitsprocs, self.model.pad)

    def calculate_reorder_batch_threshold(self) -> None:
        """A builder's longest decode is in pairs; here it is compared with numbers of tokens."""
        super().calculate_reorder_batch_threshold()
        if self.reorder_batch_threshold is not None:
            self.reorder_batch_threshold *= 2

    def _prepare_inputs(self, scheduler_output: Any, num_scheduled_tokens: Any) -> Any:
        if (num_scheduled_tokens % 2).any():
            raise RuntimeError(f"pairs are scheduled whole, not {scheduler_output.num_scheduled_tokens} tokens")
        return super()._prepare_inputs(scheduler_output, num_scheduled_tokens)

    def _model_forward(
        self, input_ids: Any = None, positions: Any = None, intermediate_tensors: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        out = super()._model_forward(input_ids, positions, intermediate_tensors, *args, **kwargs)
        self.pair_forward = Forward(input_ids, positions, out[::2], get_forward_context())
        return out

    @torch.inference_mode()
    def _dummy_run(self, num_tokens: int, *args: Any, **kwargs: Any) -> Any:
        """Warm up, compile and measure the MTP head too."""
        out = super()._dummy_run(num_tokens, *args, **kwargs)
        hidden = out[0][::2]
        zeros = torch.zeros(len(hidden), dtype=torch.long, device=hidden.device)  # a position that every model has
        with set_forward_context(None, self.vllm_config, num_tokens=len(hidden)):
            self.model.draft(hidden, zeros, zeros.clone())
        return out

    # -- token 1 and token 2 -------------------------------------------------------------------------------------------

    def _sample(self, logits: Tensor, spec_decode_metadata: Any) -> SamplerOutput:
        rows = self._rows()
        unfinished = self.discard_request_mask.np[: len(rows.drafts)]  # prompts of which a part is still to be read
        first = self._draw(logits, rows.metadata, unfinished, None)
        token1 = first.sampled_token_ids[:, 0]
        hidden, states = self._draft(token1, unfinished)
        if rows.mute.all():
            return self._pairs(first, first, torch.full_like(token1, self.model.pad))
        logits2 = self.model.draft_logits(states)
        second = self._draw(logits2, rows.metadata, unfinished, token1)
        token2 = second.sampled_token_ids[:, :1].long()
        if self.pair_drafts is not None:
            self._keep_drafts(token2[:, 0].tolist(), rows, unfinished)
        kept = self._accept(hidden, states, rows, unfinished)
        if self.model.draft_ids is not None:  # rules and a shortlist may leave nothing to draft
            kept &= logits2.gather(1, token2)[:, 0] > float("-inf")
        return self._pairs(first, second, token2[:, 0].where(kept, self.model.pad))

    def _draft(self, token1: Tensor, unfinished: Any) -> tuple[Tensor, Tensor]:  # [B] -> [B, H], [B, H]
        """Run the MTP head over every pair of the step, always: its cache may be read by another request later.

        Pair i is followed by the first token of pair i + 1: in the batch, sampled just now, or known of the prompt.
        Returns the backbone's and the MTP head's states of every request's last pair.
        """
        forward, self.pair_forward = self.pair_forward, None
        assert forward is not None
        batch = len(token1)
        last = self.query_start_loc.gpu[1 : batch + 1] // 2 - 1
        following = forward.input_ids[::2].roll(-1).long()
        following[last] = self._after(token1, unfinished)
        with override_forward_context(forward.context):
            states = self.model.draft(forward.hidden, following, pair_positions(forward.positions))
        return forward.hidden[last], states[last]

    def _after(self, token1: Tensor, unfinished: Any) -> Tensor:  # [B] -> [B]
        """What follows every request's last pair."""
        if not unfinished.any():
            return token1.long()
        known, rows = np.full(len(token1), -1), unfinished.nonzero()[0]
        known[rows] = self.input_batch.token_ids_cpu[rows, np.asarray(self.optimistic_seq_lens_cpu)[rows]]
        prompt = async_tensor_h2d(known, token1.device)
        return token1.long().where(prompt < 0, prompt)

    def _accept(self, hidden: Tensor, states: Tensor, rows: Rows, unfinished: Any) -> Tensor:  # bool [B]
        confidence = self.model.confidence_head.probability(hidden, states)
        kept = accept(confidence, rows.threshold)
        if rows.coins:
            tossed = np.full(len(kept), -1)
            for row, coin in rows.coins.items():
                if not unfinished[row]:
                    tossed[row] = coin(NO_CONFIDENCE, [0])[0]
            forced = async_tensor_h2d(tossed, kept.device)
            kept = kept.where(forced < 0, forced == 1)
        return kept & rows.drafts

    def _keep_drafts(self, drafts: list[int], rows: Rows, unfinished: Any) -> None:
        """Whether they are accepted or not: distillation learns from both."""
        assert self.pair_drafts is not None
        for row, name in enumerate(rows.records):
            if name is not None and not unfinished[row]:
                self.pair_drafts.setdefault(name, []).append(drafts[row])

    def _rows(self) -> Rows:
        metadata = self.input_batch.sampling_metadata
        if self.pair_rows is None or self.pair_rows.metadata is not metadata:
            self.pair_rows = self._make_rows(metadata)
        return self.pair_rows

    def _make_rows(self, metadata: Any) -> Rows:
        default = self.model.config.confidence_threshold
        ids = self.input_batch.req_ids
        options = [PairOptions.of(self.requests[i].sampling_params, default) for i in ids]
        self.pair_coins = {i: coin for i, coin in self.pair_coins.items() if i in self.requests}
        for i, one in zip(ids, options, strict=True):
            if one.force is not None and i not in self.pair_coins:
                self.pair_coins[i] = Coin(one.force, seed=len(self.pair_coins))
        drafts = [one.drafts and not self._leaves_no_draft(i) for i, one in zip(ids, options, strict=True)]
        return Rows(
            metadata=metadata,
            drafts=async_tensor_h2d(drafts, self.device, torch.bool),
            mute=~np.array(drafts),
            threshold=async_tensor_h2d([one.threshold for one in options], self.device, torch.float32),
            records=[one.record for one in options],
            coins={row: self.pair_coins[i] for row, i in enumerate(ids) if options[row].force is not None},
        )

    def _leaves_no_draft(self, request: str) -> bool:
        """May its allowed tokens and the model's shortlist have nothing in common?"""
        return self.model.draft_ids is not None and self.requests[request].sampling_params.allowed_token_ids is not None

    # -- vLLM's sampler, twice a step ----------------------------------------------------------------------------------

    def _draw(self, logits: Tensor, metadata: Any, unfinished: Any, token1: Tensor | None) -> SamplerOutput:
        """Token 1, or, where `token1` is given, token 2 after it.

        Penalties and the like see token 1 because it stands in the histories while token 2 is drawn. PADs stand there
        too, which only a PAD's own logit can notice, and that is -inf; matches of bad words are spared them. A
        request's generator is drawn from for its own tokens only, so that it draws the same alone and in any batch.
        """
        changes: dict[str, Any] = {}
        rows = self._rows()
        if metadata.generators:
            mute = unfinished if token1 is None else unfinished | rows.mute
            changes["generators"] = {row: g for row, g in metadata.generators.items() if not mute[row]}
        with self._histories(metadata, unfinished, token1) as histories:
            if metadata.bad_words_token_ids:
                pad = self.model.pad
                changes["output_token_ids"] = [[token for token in history if token != pad] for history in histories]
            return self.sampler(logits, replace(metadata, **changes) if changes else metadata)

    @contextmanager
    def _histories(self, metadata: Any, unfinished: Any, token1: Tensor | None) -> Iterator[list[list[int]]]:
        """What every request has emitted, PADs included, with token 1 at the end while token 2 is drawn."""
        histories = self.input_batch.req_output_token_ids[: len(unfinished)]
        min_tokens = [one for one in metadata.logitsprocs.non_argmax_invariant if isinstance(one, PairMinTokens)]
        read = not metadata.no_penalties or metadata.bad_words_token_ids or any(one.min_toks for one in min_tokens)
        if token1 is None or not read:
            yield histories
            return
        grown = [history for history, skip in zip(histories, unfinished, strict=True) if not skip]
        drawn = [token for token, skip in zip(token1.tolist(), unfinished, strict=True) if not skip]
        for history, token in zip(grown, drawn, strict=True):
            history.append(token)
        for one in min_tokens:
            one.update_state(None)
        try:
            yield histories
        finally:
            for history in grown:
                history.pop()

    @staticmethod
    def _pairs(first: SamplerOutput, second: SamplerOutput, token2: Tensor) -> SamplerOutput:
        """Both draws as one output of two tokens a request; logprobs of a PAD are dropped by the scheduler."""
        logprobs = None
        if first.logprobs_tensors is not None and second.logprobs_tensors is not None:
            fields = zip(first.logprobs_tensors[:3], second.logprobs_tensors[:3], strict=True)
            logprobs = LogprobsTensors(*(torch.stack(pair, dim=1).flatten(0, 1) for pair in fields))
        token1 = first.sampled_token_ids[:, 0]
        ids = torch.stack([token1, token2.to(token1.dtype)], dim=1)
        return SamplerOutput(sampled_token_ids=ids, logprobs_tensors=logprobs)

    def _bookkeeping_sync(self, *args: Any, **kwargs: Any) -> Any:
        """Unfinished prompts drew nothing, so their generators have nothing to take back."""
        generators, self.input_batch.generators = self.input_batch.generators, {}
        try:
            return super()._bookkeeping_sync(*args, **kwargs)
        finally:
            self.input_batch.generators = generators


class VisibleTokens:
    """A history's length without its PADs."""

    def __init__(self, history: list[int], pad: int) -> None:
        self.history, self.pad = history, pad

    def __len__(self) -> int:
        return len(self.history) - self.history.count(self.pad)


class PairMinTokens(MinTokensLogitsProcessor):
    """`min_tokens` counts real tokens."""

    pad: int

    def add_request(self, params: Any, prompt: Any, history: list[int]) -> Any:
        return super().add_request(params, prompt, VisibleTokens(history, self.pad))


def count_visible_tokens(processors: Any, pad: int) -> None:
    """Convert vLLM's own processor, which counts all that stands in a history."""
    for processor in processors.non_argmax_invariant:
        if type(processor) is MinTokensLogitsProcessor:
            processor.__class__, processor.pad = PairMinTokens, pad
