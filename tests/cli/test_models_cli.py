"""The verbs around model folders: convert, import, export, inspect, check, bench, sft, env."""

import json
import shutil

import pytest
import tiny
import torch
import yaml
from places import PARITY
from safetensors.torch import load_file


def test_convert_then_inspect(pipo, refused, tiny_llama, tmp_path):
    out = tmp_path / "out"
    assert pipo("convert", tiny_llama, out, "--compressor", "linear").exit_code == 0
    facts = json.loads(pipo("inspect", out, "--json").stdout)
    assert facts["compressor"] == "linear"
    assert facts["base_model"] == tiny_llama
    assert facts["parameters"] == sum(facts["parts"].values())
    assert set(facts["parts"]) == {"backbone", "embeddings", "lm_head", "compressor", "mtp", "confidence"}
    memory = facts["kv_bytes_per_1k_tokens"]
    assert memory["base"] == 1000 * 3 * 2 * 2 * 16 * 4  # layers, KV heads, keys and values, head size, float32
    assert memory["ratio"] == pytest.approx(4 / 3 / 2)
    refused("OUT", "convert", tiny_llama, out)


def test_inspect_an_uncompressed_model(pipo, refused, tiny_llama, tmp_path):
    facts = json.loads(pipo("inspect", tiny_llama, "--json").stdout)
    assert set(facts["parts"]) == {"backbone", "embeddings", "lm_head"}
    assert facts["kv_bytes_per_1k_tokens"]["pipo"] is None
    assert "KV memory" in pipo("inspect", tiny_llama).stdout
    refused("MODEL", "inspect", tmp_path)


def test_parts_have_the_sizes_of_the_real_model(tiny_pipo):
    from pipo import PipoForCausalLM
    from pipo.measure.inspect_model import inspect_model

    model = PipoForCausalLM.from_pretrained(tiny_pipo)
    assert inspect_model(tiny_pipo)["parameters"] == sum(p.numel() for p in model.parameters())


def test_import_and_export(pipo, refused, tiny_pipo, tmp_path):
    assert "tokenizer" in refused("SRC", "import", PARITY / "mlp_tied", tmp_path / "pipo")
    refused("SRC", "import", tmp_path, tmp_path / "pipo")
    refused("Missing option '--layout'", "export", tiny_pipo, tmp_path / "authors")
    refused("MODEL", "export", tiny_pipo, tmp_path / "authors", "--layout", "authors")  # its compressor has a residual


