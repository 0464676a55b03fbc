"""Two processes that train together: the curves of one process, checkpoints, a lost rank."""

import json
import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
import torch
from places import RUNS, TESTS
from safetensors.torch import load_file

PIPO = ["-m", "pipo_cli"]
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
}
TRAINER = {"max_steps": 6, "per_device_train_batch_size": 2, "logging_steps": 1, "learning_rate": 1e-3, "use_cpu": True}
LOGGED = ("loss", "grad_norm", "backbone_loss", "mtp_loss", "confidence_loss", "confidence_mean", "token_loss")


def environment(**more):
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), **more}


def write(tmp_path, name, **fields):
    """A recipe in a file: JSON is YAML."""
    file = tmp_path / f"{name}.yaml"
    file.write_text(json.dumps({"output": str(tmp_path / name), **fields}))
    return str(file)


def run(verb, recipe, *overrides, ranks=2, shards=None, check=True):
    fsdp = shards == "fsdp2"
    program = [str(TESTS / "training" / "fsdp_on_cpu.py")] if fsdp else PIPO
    if shards == "zero2":
        overrides = (*overrides, f"trainer.deepspeed={RUNS / 'deepspeed_zero2.json'}")
    command = [*(LAUNCH if ranks == 2 else [sys.executable]), *program, verb, "--config", recipe, *overrides]
    more = {"OMP_NUM_THREADS": "1", **(FSDP2 if fsdp else {})}
    done = subprocess.run(command, env=environment(**more), capture_output=True, text=True)
    assert not check or done.returncode == 0, done.stderr[-3000:]
    return done


def curve(folder, step):
    state = json.loads((Path(folder) / f"checkpoint-{step}" / "trainer_state.json").read_text())
    return [
        {name: value for name, value in entry.items() if name.removeprefix("eval_") in LOGGED}
        for entry in state["log_history"]
    ]


def assert_same(a, b):
    assert len(a) == len(b) and any("loss" in entry for entry in a)
    for one, other in zip(a, b, strict=True):
        assert one == pytest.approx(other, rel=2e-3, abs=2e-4)


def assert_same_weights(a, b):
    one, other = load_file(a / "model.safetensors"), load_file(b / "model.safetensors")
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], atol=1e-4, rtol=1e-3, msg=name)


@pytest.fixture(scope="module")
def chats(tmp_path_factory):
    """13 conversations: they do not go round in two ranks of batches of two."""
    file = tmp_path_factory.mktemp("data") / "chat.jsonl"
    with file.open("w") as out:
        for i in range(13):
            question, answer = "what " * (i % 5 + 1), f"The answer is {i} " * (i % 3 + 1)
            turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            out.write(json.dumps({"messages": turns}) + "\n")
    return str(file)


@pytest.fixture
def supervised(chats, tiny_pipo, tmp_path):
    def make(name, **fields):
        data = {"train": [chats], "eval": [chats]}
        trainer = TRAINER | {"eval_steps": 3, "save_steps": 3}
        return write(tmp_path, name, **{"model": tiny_pipo, "data": data, "trainer": trainer} | fields)

    return make


def test_two_ranks_are_one_process_with_twice_the_batch(supervised, tmp_path):
    """The epoch ends within a batch, and evaluation with a row for one rank only."""
    run("sft", supervised("one"), "trainer.per_device_train_batch_size=4", ranks=1)
    done = run("sft", supervised("two"))
    assert done.stdout.count("wrote ") == 1
    assert_same(curve(tmp_path / "one", 6), curve(tmp_path / "two", 6))
    assert_same_weights(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
@pytest.mark.parametrize("order", ["group_by_length", "sequential"])
def test_two_ranks_of_the_regular_control_are_one_that_accumulates(supervised, tiny_llama, tmp_path, order):
    same = {"model": tiny_llama, "objective": "regular", "lora": {"rank": 2}}
    order = f"trainer.train_sampling_strategy={order}"
    run("sft", supervised("one", **same), "trainer.gradient_accumulation_steps=2", order, ranks=1)
    run("sft", supervised("two", **same), order)
    assert_same(curve(tmp_path / "one", 6), curve(tmp_path / "two", 6))
    assert_same_weights(tmp_path / "one", tmp_path / "two")


SHARDS = [
    "fsdp2",
    pytest.param("zero2", marks=pytest.mark.skipif(not find_spec("deepspeed"), reason="DeepSpeed is not installed")),
]
SHARDED = {"fsdp2": "pytorch_model_fsdp_0", "zero2": "global_step3"}
"""What a checkpoint of step 3 holds."""


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, {"rank": 2}])
@pytest.mark.parametrize("shards", SHARDS)
def test_shards_are_trained_saved_and_resumed(supervised, tmp_path, lora, shards):
    run("sft", supervised("one", lora=lora), "trainer.per_device_train_batch_size=4", ranks=1)
    run("sft", supervised("two", lora=lora), shards=shards)
    assert (tmp_path / "two" / "checkpoint-3" / SHARDED[shards]).is_dir()
    assert_same(curve(tmp_path / "one", 6), curve(tmp_path / "two", 6))
    assert_same_weights(tmp_path / "one", tmp_path / "two")
    whole = curve(tmp_path / "two", 6)
    (tmp_path / "two" / "checkpoint-6" / "trainer_state.json").unlink()  # as if it had been killed while it saved
    run("sft", str(tmp_path / "two.yaml"), "--resume", shards=shards)
    assert_same(whole, curve(tmp_path / "two", 6))
    assert_same_weights(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
@pytest.mark.parametrize("shards", [None, *SHARDS])
@pytest.mark.parametrize("own", [True, False])
def test_two_ranks_distill_as_one(chats, tiny_pipo, tiny_llama, tmp_path, shards, own):
    """With the adapter off as the teacher, or with another model."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(Path(chats).read_text().splitlines(keepends=True)[:8]))
    teacher = {"lora": {"rank": 2}} if own else {"teacher": tiny_llama}
    fields = {
        "model": tiny_pipo,
        "data": {"train": [str(prompts)]},
        "rollout": {"max_new_tokens": 12, "threshold": 0.3},
    }
    fields |= {"trainer": TRAINER | {"max_steps": 4, "save_steps": 2}} | teacher
    run("distill", write(tmp_path, "one", **fields), "trainer.per_device_train_batch_size=4", ranks=1)
    two = write(tmp_path, "two", **fields)
    run("distill", two, shards=shards)
    assert_same(curve(tmp_path / "one", 4), curve(tmp_path / "two", 4))
    assert_same_weights(tmp_path / "one", tmp_path / "two")
    (tmp_path / "two" / "checkpoint-4" / "trainer_state.json").unlink()
    run("distill", two, "--resume", shards=shards)
    assert_same(curve(tmp_path / "one", 4), curve(tmp_path / "two", 4))


def test_a_killed_rank_ends_the_job_and_says_so(supervised, tmp_path):
    recipe = supervised("killed")
    command = [*LAUNCH, *PIPO, "sft", "--config", recipe, "trainer.max_steps=100000", "trainer.save_strategy=no"]
    job = subprocess.Popen(
        [*command, "trainer.eval_strategy=no"],
        env=environment(OMP_NUM_THREADS="1"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert any("'loss'" in line for line in job.stdout)  # the first step is done, so both are at work
        second = next(p for p in psutil.Process(job.pid).children() if p.environ().get("RANK") == "1")
        second.send_signal(signal.SIGKILL)
        _, errors = job.communicate(timeout=300)
    finally:
        job.terminate()
    assert job.returncode not in (0, None)
    assert "another process of this job ended" in errors and "--resume" in errors
    assert "SIGKILL" in errors
