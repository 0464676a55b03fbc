"""The training stream of smollm2_mix as chat JSONL.

usage: python runs/smollm2_data.py --n N --seed S [--drills SHARE] --output FILE
"""

import argparse
import json
import os
from pathlib import Path

from pipo.tasks import smollm2_mix


def write_training_file(n: int, seed: int, output: Path, drills: float = 0.0) -> int:
    """Write the training stream as chat JSONL, whole or not at all; returns the number of lines."""
    partial = output.with_name(f"{output.name}.{os.getpid()}.partial")
    count = 0
    try:
        with partial.open("w", encoding="utf-8") as file:
            for item in smollm2_mix.training_examples(n, seed, drills=drills):
                messages = [*item.messages, {"role": "assistant", "content": item.solution}]
                file.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
                count += 1
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)
    return count


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="write the training file")
    parser.add_argument("--n", type=int, default=4500, help="items before those in the test set are dropped")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--drills", type=float, default=0.0, help="share of the items that are drills of sums instead")
    parser.add_argument("--output", type=Path, required=True, help="chat JSONL file to write")
    args = parser.parse_args(argv)
    count = write_training_file(args.n, args.seed, args.output, args.drills)
    print(f"{count} examples written to {args.output}, {args.n - count} dropped because they are in the test set")


if __name__ == "__main__":
    main()
