"""Drafts from a shortlist: exact within it, never outside it, stored once, and only where it pays."""

import pytest
import tiny
import torch
from decoded import THRESHOLDS, decode, new_tokens, prompts, uncached
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig

from pipo import PipoConfig, PipoForCausalLM
from pipo.convert.published import export_published
from pipo.decoding.reader import PairReader
from pipo.errors import UsageError
from pipo.measure.bench.limit import head_bytes, pair_step_bytes, regular_step_bytes, speedup_limit
from pipo.measure.check import check
from pipo.measure.choose_shortlist import always, rank
from pipo.model.shortlist import Shortlist, restrict

EOS, PAD = 1, 2
LISTED = [EOS, *range(4, tiny.VOCAB, 3)]


def listed(family, ids=LISTED):
    model = tiny.pipo(family)
    model.set_shortlist(ids)
    return model


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def model(request):
    return listed(request.param)


@pytest.fixture(scope="module")
def llama():
    return listed("llama")


@pytest.fixture(scope="module")
def folder(llama, tmp_path_factory):
    path = tmp_path_factory.mktemp("listed")
    llama.save_pretrained(path)
    tiny.tokenizer().save_pretrained(path)
    return path


def drafts(out):
    return [slot.draft for slots in out.slots for slot in slots if slot.draft is not None]


@given(ids=st.sets(st.integers(0, 19), min_size=1), seed=st.integers(0, 100))
def test_listed_logits_are_the_heads_and_the_rest_is_ruled_out(ids, seed):
    draw = torch.Generator().manual_seed(seed)
    weight, hidden = torch.randn(20, 8, generator=draw), torch.randn(3, 2, 8, generator=draw)
    chosen = torch.tensor(sorted(ids))
    logits = Shortlist(chosen, weight).logits(hidden)
    whole = hidden @ weight.t()
    torch.testing.assert_close(logits[..., chosen], whole[..., chosen])
    torch.testing.assert_close(logits, restrict(whole, chosen))
    assert (logits == float("-inf")).sum() == 3 * 2 * (20 - len(ids))


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_cached_greedy_is_the_listed_argmax_of_the_uncached_trainer_forward(model, threshold):
    for prompt in prompts()[2:5]:
        out = decode(model, [prompt], confidence_threshold=threshold, max_new_tokens=10)
        assert new_tokens(out, 0) == uncached(model, prompt, threshold, 10)


def test_a_list_of_the_whole_vocabulary_changes_nothing(model):
    family = {"qwen3_5_text": "qwen3_5"}.get(model.backbone.config.model_type, model.backbone.config.model_type)
    whole = listed(family, [i for i in range(tiny.VOCAB) if i != PAD])
    plain = tiny.pipo(family)
    for threshold in (0.0, 0.5):
        a, b = (decode(m, prompts(), confidence_threshold=threshold) for m in (whole, plain))
        assert [[slot.pair(PAD) for slot in slots] for slots in a.slots] == [
            [slot.pair(PAD) for slot in slots] for slots in b.slots
        ]
        assert drafts(a) == drafts(b)
    assert drafts(a) != drafts(decode(model, prompts(), confidence_threshold=0.5))


def test_a_batch_is_its_rows(model):
    batch = decode(model, prompts(), confidence_threshold=0.5)
    for i, prompt in list(enumerate(prompts()))[::2]:
        alone = decode(model, [prompt], confidence_threshold=0.5)
        assert new_tokens(batch, i) == new_tokens(alone, 0)
        assert (batch.drafted[i], batch.accepted[i]) == (alone.drafted[0], alone.accepted[0])


@pytest.mark.parametrize("options", [{"top_k": 0, "temperature": 5.0}, {"top_k": 200}, {"presence_penalty": 9.0}])
def test_sampled_drafts_are_never_outside_the_list(llama, options):
    torch.manual_seed(0)
    sampling = {"do_sample": True, "top_p": 1.0, "max_new_tokens": 60, "confidence_threshold": 0.5}
    out = decode(llama, prompts(), **sampling | options)
    assert len(set(drafts(out))) > 10 and set(drafts(out)) <= set(LISTED)
    assert not {slot.token1 for slots in out.slots for slot in slots} <= set(LISTED)  # token 1 may be any