def test_an_import_exported_is_what_was_imported(pipo, tmp_path):
    given = shutil.copytree(PARITY / "mlp_tied", tmp_path / "given")
    tiny.tokenizer().save_pretrained(given)
    assert pipo("import", given, tmp_path / "pipo").exit_code == 0
    assert pipo("export", tmp_path / "pipo", tmp_path / "authors", "--layout", "authors").exit_code == 0
    before, after = (load_file(folder / "model.safetensors") for folder in (given, tmp_path / "authors"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_check(pipo, refused, tiny_pipo, tiny_llama):
    report = json.loads(pipo("check", tiny_pipo, "--json").stdout)
    assert list(report) == ["ok", "max_abs_diff", "tokens_compared", "paths"]
    assert report["ok"]
    assert report["tokens_compared"] >= 256
    refused("MODEL", "check", tiny_llama)


def test_check_fails_where_the_paths_differ(pipo, monkeypatch):
    from pipo.measure.check import CheckReport

    monkeypatch.setattr("pipo.measure.check.check", lambda *_, **__: CheckReport(False, 1.0, 256, ["a", "b"]))
    result = pipo("check", "any")
    assert result.exit_code == 1
    assert "DIFFER" in result.stdout


def test_bench(pipo, refused, tiny_pipo, tmp_path):
    few = ("--prompt-lengths", "8", "--new-tokens", 4, "--trials", 1)
    result = pipo("bench", tiny_pipo, *few, "--json", "--plot", tmp_path / "ratios.png")
    measured = json.loads(result.stdout)
    assert {"hardware", "model", "rows", "ratios"} <= set(measured)
    assert [row["method"] for row in measured["rows"]] == ["regular", "pipo"]
    assert (tmp_path / "ratios.png").stat().st_size > 1000
    assert "TPOT" in pipo("bench", tiny_pipo, *few, "--methods", "pipo").stdout
    refused("Invalid value for --prompt-lengths", "bench", tiny_pipo, "--prompt-lengths", "8,many")
    refused("--methods", "bench", tiny_pipo, "--methods", "pipo,magic")
    refused("--threshold", "bench", tiny_pipo, "--threshold=-1")
    refused("Invalid value for --force-acceptance", "bench", tiny_pipo, "--threshold", 1, "--force-acceptance", 1)


def test_bench_with_all_methods(pipo, refused, tiny_pipo, tiny_drafted, tiny_llama):
    few = ("--prompt-lengths", "8", "--new-tokens", 6, "--trials", 1, "--methods", "regular,mtp,speculative,pipo")
    measured = json.loads(pipo("bench", tiny_pipo, "--base", tiny_drafted, *few, "--json").stdout)
    assert [row["method"] for row in measured["rows"]] == ["regular", "mtp", "speculative", "pipo"]
    assert "speculative" in pipo("bench", tiny_pipo, "--base", tiny_drafted, *few).stdout
    assert "objective: mtp" in refused("mtp", "bench", tiny_pipo, "--base", tiny_llama, *few)


@pytest.fixture
def recipe(tiny_pipo, tmp_path):
    chat = {"messages": [{"role": "user", "content": "what"}, {"role": "assistant", "content": "The answer"}]}
    (tmp_path / "chat.jsonl").write_text((json.dumps(chat) + "\n") * 4)
    fields = {
        "model": tiny_pipo,
        "output": str(tmp_path / "run"),
        "data": {"train": [str(tmp_path / "chat.jsonl")]},
        "trainer": {"max_steps": 2, "per_device_train_batch_size": 2, "use_cpu": True},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(fields))
    return tmp_path / "recipe.yaml"


def test_sft(pipo, refused, recipe, tmp_path):
    plan = pipo("sft", "--config", recipe, "--dry-run", "trainer.max_steps=7")
    assert "steps: 7" in plan.stdout
    assert json.loads(pipo("sft", "--config", recipe, "--dry-run", "--json").stdout)["steps"] == 2
    refused("Invalid value for --json", "sft", "--config", recipe, "--json")
    assert not (tmp_path / "run").exists()
    assert pipo("sft", "--config", recipe).exit_code == 0
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_a_dry_run_of_distillation(pipo, refused, recipe, tiny_llama, tmp_path):
    dry = ("distill", "--config", recipe, "--dry-run", f"teacher={tiny_llama}")
    plan = json.loads(pipo(*dry, "--json").stdout)
    assert plan["steps"] == 2 and plan["prompts"] == 4 and plan["teacher_weights_gb"] > 0
    assert f"rollout_cache_gb: {plan['rollout_cache_gb']:.2f}" in pipo(*dry).stdout
    assert not (tmp_path / "run").exists()
    refused("teacher", "distill", "--config", recipe, "--dry-run")


@pytest.mark.parametrize(
    ("field", "override", "fix"),
    [
        ("pads.max_ration", "pads.max_ration=0.5", "max_ratio"),
        ("dat", "dat=1", "data"),
        ("trainer", "trainer.learning_rte=1", "learning_rate"),
        ("pads.max_ratio", "pads.max_ratio=2", "less than or equal to 1"),
        ("nothing", "nothing", "section.key=value"),
    ],
)
def test_bad_recipes(refused, recipe, field, override, fix):
    assert fix in refused(field, "sft", "--config", recipe, override)


def test_a_missing_recipe(refused, tmp_path):
    refused("--config", "sft", "--config", tmp_path / "none.yaml")


def test_env(pipo):
    facts = json.loads(pipo("env", "--json").stdout)
    assert {"pipo", "python", "torch", "transformers", "peft", "accelerate", "vllm", "platform", "cpu"} <= set(facts)
    assert "torch: " in pipo("env").stdout


def test_env_survives_a_broken_torch(pipo, monkeypatch):
    def fail():
        raise OSError("libtorch.so: cannot open")

    monkeypatch.setattr("pipo.runtime.provenance.hardware", fail)
    assert "libtorch" in pipo("env").stdout
