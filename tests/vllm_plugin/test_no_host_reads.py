"""A step waits for the device once, in vLLM's own bookkeeping; what PIPO adds to it only queues work.

Meta tensors stand for the device: they cannot be read. vLLM's sampler runs on them too, without its kernels for CPUs.
"""

from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("vllm", reason="vLLM is not installed")

from vllm import SamplingParams
from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.sample.logits_processor import LogitsProcessors
from vllm.v1.sample.metadata import SamplingMetadata
from vllm.v1.sample.ops.topk_topp_sampler import TopKTopPSampler
from vllm.v1.sample.sampler import Sampler

from pipo.model.confidence import ConfidenceHead
from pipo.vllm.pair_kv import pair_metadata
from pipo.vllm.runner import Forward, PairRunner

REQUESTS, HIDDEN, VOCAB, PAD = 4, 16, 50, 2
TOKENS = 2 * REQUESTS


def on_device(*shape, dtype=torch.float32):
    return torch.zeros(*shape, dtype=dtype, device="meta")


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch):
    monkeypatch.setattr(Sampler, "greedy_sample", staticmethod(lambda logits: logits.argmax(dim=-1)))
    monkeypatch.setattr(TopKTopPSampler, "forward_cpu", TopKTopPSampler.forward_native)


class Waits(TorchDispatchMode):
    """Notes what would make the host wait for the device, and goes on with zeros."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name == "_local_scalar_dense" and args[0].is_meta:
            self.seen.append(name)
            return 0
        if name in ("_to_copy", "copy_"):
            source = args[0] if name == "_to_copy" else args[1]
            target = torch.device(kwargs.get("device") or args[0].device)
            queued = kwargs.get("non_blocking") or args[2:3] == (True,)
            if source.device.type != target.type and (source.is_meta or not queued):
                self.seen.append(name)
            if source.is_meta and target.type == "cpu":
                return torch.zeros(source.shape, dtype=kwargs.get("dtype") or source.dtype)
        if name in ("nonzero", "masked_select", "equal") and args[0].is_meta:
            self.seen.append(name)
        if name in ("index", "index_put_") and any(i is not None and i.dtype == torch.bool for i in args[1]):
            self.seen.append(f"{name} by a mask")
        return func(*args, **kwargs)


class Builds(TorchFunctionMode):
    """Notes tensors that are made of lists on the device: a copy of memory that is not pinned."""

    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.tensor and torch.device(kwargs.get("device") or "cpu").type == "meta":
            self.seen.append("tensor")
        return func(*args, **kwargs)


@contextmanager
def watched():
    with Waits() as waits, Builds(waits.seen):
        yield waits.seen


class Model(nn.Module):
    pad, draft_ids = PAD, None
    config = SimpleNamespace(confidence_threshold=0.5)

    def __init__(self):
        super().__init__()
        with torch.device("meta"):
            self.confidence_head = ConfidenceHead(HIDDEN, nn.LayerNorm(2 * HIDDEN))

    def draft(self, hidden, following, positions):
        return hidden + (following + positions)[:, None]

    def draft_logits(self, states):
        return on_device(len(states), VOCAB)


def sampling(**changes):
    """A batch's, greedy."""
    facts = {
        "temperature": None,
        "all_greedy": True,
        "all_random": False,
        "top_p": None,
        "top_k": None,
        "generators": {},
        "max_num_logprobs": None,
        "no_penalties": True,
        "prompt_token_ids": None,
        "frequency_penalties": None,
        "presence_penalties": None,
        "repetition_penalties": None,
        "output_token_ids": [[] for _ in range(REQUESTS)],
        "allowed_token_ids_mask": None,
        "bad_words_token_ids": {},
        "logitsprocs": LogitsProcessors(),
    }
    return SamplingMetadata(**facts | changes)


