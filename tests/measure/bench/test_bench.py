"""Measurements: the rows that are promised, and memory that does not grow with the vocabulary."""

from dataclasses import replace

import pytest
import tiny
import training_estimate
from training_memory import allowed, in_new_process

from pipo.errors import UsageError
from pipo.measure.bench.limit import drafted_step_bytes, pair_step_bytes, regular_step_bytes
from pipo.measure.bench.local import own_backbone
from pipo.measure.bench.options import BenchOptions
from pipo.measure.bench.plot import plot
from pipo.measure.bench.run import bench
from pipo.measure.check import check

ROW = {
    "method",
    "prompt_length",
    "new_tokens",
    "concurrency",
    "acceptance_rate",
    "tokens_per_step",
    "ttft_ms",
    "tpot_ms",
    "tokens_per_second",
    "kv_bytes_per_token",
}
RATIO = {"prompt_length", "concurrency", "ttft_speedup", "tpot_speedup", "throughput_speedup", "kv_ratio"}


@pytest.fixture(scope="module")
def result(tiny_pipo):
    return bench(
        BenchOptions(
            tiny_pipo,
            prompt_lengths=(9, 32),
            new_tokens=20,
            concurrency=(1, 3),
            methods=("regular", "pipo", "transformers"),
            force_acceptance=1.0,
            trials=1,
        )
    )


def test_rows_and_ratios(result):
    assert len(result["rows"]) == 12 and len(result["ratios"]) == 4
    assert all(row.keys() == ROW for row in result["rows"])
    assert all(ratio.keys() >= RATIO and ratio["method"] == "pipo" for ratio in result["ratios"])
    assert {"hardware", "model"} <= result.keys()


def test_forced_acceptance_gives_two_tokens_a_step_and_half_the_cache(result):
    for row in result["rows"]:
        if row["method"] == "pipo":
            assert row["acceptance_rate"] == 1.0 and row["tokens_per_step"] == 2.0
        else:
            assert row["acceptance_rate"] is None and row["tokens_per_step"] == 1.0
    for ratio in result["ratios"]:
        # three layers become three half-length ones and the MTP head's: 4 / 6, less what the last step has not read
        assert 0.5 < ratio["kv_ratio"] < 4 / 6 + 0.06


@pytest.fixture(scope="module")
def four(tiny_pipo, tiny_drafted):
    methods = ("regular", "mtp", "speculative", "pipo")
    same = {"prompt_lengths": (9,), "new_tokens": 12, "concurrency": (1, 2), "trials": 1, "methods": methods}
    return bench(BenchOptions(tiny_pipo, base=tiny_drafted, **same))


def test_all_four_methods(four, tmp_path):
    rows = {(row["method"], row["concurrency"]): row for row in four["rows"]}
    assert len(rows) == 8 and all(row.keys() == ROW for row in rows.values())
    for concurrency in (1, 2):
        assert rows["mtp", concurrency]["tokens_per_step"] == 2 and rows["mtp", concurrency]["acceptance_rate"] == 1
        speculative = rows["speculative", concurrency]
        assert 1 <= speculative["tokens_per_step"] < 2 and 0 <= speculative["acceptance_rate"] < 1
    assert [ratio["method"] for ratio in four["ratios"]] == ["mtp", "speculative", "pipo"] * 2
    for ratio in four["ratios"]:
        # the base has three layers and one more for the drafts; PIPO's are as many, half as long
        assert ratio["kv_ratio"] > 1 or ratio["method"] == "pipo"
    plot(four, str(tmp_path / "speed.png"))
    assert (tmp_path / "speed.png").stat().st_size > 1000


def test_the_models_own_backbone_drafts_with_its_own_head(tiny_pipo):
    options = BenchOptions(tiny_pipo, prompt_lengths=(9,), new_tokens=12, methods=("mtp", "speculative"), trials=1)
    mtp, speculative = bench(replace(options, force_acceptance=1.0))["rows"]
    assert mtp["tokens_per_step"] == 2 and speculative["acceptance_rate"] == 1
    assert speculative["tokens_per_step"] == 12 / 7  # the prefill gives one token, then 5 pairs, then the last


def test_an_uncompressed_model_is_measured_itself(tiny_llama, tiny_drafted):
    few = {"prompt_lengths": (9,), "new_tokens": 4, "trials": 1}
    assert [row["method"] for row in bench(BenchOptions(tiny_llama, **few))["rows"]] == ["regular"]
    found = bench(BenchOptions(tiny_drafted, methods=("regular", "mtp"), **few))
    assert [ratio["method"] for ratio in found["ratios"]] == ["mtp"]
    with pytest.raises(UsageError, match="no trained MTP head; train one with `pipo sft`"):
        bench(BenchOptions(tiny_llama, methods=("mtp",), **few))
    with pytest.raises(UsageError, match="--methods: .* is no PIPO model"):
        bench(BenchOptions(tiny_llama, methods=("regular", "pipo"), **few))
    with pytest.raises(UsageError, match="--threshold: .* is no PIPO model"):
        bench(BenchOptions(tiny_llama, threshold=0.5, **few))


def test_the_byte_limit_counts_every_weight_that_a_step_reads():
    model = tiny.pipo("qwen3")  # untied: the embedding and the head are two matrices
    plain = own_backbone(model)
    total = sum(p.numel() * 4 for p in model.parameters())
    embedding, head = (4 * 320 * 64 for _ in range(2))
    assert pair_step_bytes(model, kv_bytes=8) == total - embedding + head + 8
    extra = sum(
        p.numel() * 4 for part in (model.compressor, model.mtp, model.confidence_head) for p in part.parameters()
    )
    assert regular_step_bytes(plain, kv_bytes=8) == total - embedding - extra + 8
    mtp = sum(p.numel() * 4 for p in model.mtp.parameters())
    assert drafted_step_bytes(plain, model.mtp, kv_bytes=8) == total - embedding - extra + mtp + head + 8


def test_a_method_that_cannot_be_measured_is_refused(tiny_pipo):
    with pytest.raises(UsageError, match="eagle"):
        bench(BenchOptions(tiny_pipo, methods=("eagle",)))


def test_plot(result, tmp_path):
    plot(result, str(tmp_path / "speed.png"))
    assert (tmp_path / "speed.png").stat().st_size > 1000


def test_check_compares_enough_tokens_and_agrees(tiny_pipo):
    report = check(tiny_pipo)
    assert report.ok and report.tokens_compared >= 256 and report.max_abs_diff < 1e-3


def test_check_fails_where_decoder_and_trainer_differ(tiny_pipo, monkeypatch):
    """A decoder whose MTP cache has a hole over the prompt must not pass."""
    from pipo.decoding.reader import PairReader

    prefill = PairReader.prefill

    def with_hole(self, prompts):
        hidden = prefill(self, prompts)
        self.unread = (self.unread[0][:, -1:], self.unread[1][:, :0])
        return hidden

    monkeypatch.setattr(PairReader, "prefill", with_hole)
    assert not check(tiny_pipo).ok or check(tiny_pipo).max_abs_diff > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("train_head", [False, True])
def test_training_memory_stays_within_three_chunks_of_logits(train_head):
    reference = in_new_process(4096, losses=False)
    assert in_new_process(4096, losses=True, train_head=train_head) <= allowed(reference, train_head)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["full", "LoRA, checkpointing, bf16"])
def test_the_estimate_of_a_dry_run_is_what_training_takes(case):
    found = training_estimate.in_new_process(case, 4096)
    assert found["estimated"] == pytest.approx(found["measured"], rel=0.15)
