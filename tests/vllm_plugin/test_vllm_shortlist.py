"""A shortlist of drafts in vLLM: the local decoder's answers, and no draft outside the list."""

import pytest
import torch
from served import draw, params, reference, save_tiny, tokens

from pipo.decoding.engine import LocalEngine
from pipo.decoding.options import GREEDY


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """A folder with a list of every third token."""
    folder = save_tiny(tmp_path_factory.mktemp("short"), "llama", head_dim=32)
    engine = LocalEngine.load(folder)
    engine.model.set_shortlist(torch.arange(4, engine.model.config.vocab_size, 3))
    engine.model.save_pretrained(folder)
    return folder


def test_the_local_decoders_drafts(short):
    pytest.importorskip("vllm", reason="vLLM is not installed")
    from pipo.vllm.engine import VllmEngine

    local, prompts = LocalEngine.load(short), draw((5, 8, 33, 64))
    served = VllmEngine.load(short, dtype="float32", enforce_eager=True, max_model_len=256)
    allowed = set(local.model.draft_ids.tolist())
    try:
        for threshold in (0.0, 0.5):
            options = {"sampling": GREEDY, "max_new_tokens": 40, "ignore_eos": True}
            done = served.complete(prompts, threshold=threshold, **options)
            assert tokens(done) == tokens(reference(local, prompts, 40, threshold=threshold))
            drafts = [slot.draft for one in done for slot in one.slots if slot.accepted]
            assert drafts and set(drafts) <= allowed
        asked = params(allowed_token_ids=[3, 5, 9], threshold=0.0, max_tokens=9, ignore_eos=True)  # none is listed
        out = served.llm.generate([{"prompt_token_ids": prompts[0]}], [asked], use_tqdm=False)[0].outputs[0]
        assert len(out.token_ids) == 9 and set(out.token_ids) <= {3, 5, 9}
    finally:
        served.close()
