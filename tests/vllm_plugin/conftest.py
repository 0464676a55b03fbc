"""One engine for most tests: starting vLLM takes longer than they do."""

import os
from importlib.util import find_spec

import pytest
from served import BLOCK, CHUNK, LENGTH, save_tiny

from pipo.decoding.engine import LocalEngine

SETTINGS = {
    "dtype": "float32",
    "enforce_eager": True,
    "max_model_len": LENGTH,
    "max_num_batched_tokens": CHUNK,
    "max_num_seqs": 64,
    "block_size": BLOCK,
    "kv_cache_memory_bytes": 4 << 20,  # 64 blocks: many long requests do not fit, and some are preempted
    "disable_log_stats": False,
}


@pytest.hookimpl(tryfirst=True)  # before the groups of other tests
def pytest_collection_modifyitems(items):
    """One worker runs them, as one engine serves most."""
    mine = [item for item in items if str(item.path).startswith(os.path.dirname(__file__))]
    for item in mine:
        if item.path.name != "test_processes.py":  # starts engines of its own
            item.add_marker(pytest.mark.xdist_group("vllm"))
        if find_spec("vllm") is None:
            item.add_marker(pytest.mark.skip(reason="vLLM is not installed"))


@pytest.fixture(scope="session", autouse=True)
def in_this_process():
    """So that tests can look inside; the engine's own processes are tested elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        patch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        patch.setenv("VLLM_LOGGING_LEVEL", "ERROR")
        yield


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("served"), "llama", head_dim=32)


@pytest.fixture(scope="session")
def local(folder):
    return LocalEngine.load(folder)


@pytest.fixture(scope="session")
def llm(folder, in_this_process):
    from vllm import LLM

    return LLM(folder, **SETTINGS)


@pytest.fixture(scope="session")
def scheduler(llm):
    return llm.llm_engine.engine_core.engine_core.scheduler
