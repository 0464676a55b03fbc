"""Free text: short instructions without a right answer, answered by a model and judged by an uncompressed teacher.

usage:
  python runs/free_text.py prompts OUT.jsonl [--n N] [--split train|test]
  python runs/free_text.py answer MODEL PROMPTS.jsonl OUT.jsonl [--threshold T] [--max-new-tokens N] [--batch-size N]
  python runs/free_text.py judge TEACHER ANSWERS.jsonl...

`answer` samples one answer a prompt (temperature 1, top-p 0.95, top-k 20) and writes chats that `pipo sft` reads; it
goes on where it was stopped. `judge` prints, a row a file, the mean of the teacher's log-probabilities a token, which
falls where an answer says what the teacher would not, with the spread of its words, since dull text is likely text;
95 % intervals are bootstraps over prompts.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

import torch

from pipo.data.chat import encode_prompt
from pipo.engine import LocalEngine, Sampling, batches
from pipo.evals.metrics import bootstrap_ci95, repeats

TOPICS = (
    "a lighthouse,the rain,an old bicycle,a lost key,the moon,a garden in spring,a busy kitchen,a train journey,a"
    " shy cat,a brave mouse,a snowman,the sea,a quiet library,a birthday party,a broken clock,a long walk,a "
    "friendly robot,the first day of school,a farmer and his dog,a night under the stars,a street market,a "
    "storm,a letter from a friend,a small island,a music lesson,a football match,a baker,a river,a red balloon,a "
    "forest at dawn,a mountain hut,an empty house,a painter,a cup of tea,a bridge,a wooden boat,a winter "
    "evening,a beehive,a castle,a bus driver"
).split(",")
THINGS = (
    "volcanoes,bees,rainbows,vaccines,gravity,tides,earthquakes,solar panels,batteries,the "
    "internet,clouds,glaciers,magnets,bread,coffee,soap,paper,glass,whales,owls,trees,mushrooms,the heart,sleep,v"
    "itamins,bicycles,trains,bridges,maps,libraries,banks,elections,taxes,museums,deserts,rainforests,coral "
    "reefs,the moon,comets,telescopes"
).split(",")
HABITS = (
    "sleep better,learn a language,save money,eat more vegetables,run a first race,write a letter,plan a "
    "trip,grow tomatoes,make new friends,study for a test,cook rice,clean a kitchen,read more books,stay "
    "calm,speak in public,train a puppy,pack a suitcase,find a job,drink more water,use less plastic,draw a "
    "face,play the guitar,start a garden,wake up early,bake bread,fix a flat tire,remember names,spend less time "
    "online,help a neighbor,take good photos"
).split(",")
TEMPLATES = [
    *product(
        ("Write a short story about {}.", "Describe {} in three sentences.", "Write two sentences about {}."), TOPICS
    ),
    *product(
        (
            "Explain {} to a child.",
            "What should I know about {}?",
            "Why do people care about {}?",
            "Tell me a fact about {}.",
        ),
        THINGS,
    ),
    *product(
        ("How can I {}?", "Give me three tips to {}.", "Is it hard to {}? Answer briefly.", "Why should I {}?"), HABITS
    ),
]
COLUMNS = ["answers", "log-probability a token", "less the first file's", "distinct runs of 3", "loops"]
COLUMNS += ["tokens", "ended", "tokens per step", "acceptance"]
TEST_SHARE = 0.25  # of the instructions; the rest are for training


def prompts(split: str) -> list[str]:
    """The instructions of a split, in a fixed order."""
    asked = [template.format(topic) for template, topic in TEMPLATES]
    Random(0).shuffle(asked)
    cut = round(len(asked) * TEST_SHARE)
    return asked[:cut] if split == "test" else asked[cut:]


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def write_prompts(given: argparse.Namespace) -> None:
    """`n` lines: every instruction as often as it takes."""
    asked = prompts(given.split)
    lines = [json.dumps({"messages": [{"role": "user", "content": asked[i % len(asked)]}]}) for i in range(given.n)]
    given.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


def answer(given: argparse.Namespace) -> None:
    """Answer every prompt once, with a seed of its own."""
    engine = LocalEngine.load(given.model, dtype=given.dtype)
    asked = rows(given.prompts)
    done = len(rows(given.out))
    with given.out.open("a", encoding="utf-8") as file:
        for batch in batches(range(done, len(asked)), given.batch_size):
            completions = engine.complete(
                [engine.encode(asked[i]["messages"]) for i in batch],
                sampling=Sampling(),
                max_new_tokens=given.max_new_tokens,
                threshold=given.threshold,
                seeds=[given.seed * 1_000_000 + i for i in batch],
            )
            for i, one in zip(batch, completions, strict=True):
                chat = [*asked[i]["messages"], {"role": "assistant", "content": one.text}]
                counts = {"steps": one.steps, "drafted": one.drafted, "accepted": one.accepted}
                row = {"messages": chat, "token_ids": one.token_ids, "finish_reason": one.finish_reason, **counts}
                file.write(json.dumps(row) + "\n")
            file.flush()
            print(f"{batch[-1] + 1} of {len(asked)}", flush=True)


@torch.no_grad()
def log_probabilities(teacher: LocalEngine, chats: Sequence[dict[str, Any]]) -> Iterator[list[float]]:
    """The teacher's log-probability of each token of each answer, float32, temperature 1."""
    for row in chats:
        prompt = encode_prompt(teacher.tokenizer, row["messages"][:-1])
        ids = torch.tensor([prompt + row["token_ids"]])
        logits = teacher.model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float()
        yield logits.log_softmax(-1).gather(1, ids[0, len(prompt) :, None])[:, 0].tolist()