@pytest.mark.parametrize("sampled", [False, True])
def test_where_a_processor_rules_out_the_whole_list_nothing_is_drafted(llama, sampled):
    others = sorted(set(range(3, tiny.VOCAB)) - set(LISTED))
    for processor in ({"suppress_tokens": LISTED}, {"prefix_allowed_tokens_fn": lambda *_: others}):
        out = decode(llama, prompts()[:3], do_sample=sampled, confidence_threshold=0.0, **processor)
        assert out.drafted.sum() == out.accepted.sum() == 0
        assert all(len(new_tokens(out, row)) == 15 and set(new_tokens(out, row)) <= set(others) for row in range(3))
    with pytest.raises(UsageError, match="rules out every token"):
        decode(llama, prompts()[:1], suppress_tokens=list(range(tiny.VOCAB)))


def test_a_draft_may_end_the_answer():
    model = listed("llama", [EOS])
    out = decode(model, prompts()[3:4], confidence_threshold=0.0, eos_token_id=EOS)
    assert len(out.slots[0]) == 1 and out.slots[0][0].draft == EOS and out.finish_reasons == ["stop"]


def test_the_rows_follow_the_head():
    """Weights that change between two runs, as in training, are not remembered."""
    model = listed("llama")
    decode(model, prompts()[:2], confidence_threshold=0.0)
    with torch.no_grad():
        model.lm_head.weight.data.mul_(-1)
    assert new_tokens(decode(model, prompts()[4:5], confidence_threshold=0.0), 0) == uncached(
        model, prompts()[4], 0.0, 15
    )


@torch.no_grad()
def test_the_trainer_keeps_the_whole_vocabulary(llama):
    ids = torch.randint(3, tiny.VOCAB, (2, 12), generator=torch.Generator().manual_seed(0))
    a, b = (m(input_ids=ids, labels=ids, return_logits=True) for m in (llama, tiny.pipo("llama")))
    assert a.mtp_logits.shape == (2, 5, tiny.VOCAB) and a.mtp_logits.isfinite().all()
    plain = tiny.pipo("llama")
    plain.load_state_dict(llama.state_dict(), strict=False)
    b = plain(input_ids=ids, labels=ids)
    torch.testing.assert_close((a.mtp_loss, a.confidence_loss), (b.mtp_loss, b.confidence_loss))


def test_saved_once_and_loaded(model, tmp_path):
    plain = tiny.pipo({"qwen3_5_text": "qwen3_5"}.get(model.config.backbone_config.model_type, "llama"))
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    model.to(torch.float32)
    stored = load_file(tmp_path / "model.safetensors")
    assert stored["draft_ids"].tolist() == LISTED and stored["draft_ids"].dtype == torch.int64
    tied = model.config.tie_word_embeddings
    assert ("lm_head.weight" in stored) != tied
    if tied:
        plain.save_pretrained(tmp_path / "plain")
        assert stored.keys() - load_file(tmp_path / "plain" / "model.safetensors").keys() == {"draft_ids"}
    again = PipoForCausalLM.from_pretrained(tmp_path, dtype="float32")
    assert again.config.draft_vocab_size == len(LISTED) and again.draft_ids.tolist() == LISTED
    assert (again.lm_head.weight is again.get_input_embeddings().weight) == tied
    out = decode(again, prompts(), confidence_threshold=0.0)
    assert drafts(out) and set(drafts(out)) <= set(LISTED)
    again.set_shortlist(None)
    again.save_pretrained(tmp_path / "without")
    assert PipoForCausalLM.from_pretrained(tmp_path / "without").draft_ids is None


