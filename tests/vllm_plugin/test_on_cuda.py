"""What a GPU would be told, without one: no graphs, what would crash is refused by name, decodes are counted in pairs.

The settings come from vLLM's own CUDA platform (`on_cuda.py`); backends and builders are asked directly.
"""

import json
import subprocess
import sys
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not installed")

from vllm.v1.attention.backend import AttentionBackend, AttentionMetadataBuilder, CommonAttentionMetadata, MultipleOf
from vllm.v1.attention.backends.utils import split_decodes_and_prefills
from vllm.v1.kv_cache_interface import FullAttentionSpec

from pipo.vllm.pair_kv import pair_backend, pair_builder
from pipo.vllm.runner import PairRunner


def graphs(mode):
    return {"compilation_config": {"cudagraph_mode": mode}}


SERVED = [
    {},
    {"optimization_level": 1},
    {"optimization_level": 3},
    {"enforce_eager": True},
    graphs("NONE"),
    {"compilation_config": {"splitting_ops": []}},  # where vLLM makes FULL of FULL_AND_PIECEWISE
    {"compilation_config": {"use_inductor_graph_partition": True}},
    {"compilation_config": {"cudagraph_capture_sizes": [1, 2, 4]}},
    {"data_parallel_size": 2},
    {"block_size": 64},
    {"block_size": 32, "attention_backend": "TRITON_ATTN"},
]
EXPERTS = {"hf_overrides": {"backbone_config": {"num_experts": 4}}}
REFUSED = [
    *((graphs(mode), "cudagraph_mode") for mode in ("FULL", "PIECEWISE", "FULL_DECODE_ONLY", "FULL_AND_PIECEWISE")),
    ({"block_size": 16}, "block_size: 16 tokens are 8 pairs, and FLASH_ATTN"),
    ({"block_size": 48}, "block_size: 48 tokens are 24 pairs, and FLASH_ATTN"),
    ({"block_size": 16, "dtype": "float32"}, "block_size: 16 tokens are 8 pairs, and TRITON_ATTN"),
    (EXPERTS | {"data_parallel_size": 2}, "data_parallel_size"),
]


@pytest.fixture(scope="module")
def outcomes(folder):
    """Of `SERVED` and `REFUSED`, from one process."""
    asked = [*SERVED, *(settings for settings, _ in REFUSED)]
    command = [sys.executable, str(Path(__file__).parent / "on_cuda.py"), folder, json.dumps(asked)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("index", range(len(SERVED)), ids=lambda index: json.dumps(SERVED[index]))
def test_no_graph_is_captured(outcomes, index):
    assert outcomes[index].get("graphs") == "NONE", outcomes[index]


def test_compilation_stays_on(outcomes):
    assert outcomes[0]["compiled"] == "VLLM_COMPILE"


@pytest.mark.parametrize("index", range(len(REFUSED)), ids=lambda index: json.dumps(REFUSED[index][0]))
def test_what_would_crash_is_refused(outcomes, index):
    outcome = outcomes[len(SERVED) + index]
    assert outcome.get("refused", "").startswith(REFUSED[index][1]), outcome


class Kernels(AttentionBackend):
    """Has blocks of 16 entries, and says so in two places, as some of vLLM's do."""

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec=None):
        return [MultipleOf(16)]

    @classmethod
    def supports_block_size(cls, block_size):
        return block_size is None or block_size % 16 == 0


def test_a_backends_blocks_are_doubled_everywhere():
    """vLLM takes the preferred size where the user names none, and dies where the kernels do not know it."""
    backend = pair_backend(Kernels)
    assert [size for size in range(1, 129) if backend.supports_block_size(size)] == [32, 64, 96, 128]
    assert backend.get_preferred_block_size(16) == 32
    assert backend.get_preferred_block_size(64) == 64


class Builder(AttentionMetadataBuilder):
    """Splits a batch as FlashInfer's does: by its own threshold, into decodes of one length and the rest."""

    reorder_batch_threshold = 1

    def build(self, common_prefix_len, common_attn_metadata, fast_build=False):
        threshold = self.reorder_batch_threshold
        return split_decodes_and_prefills(common_attn_metadata, decode_threshold=threshold, require_uniform=True)


def batch(lengths):
    """Of requests that read so many tokens now."""
    start = torch.tensor([0, *lengths]).cumsum(0).int()
    tokens = int(start[-1])
    return CommonAttentionMetadata(
        query_start_loc=start,
        query_start_loc_cpu=start,
        seq_lens=torch.tensor(lengths, dtype=torch.int32),
        num_reqs=len(lengths),
        num_actual_tokens=tokens,
        max_query_len=max(lengths),
        max_seq_len=max(lengths),
        block_table_tensor=torch.zeros(len(lengths), 1, dtype=torch.int32),
        slot_mapping=torch.arange(tokens),
    )


@pytest.fixture
def builder():
    spec = FullAttentionSpec(block_size=32, num_kv_heads=1, head_size=32, dtype=torch.float32, tokens_per_state=2)
    return pair_builder(Builder)(spec, ["layer"], SimpleNamespace(), torch.device("cpu"))


def test_a_decode_is_one_pair(builder):
    """Also beside prompts, or rests of them, of two pairs: a kernel for decodes would read others' pages for these."""
    for decodes, prompts in product(range(4), range(4)):
        for pairs in product((2, 3, 9), repeat=prompts):
            if decodes + prompts:
                read = batch([2] * decodes + [2 * each for each in pairs])
                assert builder.build(0, read) == (decodes, prompts, decodes, sum(pairs))


def test_the_runner_moves_requests_of_two_tokens_to_the_front(builder):
    runner = object.__new__(PairRunner)
    for threshold, expected in ((1, 2), (None, None)):
        builder.reorder_batch_threshold = threshold
        runner._attn_group_iterator = lambda: iter([SimpleNamespace(get_metadata_builder=lambda: builder)])
        runner.calculate_reorder_batch_threshold()
        assert runner.reorder_batch_threshold == expected