def penalties():
    """Of every kind."""
    each = {f"{kind}_penalties": on_device(REQUESTS) for kind in ("frequency", "presence", "repetition")}
    return {"no_penalties": False, "prompt_token_ids": on_device(REQUESTS, 4, dtype=torch.long)} | each


def runner(metadata, unfinished=(), **options):
    """In the middle of a step, with a batch that it has not seen before."""
    out = object.__new__(PairRunner)
    out.model, out.device, out.sampler = Model(), torch.device("meta"), Sampler()
    mask = np.zeros(REQUESTS, bool)
    mask[list(unfinished)] = True
    out.discard_request_mask = SimpleNamespace(np=mask)
    out.query_start_loc = SimpleNamespace(gpu=on_device(REQUESTS + 1, dtype=torch.int32))
    out.optimistic_seq_lens_cpu = torch.full((REQUESTS,), 4, dtype=torch.int32)
    ids = on_device(TOKENS, dtype=torch.int32)
    out.pair_forward = Forward(ids, on_device(TOKENS, dtype=torch.long), on_device(REQUESTS, HIDDEN), None)
    out.pair_coins = {}
    names = [str(i) for i in range(REQUESTS)]
    out.input_batch = SimpleNamespace(
        token_ids_cpu=np.zeros((REQUESTS, 32), np.int32),
        req_output_token_ids=metadata.output_token_ids,
        req_ids=names,
        sampling_metadata=metadata,
    )
    out.requests = {name: SimpleNamespace(sampling_params=SamplingParams(extra_args=dict(options))) for name in names}
    return out


def waits(one):
    with watched() as seen:
        out = one._sample(on_device(REQUESTS, VOCAB), None)
    assert out.sampled_token_ids.shape == (REQUESTS, 2) and out.sampled_token_ids.is_meta
    return seen


@pytest.mark.parametrize(
    ("unfinished", "options"),
    [
        ((), {}),
        ((1, 3), {}),
        ((), {"force_acceptance": 1.0}),
        ((0,), {"force_acceptance": 0.5}),
        ((), {"confidence_threshold": 2.0}),
    ],
    ids=["decodes", "prompts that are still read", "forced", "both", "no drafts"],
)
def test_a_step_waits_for_nothing(unfinished, options):
    assert waits(runner(sampling(), unfinished, **options)) == []


def test_sampled_steps_wait_for_nothing():
    metadata = sampling(temperature=on_device(REQUESTS), all_greedy=False, all_random=True)
    assert waits(runner(metadata)) == []


@pytest.mark.parametrize("unfinished", [(), (2,)])
def test_rules_on_token_2_read_token_1_once(unfinished):
    """Histories are lists on the host."""
    assert waits(runner(sampling(**penalties()), unfinished)) == ["_to_copy"]


def test_metadata_in_pairs_waits_for_nothing():
    tokens = CommonAttentionMetadata(
        query_start_loc=on_device(REQUESTS + 1, dtype=torch.int32),
        query_start_loc_cpu=torch.arange(REQUESTS + 1) * 2,
        seq_lens=on_device(REQUESTS, dtype=torch.int32),
        num_reqs=REQUESTS,
        num_actual_tokens=TOKENS,
        max_query_len=2,
        max_seq_len=8,
        block_table_tensor=on_device(REQUESTS, 4, dtype=torch.int32),
        slot_mapping=on_device(TOKENS, dtype=torch.long),
        positions=on_device(TOKENS, dtype=torch.long),
    )
    with watched() as seen:
        assert pair_metadata(tokens).slot_mapping.is_meta
    assert seen == []


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.sum().item(),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x.copy_(torch.ones(3)),
        lambda x: torch.ones(3).to("meta"),
        lambda x: torch.tensor([1.0], device=x.device),
        lambda x: x[x[0].long()],
    ],
    ids=["item", "tolist", "cpu", "copy_", "to", "tensor", "an index on the device"],
)
def test_a_wait_is_seen(read):
    with watched() as seen:
        read(on_device(3))
    assert len(seen) == 1
