"""Which checkpoint a run goes on from."""

import json
import shutil
from pathlib import Path

import pytest

from pipo.errors import UsageError
from pipo.training.checkpoint import last_checkpoint
from pipo.training.recipe import SftRecipe
from pipo.training.sft import sft, train_arguments


@pytest.fixture(scope="module")
def run(tiny_pipo, tmp_path_factory):
    """The folder of four steps, with checkpoints at the second and the fourth."""
    folder = tmp_path_factory.mktemp("run")
    chats = [
        {"messages": [{"role": "user", "content": f"{i}"}, {"role": "assistant", "content": "so"}]} for i in range(8)
    ]
    (folder / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    sft(recipe(tiny_pipo, folder))
    return folder


def recipe(model, folder, steps=4, **trainer):
    fields = {
        "max_steps": steps,
        "save_steps": 2,
        "per_device_train_batch_size": 2,
        "use_cpu": True,
        "logging_steps": 1,
    }
    return SftRecipe(
        model=model,
        output=str(folder / "out"),
        data={"train": [str(folder / "chats.jsonl")]},
        trainer={**fields, **trainer},
    )


@pytest.fixture
def copy(run, tmp_path):
    return Path(shutil.copytree(run, tmp_path / "copy"))


def newest(folder):
    return folder / "out" / "checkpoint-4"


def test_other_ranks_go_on_from_the_same_checkpoint(copy, tiny_pipo):
    """Random states are a rank's own, and nothing here depends on them."""
    for checkpoint in (copy / "out").glob("checkpoint-*"):
        (checkpoint / "rng_state.pth").rename(checkpoint / "rng_state_0.pth")
    for ranks in (1, 2, 8):
        assert last_checkpoint(str(copy / "out"), True, ranks) == str(newest(copy))
    sft(recipe(tiny_pipo, copy, steps=6), resume=True)
    state = json.loads((copy / "out" / "checkpoint-6" / "trainer_state.json").read_text())
    assert [entry["step"] for entry in state["log_history"] if "loss" in entry] == [1, 2, 3, 4, 5, 6]


def test_a_torn_checkpoint_is_left_out_and_named(copy, caplog):
    (newest(copy) / "trainer_state.json").write_text("{")
    assert last_checkpoint(str(copy / "out"), True) == str(copy / "out" / "checkpoint-2")
    assert "left out" in caplog.text and "checkpoint-4" in caplog.text


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("trainer_state.json", "no whole trainer_state"), ("model*", "no weights"), ("optimizer*", "save_only_model")],
)
def test_training_never_starts_anew_over_checkpoints_that_are_no_good(copy, pattern, message):
    for file in (copy / "out").glob(f"checkpoint-*/{pattern}"):
        file.unlink()
    with pytest.raises(UsageError, match=message) as caught:
        last_checkpoint(str(copy / "out"), True)
    assert caught.value.field == "--resume"


def test_deepspeeds_shards_are_of_their_number_of_ranks(copy):
    shards = newest(copy) / "global_step4"
    shards.mkdir()
    for rank in range(4):
        (shards / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt").touch()
    assert last_checkpoint(str(copy / "out"), True, 4) == str(newest(copy))
    shutil.rmtree(copy / "out" / "checkpoint-2")
    with pytest.raises(UsageError, match="on 4 ranks, and these are 2"):
        last_checkpoint(str(copy / "out"), True, 2)


def test_without_resume_a_run_is_not_trained_over(copy):
    with pytest.raises(UsageError, match="holds a run already"):
        last_checkpoint(str(copy / "out"), False)


def test_one_process_that_sees_several_gpus_is_refused_with_what_to_type(tiny_pipo, run, monkeypatch):
    from transformers import TrainingArguments

    monkeypatch.setattr(TrainingArguments, "n_gpu", 4)
    with pytest.raises(UsageError, match="--num_processes 4"):
        train_arguments(recipe(tiny_pipo, run))
