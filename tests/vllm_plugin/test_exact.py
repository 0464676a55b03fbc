"""vLLM's greedy answers are the local decoder's, token for token, whatever its scheduler does with the requests."""

import pytest
from served import BLOCK, CHUNK, Each, ask, draw, ids, reference, tokens

LENGTHS = [1, 2, 3, 600, 599, *range(4, 64, 2), *range(65, 121, 4), *range(126, 132), 190, 255, 256, 257, 300, 301, 450]
MIX = (0.0, None, 2.0, 0.3)


@pytest.fixture
def preemptions(scheduler, monkeypatch):
    """The requests that were preempted."""
    seen, stock = [], scheduler._preempt_request

    def note(request, *args, **kwargs):
        seen.append(request.request_id)
        return stock(request, *args, **kwargs)

    monkeypatch.setattr(scheduler, "_preempt_request", note)
    return seen


@pytest.mark.parametrize("threshold", [0.0, None, 2.0, "mixed"])
def test_many_requests_at_once(llm, local, preemptions, threshold):
    """More than fit: of 1 to 600 tokens, in chunks, some preempted and read again."""
    prompts = draw(LENGTHS, seed=1)
    assert len(prompts) >= 60 and max(LENGTHS) > 2 * CHUNK
    if threshold != "mixed":
        assert ids(ask(llm, prompts, threshold=threshold, ignore_eos=True, max_tokens=70)) == tokens(
            reference(local, prompts, 70, threshold=threshold)
        )
        assert preemptions
        return
    each = Each(MIX[row % len(MIX)] for row in range(len(prompts)))
    got = ids(ask(llm, prompts, threshold=each, ignore_eos=True))
    for one in MIX:
        rows = [row for row, mine in enumerate(each) if mine == one]
        expected = reference(local, [prompts[row] for row in rows], threshold=one)
        assert [got[row] for row in rows] == tokens(expected)


@pytest.mark.parametrize("threshold", [0.0, None, 2.0])
def test_a_request_has_its_statistics(llm, local, threshold):
    prompts = draw((5, 12, 31), seed=2)
    served = ask(llm, prompts, threshold=threshold, ignore_eos=True)
    for out, expected in zip(served, reference(local, prompts, threshold=threshold), strict=True):
        facts = out.outputs[0].spec_decode_metrics.to_dict()
        assert (facts["num_spec_steps"], facts["num_draft_tokens"], facts["num_accepted_draft_tokens"]) == (
            expected.steps,
            expected.drafted,
            expected.accepted,
        )
        assert facts["mean_acceptance_length"] == pytest.approx(expected.tokens_per_step)


def prefixes():
    """Prompts that share a beginning which ends before, at and after the boundary of a block."""
    (shared,) = draw((3 * BLOCK + 1,), seed=3)
    cuts = [k * BLOCK + offset for k in (1, 2, 3) for offset in (-1, 0, 1)]
    return [shared[:cut] + tail for cut in cuts for tail in draw((9, 10, 70), seed=cut)]


@pytest.mark.parametrize("threshold", [0.0, None, "mixed"])
def test_shared_prefixes(llm, local, threshold):
    """One after the other, so that each finds what the former have left in the cache."""
    prompts = prefixes()
    llm.reset_prefix_cache()
    each = Each(MIX[row % len(MIX)] if threshold == "mixed" else threshold for row in range(len(prompts)))
    hits = 0
    for row, prompt in enumerate(prompts):
        (out,) = ask(llm, [prompt], threshold=each[row], ignore_eos=True)
        hits += out.num_cached_tokens
        assert ids([out]) == tokens(reference(local, [prompt], threshold=each[row])), (row, len(prompt))
    assert hits >= 20 * BLOCK


def test_hashes_that_do_not_look_ahead_would_change_answers(llm, local, scheduler, monkeypatch):
    """The trap that the hashes are made for: the control of the test above."""
    from vllm.utils.hashing import sha256
    from vllm.v1.core.kv_cache_utils import get_request_block_hasher

    plain = get_request_block_hasher(BLOCK, sha256)
    monkeypatch.setattr(scheduler, "hasher", lambda request: plain(request)[: (request.num_tokens - 1) // BLOCK])
    llm.reset_prefix_cache()
    prompts = prefixes()
    got = [ids(ask(llm, [prompt], threshold=0.0, ignore_eos=True))[0] for prompt in prompts]
    llm.reset_prefix_cache()
    assert got != tokens(reference(local, prompts, threshold=0.0))


def test_a_request_without_drafts_leaves_a_cache_for_one_with(llm, local):
    """Above 1 nothing is drafted, but the MTP head's cache is written all the same."""
    (prompt,) = draw((4 * BLOCK + 7,), seed=4)
    llm.reset_prefix_cache()
    ask(llm, [prompt], threshold=2.0)
    (out,) = ask(llm, [prompt], threshold=0.0, ignore_eos=True)
    assert out.num_cached_tokens == 4 * BLOCK
    assert ids([out]) == tokens(reference(local, [prompt], threshold=0.0))


def test_an_answer_is_found_again_as_a_prefix(llm, local):
    """A next turn that repeats an answer without PADs pairs as the local decoder pairs it."""
    (prompt,) = draw((BLOCK - 8,), seed=5)
    llm.reset_prefix_cache()
    (answer,) = ids(ask(llm, [prompt], threshold=0.0, ignore_eos=True, max_tokens=3 * BLOCK))
    again = prompt + answer + draw((5,), seed=6)[0]
    (out,) = ask(llm, [again], threshold=0.0, ignore_eos=True)
    assert out.num_cached_tokens >= 3 * BLOCK
    assert ids([out]) == tokens(reference(local, [again], threshold=0.0))


def test_the_cache_holds_twice_the_tokens(llm, folder):
    """By vLLM's own account: three layers and the MTP head's, half an entry a token."""
    config = llm.llm_engine.vllm_config
    entry = 4 * 2 * (2 * 32) * 4  # layers, heads, keys and values, bytes
    assert config.cache_config.num_gpu_blocks * BLOCK == (4 << 20) // (entry // 2)


def test_drafts_are_counted_for_prometheus(llm):
    ask(llm, draw((7,)), threshold=0.0, ignore_eos=True)
    counts = {
        metric.name: metric.value
        for metric in llm.get_metrics()
        if metric.name.startswith("vllm:spec_decode") and hasattr(metric, "value")
    }
    drafts, drafted, accepted = (
        counts[f"vllm:spec_decode_num_{name}"] for name in ("drafts", "draft_tokens", "accepted_tokens")
    )
    assert drafts == drafted >= accepted >= 12
