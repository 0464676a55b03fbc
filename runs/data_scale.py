"""What tokenizing a large corpus takes: speed, disk, start-up and memory, and what follows for a larger one.

The corpus is made up: conversations whose answers are runs of common English words, as long as the paper's on average.

usage: python runs/data_scale.py MODEL [--tokens 20000000] [--workers 2] [--of 2.3e9]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

WORDS = (
    "the of and to in is that it was for on are as with they at be this from have or by one had not but what all were "
    "when we there can an your which their said if do will each about how up out them then she many some so these "
    "would other into has more her two like him see time could no make than first been its who now people my made over "
    "did down only way find use may water long little very after words called just where most know number answer value "
    "therefore equation substitute 12 7 = + ( ) x y 0.5 function return def for i in range print list index , . : \n"
).split(" ")
ANSWER = 12_000  # words, on average: with these words about as many tokens

MEASURE = """
import ctypes, gc, json, os, sys, time
from pathlib import Path
began = time.perf_counter()
from pipo.convert.base import load_tokenizer
from pipo.data.datasets import ChatDataset, PairDataset
tokenizer = load_tokenizer(sys.argv[1])
def resident(kind):
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(kind)) / 1024
one = Path(os.environ["PIPO_HOME"]) / "one.jsonl"
one.write_text('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}')
ChatDataset([str(one)], tokenizer, max_length=10**6)  # whatever opening takes for itself is taken
loaded, before = time.perf_counter(), resident("Anonymous:")
data = ChatDataset([sys.argv[2]], tokenizer, max_length=10**6, workers=int(sys.argv[3]))
opened = time.perf_counter()
pairs = PairDataset(data, 0, scheme="shift", max_ratio=0.7, seed=0)
some = range(0, len(pairs), max(1, len(pairs) // 50))
for index in some:
    pairs[index]
read = time.perf_counter()
print(json.dumps({
    "imports_s": loaded - began,
    "open_s": opened - loaded,
    "row_ms": (read - opened) * 1000 / len(some),
    "own_mib": resident("Anonymous:") - before,
    "tokens": int(data.lengths.sum()),
    "examples": len(data),
    "disk": sum(path.stat().st_size for path in data.store.folder.iterdir()),
}))
"""


def write_corpus(path: Path, tokens: int) -> None:
    """About that many tokens of chat JSONL, with lengths that differ much."""
    rng = random.Random(0)
    left = tokens
    with path.open("w", encoding="utf-8") as file:
        while left > 0:
            words = min(left, max(50, round(rng.expovariate(1 / ANSWER))))
            turns = [
                {"role": "user", "content": " ".join(rng.choices(WORDS, k=60))},
                {"role": "assistant", "content": " ".join(rng.choices(WORDS, k=words))},
            ]
            file.write(json.dumps({"messages": turns}) + "\n")
            left -= words


def start(model: str, corpus: Path, workers: int, cache: str) -> dict[str, float]:
    """A fresh process that opens the corpus as training does."""
    command = [sys.executable, "-c", MEASURE, model, str(corpus), str(workers)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | {"PIPO_HOME": cache})
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Two starts, cold and warm, and what they say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="whose tokenizer and template")
    parser.add_argument("--tokens", type=float, default=2e7)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--of", type=float, default=2.3e9, help="tokens of the corpus that is asked about")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus.jsonl"
        write_corpus(corpus, int(args.tokens))
        size = corpus.stat().st_size
        cold, warm = (start(args.model, corpus, args.workers, folder) for _ in range(2))
    tokens, speed = cold["tokens"], cold["tokens"] / cold["open_s"]
    largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    bytes_a_token, index_bytes = cold["disk"] / tokens, 24 * cold["examples"] / tokens
    again = f"{warm['open_s']:.1f} s, {args.of * index_bytes / 2**20:.1f} MiB of index"
    once = f"{args.of / speed / 60:.0f} minutes, {args.of * bytes_a_token / 1e9:.1f} GB"
    print(f"""| | {tokens / 1e6:.1f}M tokens, {cold["examples"]:.0f} examples, {size / 1e6:.0f} MB of text |
|---|---|
| tokenizing, {args.workers} processes | {cold["open_s"]:.1f} s, {speed / 1e6:.2f}M tokens/s |
| on the disk | {bytes_a_token:.2f} bytes a token |
| opening it again | {warm["open_s"]:.2f} s, beside {warm["imports_s"]:.0f} s of imports and the tokenizer |
| memory of its own, opened and read | {warm["own_mib"]:.1f} MiB |
| largest process while tokenizing | {largest:.0f} MiB |
| laying a row out in pairs | {warm["row_ms"]:.1f} ms |
| so, of {args.of / 1e9:.1f}e9 tokens: once | {once} |
| every other start, and every other rank | {again} |""")


if __name__ == "__main__":
    Path("/proc/self/smaps_rollup").exists() or sys.exit("this measures with Linux's /proc")
    main()
