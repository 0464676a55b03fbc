"""Answers of vLLM with graphs that a CPU can replay: `frozen_replay.py FOLDER GRAPHS PROMPTS`, the last JSON.

A replayed CUDA graph runs on the memory of its capture, whatever it is called with. Here a "capture" keeps what it was
called with, and a "replay" runs on that and writes its results where those of the capture stood. Everything else is
vLLM's: its defaults, its piecewise compilation, with the eager backend, its dispatch and its captures. No attention
backend of a CPU takes part in a graph, so all graphs are piecewise.

GRAPHS: `shipped`, as the model's settings say; `on`, against those of a PIPO model; `backbone`, on, but the MTP head
runs outside of them; `copied`, that, with vLLM's own copies of a graph's inputs. Prints the mode, how many captures and
replays there were, and the answers or the error, in JSON.
"""

import json
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

SIZES = [2, 4, 8, 16, 32]
"""Numbers of tokens that graphs are captured for."""


@dataclass
class Capture:
    args: tuple
    context: Any
    output: Any


class FrozenReplay:
    """In place of vLLM's `CUDAGraphWrapper`."""

    captures = replays = 0

    def __init__(self, runnable, vllm_config, runtime_mode, cudagraph_options=None):
        self.runnable, self.runtime_mode, self.kept = runnable, runtime_mode, {}

    def __call__(self, *args):
        from vllm.compilation.monitor import validate_cudagraph_capturing_enabled
        from vllm.forward_context import get_forward_context

        context = get_forward_context()
        if context.cudagraph_runtime_mode != self.runtime_mode:
            return self.runnable(*args)
        if context.batch_descriptor in self.kept:
            return self.replay(self.kept[context.batch_descriptor])
        validate_cudagraph_capturing_enabled()
        FrozenReplay.captures += 1
        output = self.runnable(*args)
        self.kept[context.batch_descriptor] = Capture(args, context, output)
        return output

    def replay(self, capture):
        from torch.utils._pytree import tree_leaves
        from vllm.forward_context import override_forward_context

        FrozenReplay.replays += 1
        with override_forward_context(capture.context):
            new = self.runnable(*capture.args)
        for old, value in zip(tree_leaves(capture.output), tree_leaves(new), strict=True):
            old.copy_(value)
        return capture.output


def let_the_platform_have_graphs():
    from vllm.config import CompilationMode
    from vllm.platforms import current_platform
    from vllm.v1.worker.cpu_worker import CPUWorker

    platform, worker = type(current_platform), CPUWorker.compile_or_warm_up_model
    stock = platform.check_and_update_config.__func__

    def check_and_update_config(cls, config):
        compilation = config.compilation_config
        sizes = compilation.cudagraph_capture_sizes
        stock(cls, config)
        compilation.mode, compilation.backend = CompilationMode.VLLM_COMPILE, "eager"
        compilation.cudagraph_capture_sizes = sizes

    def compile_or_warm_up_model(self):
        out = worker(self)
        capture(self.model_runner)
        return out

    platform.check_and_update_config = classmethod(check_and_update_config)
    platform.support_static_graph_mode = classmethod(lambda cls: True)
    platform.get_static_graph_wrapper_cls = classmethod(lambda cls: "frozen_replay.FrozenReplay")
    CPUWorker.compile_or_warm_up_model = compile_or_warm_up_model


def capture(runner):
    """As `GPUModelRunner.capture_model`."""
    from vllm.compilation.monitor import set_cudagraph_capturing_enabled

    set_cudagraph_capturing_enabled(True)
    for mode, descriptors in runner.cudagraph_dispatcher.get_capture_descs():
        for descriptor in descriptors:
            runner._warmup_and_capture(descriptor, mode)
    set_cudagraph_capturing_enabled(False)


def leave_graphs_on():
    """Undo what PIPO's settings say about graphs."""
    from pipo.vllm.settings import PairSettings

    stock = PairSettings.verify_and_update_config

    def verify_and_update_config(config):
        stock(config)
        config.compilation_config.cudagraph_mode = None

    PairSettings.verify_and_update_config = staticmethod(verify_and_update_config)


def keep_the_head_out():
    """Of every graph."""
    from vllm.config import CUDAGraphMode
    from vllm.forward_context import get_forward_context, override_forward_context

    from pipo.vllm.model import ServedPipo

    stock = ServedPipo.draft

    def draft(self, *args):
        with override_forward_context(replace(get_forward_context(), cudagraph_runtime_mode=CUDAGraphMode.NONE)):
            return stock(self, *args)

    ServedPipo.draft = draft


def main():
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_DISABLE_COMPILE_CACHE": "1"}
    folder, graphs, prompts = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    from frozen_replay import FrozenReplay  # the class that vLLM finds by name is not this file's as a program
    from served import BLOCK, ask, ids
    from vllm import LLM

    let_the_platform_have_graphs()
    if graphs != "shipped":
        leave_graphs_on()
    if graphs in ("backbone", "copied"):
        keep_the_head_out()
    compilation = {"cudagraph_capture_sizes": SIZES, "cudagraph_copy_inputs": graphs == "copied"}
    settings = {"dtype": "float32", "max_model_len": 256, "block_size": BLOCK, "kv_cache_memory_bytes": 4 << 20}
    llm = LLM(folder, max_num_seqs=8, compilation_config=compilation, **settings)
    found = {"mode": llm.llm_engine.vllm_config.compilation_config.cudagraph_mode.name}
    try:
        found["tokens"] = ids(ask(llm, prompts, ignore_eos=True))
    except Exception as error:
        found["error"] = str(error)
    print(json.dumps(found | {"captures": FrozenReplay.captures, "replays": FrozenReplay.replays}))


if __name__ == "__main__":
    main()
