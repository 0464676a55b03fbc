"""Distillation's rollouts in vLLM: the engine follows the trainer's weights."""

import json
from pathlib import Path

import pytest
import torch
from served import ask, draw, save_tiny

from pipo import PipoForCausalLM
from pipo.training import recipe as recipes
from pipo.training.distill.rollout import roll_out
from pipo.training.distill.run import distill
from pipo.training.recipe import DistillRecipe, Lora
from pipo.training.sft import NEW_MODULES, add_lora

pytest.importorskip("vllm", reason="vLLM is not installed")
HOW = {"max_new_tokens": 24, "threshold": 0.5, "top_k": 1}


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("student"), "llama", head_dim=32)


def moved(folder, seed):
    """A student in training: adapters and whole modules have left their start."""
    model = add_lora(PipoForCausalLM.from_pretrained(folder), Lora(rank=4), NEW_MODULES)
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=draws)
    return model.eval()


def what(answers):
    """All but the confidence, which vLLM does not hand out."""
    return [[(slot.token1, slot.draft, slot.accepted) for slot in answer.slots] for answer in answers]


def test_the_engine_has_the_trainers_weights(own, local):
    from pipo.training.distill.served import ServedStudent

    prompts, how = draw((6, 9, 30), seed=3), recipes.Rollout(engine="vllm", **HOW)
    served = ServedStudent(own, how, "float32", answers=4)
    try:
        for seed in (1, 2):
            model = moved(own, seed)
            served.take_over(model)
            answers = served.roll_out(prompts, "seed")
            here = roll_out(model.get_base_model(), local.tokenizer, prompts, recipes.Rollout(tail=None, **HOW), "seed")
            assert what(answers) == what(here)
            assert any(draft and not kept for slots in what(answers) for _, draft, kept in slots)
            (got,) = ask(served.engine.llm, prompts[:1], logprobs=1, max_tokens=1)
            ((token, logprob),) = [(token, one.logprob) for token, one in got.outputs[0].logprobs[0].items()][:1]
            with torch.no_grad():
                logits = model(input_ids=torch.tensor(prompts[:1]), return_logits=True).logits[0, -1]
            logits[model.config.pad_token_id] = float("-inf")
            wanted = logits.log_softmax(-1)
            assert logprob == pytest.approx(float(wanted[token]), abs=1e-4)
    finally:
        served.close()


def test_a_run(own, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    asked = [{"messages": [{"role": "user", "content": "what " * (i % 4 + 1)}]} for i in range(8)]
    prompts.write_text("\n".join(json.dumps(one) for one in asked))
    output = tmp_path / "out"
    distill(
        DistillRecipe.model_validate(
            {
                "model": own,
                "output": str(output),
                "data": {"train": [str(prompts)]},
                "rollout": {"engine": "vllm", "max_new_tokens": 12, "threshold": 0.3},
                "lora": {"rank": 4},
                "trainer": {"max_steps": 3, "per_device_train_batch_size": 4, "logging_steps": 1, "use_cpu": True},
            }
        )
    )
    state = json.loads((output / "checkpoint-3" / "trainer_state.json").read_text())
    curve = [entry for entry in state["log_history"] if "backbone_loss" in entry]
    assert [entry["step"] for entry in curve] == [1, 2, 3]
    assert all(1 <= entry["rollout_tokens"] <= 12 and entry["rollout_tokens_per_step"] > 1 for entry in curve)
    assert Path(output, "config.json").is_file()


@pytest.mark.parametrize(
    ("changes", "named"), [({"engine": "vllm", "tail": 2.0}, "tail"), ({"memory_share": 0.5}, "memory_share")]
)
def test_an_option_of_the_other_engine_is_refused(changes, named):
    with pytest.raises(ValueError, match=named):
        recipes.Rollout(**changes)