@pytest.mark.parametrize(
    ("ids", "problem"),
    [
        (None, "missing tensors draft_ids"),
        ([5, 4], "ascending"),
        ([4, 4], "ascending"),
        ([4, tiny.VOCAB], "vocabulary of 320"),
        ([-1, 4], "vocabulary of 320"),
        ([PAD, 4], "PAD"),
    ],
)
def test_a_damaged_list_is_refused_by_name(tmp_path, ids, problem):
    listed("llama", [4, 5]).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["draft_ids"]
    if ids is not None:
        tensors["draft_ids"] = torch.tensor(ids)
        with pytest.raises(UsageError, match=problem):
            tiny.pipo("llama").set_shortlist(ids)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match=problem):
        PipoForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize("size", [0, -3, tiny.VOCAB])
def test_a_size_that_is_no_shortlist_is_refused(size):
    with pytest.raises(UsageError, match="draft_vocab_size"):
        PipoForCausalLM(PipoConfig(backbone_config=tiny.config("llama"), pad_token_id=PAD, draft_vocab_size=size))


def test_a_new_models_list_leaves_pad_out():
    model = PipoForCausalLM(PipoConfig(backbone_config=tiny.config("llama"), pad_token_id=PAD, draft_vocab_size=4))
    assert model.draft_ids.tolist() == [0, 1, 3, 4]


def test_check_agrees_and_sees_a_decoder_that_ignores_the_list(folder, monkeypatch):
    report = check(str(folder))
    assert report.ok and report.max_abs_diff < 1e-3 and report.tokens_compared >= 256
    monkeypatch.setattr(PairReader, "draft_logits", PairReader.logits)
    assert not check(str(folder)).ok


def test_the_authors_layout_cannot_hold_it(llama, tmp_path):
    llama.config.compressor_residual, before = 0.0, llama.config.compressor_residual
    with pytest.raises(UsageError, match="draft_vocab_size 107"):
        export_published(llama, tmp_path)
    llama.config.compressor_residual = before
    assert not any(tmp_path.iterdir())


def test_the_byte_limit_counts_the_listed_rows_and_their_ids():
    model = tiny.pipo("qwen3")
    whole = pair_step_bytes(model, kv_bytes=8)
    limit = speedup_limit(model, 50)
    model.set_shortlist(range(3, 53))
    assert whole - pair_step_bytes(model, kv_bytes=8) == head_bytes(model) - 50 * (64 * 4 + 8)
    assert pair_step_bytes(model, 8, drafts=False) == pair_step_bytes(tiny.pipo("qwen3"), 8, drafts=False)
    assert limit == speedup_limit(model, 50) == 2 * regular_step_bytes(model, 0) / pair_step_bytes(model, 0)
    assert speedup_limit(model, 50, acceptance=0.5) == pytest.approx(limit * 0.75)
    assert speedup_limit(model, None) == pytest.approx(2 * regular_step_bytes(model, 0) / (whole - 8))


def test_the_limits_of_a_model_of_135m():
    backbone = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        model = PipoForCausalLM(PipoConfig(backbone_config=backbone, pad_token_id=16))
    assert speedup_limit(model, None) == pytest.approx(1.585, abs=0.001)
    assert speedup_limit(model, 12288) > 1.8 > speedup_limit(model, 16384)


@given(
    counts=st.lists(st.integers(0, 5), min_size=4, max_size=30),
    first=st.sets(st.integers(0, 3)),
    pad=st.integers(0, 3),
)
def test_ranking(counts, first, pad):
    first -= {pad}
    ranked = rank(torch.tensor(counts), first, pad).tolist()
    assert sorted(ranked) == [i for i in range(len(counts)) if i != pad]
    assert set(ranked[: len(first)]) == first
    rest = ranked[len(first) :]
    assert rest == sorted(rest, key=lambda i: (-counts[i], i))


def test_special_tokens_and_every_end_of_an_answer_are_always_in(llama):
    tokenizer = tiny.tokenizer()
    assert always(tokenizer, llama) == {0, EOS}
    llama.generation_config.eos_token_id, before = [EOS, 77], llama.generation_config.eos_token_id
    assert always(tokenizer, llama) == {0, EOS, 77}
    llama.generation_config.eos_token_id = before
