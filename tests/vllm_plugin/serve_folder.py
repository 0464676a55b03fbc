"""Answers of vLLM in a process of its own: `serve_folder.py FOLDER OUT SETTINGS PROMPTS FIELDS`, the last three JSON.

OUT gets tokens and numbers of cached tokens of two rounds; the second finds the first one's prefixes. Data-parallel
replicas stand behind vLLM's asynchronous front end, which shares the requests out.
"""

import asyncio
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from served import Each, ask, params


def in_turn(folder, settings, prompts, fields):
    from vllm import LLM

    llm = LLM(folder, **settings)
    rounds = [ask(llm, prompts, **fields) for _ in range(2)]
    llm.llm_engine.engine_core.shutdown()
    return rounds


async def shared_out(folder, settings, prompts, fields):
    from vllm import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    engine = AsyncLLM.from_engine_args(AsyncEngineArgs(folder, **settings))

    async def collect(name, row):
        prompt = {"prompt_token_ids": prompts[row]}
        async for out in engine.generate(prompt, params(row, **fields), request_id=f"{name}-{row}"):
            last = out  # has all tokens so far
        return last

    rounds = [await asyncio.gather(*(collect(name, row) for row in range(len(prompts)))) for name in range(2)]
    engine.shutdown()
    return rounds


def main():
    folder, out = sys.argv[1:3]
    settings, prompts, fields = (json.loads(text) for text in sys.argv[3:])
    fields = {name: Each(value) if isinstance(value, list) else value for name, value in fields.items()}
    if settings.get("data_parallel_size", 1) > 1:
        rounds = asyncio.run(shared_out(folder, settings, prompts, fields))
    else:
        rounds = in_turn(folder, settings, prompts, fields)
    tokens = [[list(one.outputs[0].token_ids) for one in each] for each in rounds]
    cached = [[one.num_cached_tokens for one in each] for each in rounds]
    Path(out).write_text(json.dumps({"tokens": tokens, "cached": cached}))


if __name__ == "__main__":  # vLLM starts processes that import this file
    main()
