"""vLLM's scheduler with the few things that pairs need: an even prompt, hidden PADs, prefix hashes that look ahead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core.kv_cache_utils import generate_block_hash_extra_keys, hash_block_tokens
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.core.sched.utils import check_stop
from vllm.v1.metrics.stats import RequestSpecDecodeMetrics
from vllm.v1.request import RequestStatus
from vllm.v1.spec_decode.metrics import SpecDecodingStats

from pipo.pairing import pad_to_even
from pipo.vllm.metrics import DRAFTS_A_STEP
from pipo.vllm.requests import PairOptions


class PairScheduler(Scheduler):
    """Counts tokens, PADs included. Every step of a request reads the two tokens that the last one emitted."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        model = self.vllm_config.model_config
        self.pad: int = model.hf_config.pad_token_id
        self.threshold: float = model.hf_config.confidence_threshold
        self.drafts = SpecDecodingStats.new(DRAFTS_A_STEP)
        self.hasher: Callable[[Any], list[Any]] | None = None
        if self.cache_config.enable_prefix_caching:
            hash_fn = get_hash_fn_by_name(self.cache_config.prefix_caching_hash_algo)
            self.hasher = looking_ahead(hash_fn, self.hash_block_size)
            cache_when_settled(self.kv_cache_manager.coordinator)

    def add_request(self, request: Any) -> None:
        """Fill the prompt's last pair; the front end keeps the prompt as it was given."""
        if request.request_id not in self.requests:
            even = pad_to_even(request.prompt_token_ids, self.pad)
            request.prompt_token_ids = even
            request._all_token_ids.extend(even[request.num_prompt_tokens :])
            request.num_prompt_tokens = len(even)
            request.pair_options = PairOptions.of(request.sampling_params, self.threshold)
            if self.hasher is not None:
                request._block_hasher, request.block_hashes = self.hasher, []
                request.update_block_hashes()
        super().add_request(request)
        request.spec_decode_metrics = RequestSpecDecodeMetrics.new(DRAFTS_A_STEP)

    def _update_request_with_output(
        self, request: Any, new_token_ids: list[int], is_stale: bool = False
    ) -> tuple[list[int], bool]:
        """Take token 1 and token 2; return the real ones. `max_tokens` grows with every PAD, so it counts those."""
        token1, token2 = new_token_ids
        request.append_output_token_ids(token1)
        if check_stop(request, self.max_model_len):
            self._count(request, drafted=0, accepted=0)
            return [token1], True
        request.append_output_token_ids(token2)
        drafted = int(request.pair_options.drafts)
        if token2 != self.pad:
            self._count(request, drafted, accepted=1)
            return new_token_ids, check_stop(request, self.max_model_len)
        self._count(request, drafted, accepted=0)
        request.max_tokens += 1
        if request.num_tokens >= self.max_model_len:
            request.status = RequestStatus.FINISHED_LENGTH_CAPPED
            return [token1], True
        return [token1], False

    def _count(self, request: Any, drafted: int, accepted: int) -> None:
        """A step of a request: its `num_spec_steps` are all steps, so 1 + accepted / steps is tokens per step."""
        request.spec_decode_metrics.observe(drafted, accepted, request.pair_options.detailed)
        if drafted:
            self.drafts.observe_draft(drafted, accepted)

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """A request that ends by a stop string ends in the front end, so its statistics go along with every output."""
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        for of_client in outputs.values():
            for output in of_client.outputs:
                request = self.requests.get(output.request_id)
                if request is not None and request.sampling_params.stop:
                    output.spec_decode_metrics = request.spec_decode_metrics
        return outputs

    def make_stats(self, spec_decoding_stats: Any = None, *args: Any, **kwargs: Any) -> Any:
        stats = super().make_stats(spec_decoding_stats, *args, **kwargs)
        if stats is not None and self.drafts.num_drafts:
            stats.spec_decoding_stats, self.drafts = self.drafts, SpecDecodingStats.new(DRAFTS_A_STEP)
        return stats


def looking_ahead(hash_fn: Any, block_size: int) -> Callable[[Any], list[Any]]:
    """A block's hash covers the token after it too, and is made when that token is known.

    The MTP head's entry of a block's last pair depends on the first token of the next block. A hash of the block alone
    would hand out entries that another continuation has written.
    """

    def hash_new_blocks(request: Any) -> list[Any]:
        hashes: list[Any] = []
        known = len(request.block_hashes)
        parent = request.block_hashes[-1] if known else None
        for start in range(known * block_size, request.num_tokens - block_size, block_size):
            extra, _ = generate_block_hash_extra_keys(request, start, start + block_size, 0)
            parent = hash_block_tokens(hash_fn, parent, request.all_token_ids[start : start + block_size + 1], extra)
            hashes.append(parent)
        return hashes

    return hash_new_blocks


def cache_when_settled(coordinator: Any) -> None:
    """A block enters the prefix cache when the token after it is known, which is when it has a hash."""
    stock = coordinator.cache_blocks

    def cache_blocks(request: Any, num_computed_tokens: int) -> None:
        stock(request, min(num_computed_tokens, request.num_tokens - 1))

    coordinator.cache_blocks = cache_blocks
