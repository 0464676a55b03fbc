"""What a shortlist of the vocabulary costs and allows, size by size, on questions that were not trained on.

Coverage by the training file's held-out answers; acceptance, tokens a step and right answers greedily at the stored
threshold, with and without each list; the byte limit where every draft is kept. How much of the limit is reached takes
an idle machine: `pipo shortlist MODEL --data CHAT.jsonl --size N --output OUT`, then
`pipo bench OUT --force-acceptance 1`.

usage: python runs/shortlist.py MODEL CHAT.jsonl [--sizes N,N] [--questions N] [--max-new-tokens N] [--batch-size N]
"""

import argparse
from collections.abc import Sequence

from torch import Tensor

from pipo.decoding.engine import Completion, LocalEngine
from pipo.decoding.options import GREEDY
from pipo.measure.bench.limit import speedup_limit
from pipo.measure.choose_shortlist import always, count_answers, judge, rank
from pipo.tasks import smollm2_mix
from pipo.tasks.question import Question

SEED = 2  # of the questions, another than that of the canonical set


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(usage=(__doc__ or "").split("usage: ")[1])
    parser.add_argument("model")
    parser.add_argument("file")
    parser.add_argument("--sizes", default="512,1024,2048,4096,8192,12288")
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--max-new-tokens", type=int, default=160)
    parser.add_argument("--batch-size", type=int, default=8)
    return parser.parse_args()


def answers(engine: LocalEngine, asked: Sequence[Question], limit: int, batch_size: int) -> list[Completion]:
    """Greedy, at the model's own threshold."""
    prompts = [engine.encode(question.messages) for question in asked]
    done: list[Completion] = []
    for start in range(0, len(prompts), batch_size):
        batch = prompts[start : start + batch_size]
        done += engine.complete(batch, sampling=GREEDY, max_new_tokens=limit)
    return done


def measured(engine: LocalEngine, asked: Sequence[Question], given: argparse.Namespace) -> str:
    """Cells: acceptance, tokens a step, right answers."""
    done = answers(engine, asked, given.max_new_tokens, given.batch_size)
    drafted, accepted = sum(one.drafted for one in done), sum(one.accepted for one in done)
    tokens, steps = sum(len(one.token_ids) for one in done), sum(one.steps for one in done)
    right = sum(smollm2_mix.score(one.text, question)[1] for one, question in zip(done, asked, strict=True))
    return f"{accepted / max(drafted, 1):.2%} of {drafted} | {tokens / steps:.3f} | {right} of {len(asked)}"


def cells(engine: LocalEngine, size: int, ranked: Tensor, counted: Tensor, held_out: Tensor) -> str:
    """Cells: held-out tokens outside, byte limit; the list is set."""
    engine.model.set_shortlist(ranked[:size].sort().values)
    judged = judge(engine.model, size, ranked, counted, held_out)
    return f"{judged.outside:.3%} | {judged.limit:.3f}"


def main() -> None:
    given = arguments()
    engine = LocalEngine.load(given.model)
    model = engine.model
    counted, held_out = count_answers([given.file], engine.tokenizer, model.config.vocab_size)
    ranked = rank(counted, always(engine.tokenizer, model), model.config.pad_token_id)
    asked = smollm2_mix.questions(given.questions, SEED)
    print("| size | held-out tokens outside | byte limit | acceptance | tokens a step | right answers |")
    print("|---" * 6 + "|")
    model.set_shortlist(None)
    print(f"| all | 0% | {speedup_limit(model, None):.3f} | {measured(engine, asked, given)} |", flush=True)
    for size in map(int, given.sizes.split(",")):
        print(
            f"| {size} | {cells(engine, size, ranked, counted, held_out)} | {measured(engine, asked, given)} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