def distinct(row: dict[str, Any], n: int = 3) -> float:
    """The share of an answer's runs of three tokens that are not repeats of earlier ones."""
    ids = row["token_ids"]
    runs = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    return len(set(runs)) / len(runs) if runs else 1.0


def interval(values: Sequence[float]) -> str:
    low, high = bootstrap_ci95(values)
    return f"{sum(values) / len(values):.3f} ({low:.3f} to {high:.3f})"


def judge(given: argparse.Namespace) -> None:
    """One row a file; differences to the first file are paired by prompt."""
    teacher = LocalEngine.load(given.teacher)
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|")
    first: list[float] = []
    for path in given.answers:
        chats = rows(path)
        scores = [sum(each) / max(len(each), 1) for each in log_probabilities(teacher, chats)]
        first = first or scores
        tokens = [len(row["token_ids"]) for row in chats]
        drafted = sum(row["drafted"] for row in chats)
        cells = [
            path.stem,
            interval(scores),
            interval([mine - theirs for mine, theirs in zip(scores, first, strict=True)]),
            interval([distinct(row) for row in chats]),
            f"{sum(repeats(row['messages'][-1]['content']) for row in chats) / len(chats):.1%}",
            f"{sum(tokens) / len(tokens):.0f}",
            f"{sum(row['finish_reason'] == 'stop' for row in chats) / len(chats):.0%}",
            f"{sum(tokens) / sum(row['steps'] for row in chats):.2f}",
            f"{sum(row['accepted'] for row in chats) / drafted:.0%}" if drafted else "-",
        ]
        print("| " + " | ".join(cells) + " |", flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(usage=(__doc__ or "").split("usage:\n")[1].split("\n\n")[0].strip())
    verbs = parser.add_subparsers(required=True)
    verb = verbs.add_parser("prompts")
    verb.add_argument("out", type=Path)
    verb.add_argument("--n", type=int, default=115)
    verb.add_argument("--split", choices=("train", "test"), default="test")
    verb.set_defaults(run=write_prompts)
    verb = verbs.add_parser("answer")
    verb.add_argument("model")
    verb.add_argument("prompts", type=Path)
    verb.add_argument("out", type=Path)
    verb.add_argument("--threshold", type=float)
    verb.add_argument("--max-new-tokens", type=int, default=96)
    verb.add_argument("--batch-size", type=int, default=64)
    verb.add_argument("--dtype", default="auto")
    verb.add_argument("--seed", type=int, default=0)
    verb.set_defaults(run=answer)
    verb = verbs.add_parser("judge")
    verb.add_argument("teacher")
    verb.add_argument("answers", type=Path, nargs="+")
    verb.set_defaults(run=judge)
    return parser.parse_args()


if __name__ == "__main__":
    given = arguments()
    given.run(given)
