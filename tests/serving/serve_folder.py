"""Answers of vLLM in a process of its own: `serve_folder.py FOLDER OUT SETTINGS PROMPTS FIELDS`, the last three JSON.

OUT gets, a prompt each, the tokens and the number of cached tokens; DP replicas share the prompts out.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from served import Each, ask, ids


def main() -> None:
    from vllm import LLM

    folder, out = sys.argv[1:3]
    settings, prompts, fields = (json.loads(text) for text in sys.argv[3:])
    llm = LLM(folder, **settings)
    fields = {name: Each(value) if isinstance(value, list) else value for name, value in fields.items()}
    rounds = [ask(llm, prompts, **fields) for _ in range(2)]  # the second finds the first one's prefixes
    cached = [[one.num_cached_tokens for one in each] for each in rounds]
    Path(out).write_text(json.dumps({"tokens": [ids(each) for each in rounds], "cached": cached}))
    llm.llm_engine.engine_core.shutdown()


if __name__ == "__main__":  # vLLM starts processes that import this file
    main()
