"""What is not supported is refused by name, and the engine goes on."""

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

from served import LENGTH, ask, draw, ids, reference, tokens
from vllm.exceptions import VLLMValidationError

from pipo.errors import UsageError
from pipo.vllm import plugin, supported
from pipo.vllm.hooks import HOOKS, Hook, moved


@pytest.fixture(autouse=True)
def alive(llm, local):
    """After every refusal the engine still answers."""
    yield
    prompts = draw((5,))
    assert ids(ask(llm, prompts, ignore_eos=True)) == tokens(reference(local, prompts))


@pytest.mark.parametrize("length", [LENGTH - 1, LENGTH, LENGTH + 1, 3 * LENGTH])
def test_a_prompt_that_leaves_no_room_for_a_pair(llm, length):
    with pytest.raises(VLLMValidationError, match="max_model_len|maximum model length|maximum context length"):
        ask(llm, draw((length,)))


@pytest.mark.parametrize("length", range(LENGTH - 9, LENGTH - 1))
@pytest.mark.parametrize("threshold", [0.0, 2.0])
def test_a_prompt_near_the_limit_is_answered_up_to_it(llm, local, length, threshold):
    """The last pair ends at the limit at the latest; nothing is cut in the middle of a pair."""
    (prompt,) = draw((length,))
    (out,) = ask(llm, [prompt], threshold=threshold, max_tokens=50, ignore_eos=True)
    (got,) = ids([out])
    assert out.outputs[0].finish_reason == "length"
    steps = (LENGTH - (length + length % 2)) // 2
    assert len(got) == (2 if threshold == 0.0 else 1) * steps
    assert [got] == tokens(reference(local, [prompt], len(got), threshold=threshold))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"threshold": -0.5}, "confidence_threshold"),
        ({"threshold": float("nan")}, "confidence_threshold"),
        ({"threshold": "high"}, "confidence_threshold"),
        ({"force": 1.5}, "force_acceptance"),
        ({"prompt_logprobs": 1}, "prompt_logprobs"),
        ({"thinking_token_budget": 5}, "thinking_token_budget"),
        ({"logprobs": 999}, "logprobs"),
        ({"logprobs": -1}, "logprobs"),
    ],
)
def test_a_request_option(llm, fields, named):
    with pytest.raises(VLLMValidationError, match=named):
        ask(llm, draw((5,)), **fields)


def test_pad_inside_a_prompt(llm):
    with pytest.raises(VLLMValidationError, match=r"PAD \(2\) inside a prompt"):
        ask(llm, [[5, 2, 7]])


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"pipeline_parallel_size": 2}, "pipeline_parallel_size"),
        ({"tensor_parallel_size": 3}, "3"),
        ({"speculative_config": {"method": "ngram", "num_speculative_tokens": 2}}, "speculative_config"),
        ({"enable_lora": True}, "enable_lora"),
        ({"kv_cache_dtype": "fp8"}, "kv_cache_dtype"),
        ({"max_num_batched_tokens": 1025}, "max_num_batched_tokens"),
        ({"enable_prompt_embeds": True}, "enable_prompt_embeds"),
        ({"logits_processors": ["os:getcwd"]}, "logits_processors"),
        ({"runner": "pooling"}, "runner|pooling"),
    ],
)
def test_an_engine_setting(folder, settings, named):
    from vllm import EngineArgs

    with pytest.raises((UsageError, ValueError), match=named):
        EngineArgs(folder, max_model_len=512, **settings).create_engine_config()


@pytest.mark.parametrize(
    ("name", "value", "settings"),
    [("confidence_inputs", "draft", {}), ("draft_vocab_size", 64, {"tensor_parallel_size": 2})],
)
def test_a_models_option(folder, name, value, settings):
    from vllm import EngineArgs

    with pytest.raises((UsageError, ValueError), match=name):
        EngineArgs(folder, hf_overrides={name: value}, **settings).create_engine_config()


def test_an_odd_length_is_rounded_down(folder):
    from vllm import EngineArgs

    assert EngineArgs(folder, max_model_len=511).create_engine_config().model_config.max_model_len == 510


def test_the_servers_threshold_replaces_the_models(folder):
    from vllm import EngineArgs

    def threshold(**settings):
        return EngineArgs(folder, **settings).create_engine_config().model_config.hf_config.confidence_threshold

    assert threshold() == threshold(generation_config="vllm") == 0.5
    assert threshold(override_generation_config={"confidence_threshold": 0.25}) == 0.25


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook.where.rpartition(":")[2])
def test_vllm_still_has(hook):
    assert moved(hook) is None


@pytest.mark.parametrize(
    "hook",
    [
        Hook("vllm.nowhere:Thing", "a module that moved"),
        Hook("vllm.v1.request:Request.fetch", "a method that moved"),
        Hook("vllm.v1.request:Request.append_output_token_ids", "a parameter that moved", ("self", "tokens")),
        Hook("vllm.v1.request:Request.append_output_token_ids", "a name that moved", mentions=("self._tokens",)),
    ],
)
def test_what_moved_is_named(hook):
    assert hook.why in moved(hook)


def test_another_vllm_is_refused_with_the_version_to_install(folder, monkeypatch, caplog):
    from vllm import EngineArgs
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    monkeypatch.setattr(supported, "version", lambda _: "0.33.1")
    monkeypatch.setitem(MODELS_CONFIG_MAP, plugin.ARCHITECTURE, None)
    try:
        plugin.register()
        with pytest.raises(ValueError, match=r"version 0.33.1 is not supported; pip install 'vllm==0.32"):
            EngineArgs(folder).create_engine_config()
    finally:
        from vllm import ModelRegistry

        ModelRegistry.register_model(plugin.ARCHITECTURE, "pipo.vllm.model:ServedPipo")
