"""`pipo eval`: quality and speed, side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from pipo_cli.options import with_sampling
from pipo_cli.quiet import log_progress

TASKS = (
    "smollm2_mix",
    "gsm_symbolic",
    "aime2025[=FILE]",
    "math500[=FILE]",
    "gsm8k[=FILE]",
    "gpqa_diamond[=FILE]",
    "livecodebench_v6[=FILE]",
    "longbench_v2[=FILE]",
    "longbench_v2_medium[=FILE]",
    "longbench_v2_long[=FILE]",
    "FILE.jsonl",
)

HELP = (
    "Quality and speed, side by side: every question answered several times by every method.\n\n"
    "Writes samples.jsonl, summary.json and report.md with a plot into the output folder; started again with the same "
    "options, it goes on where it stopped.\n\n"
    "Tasks, from the hub or from a local FILE of the same schema (docs/benchmarks.md):\n\n" + "\n\n".join(TASKS)
)

METHODS = (
    "regular, mtp (the base with its MTP head, every draft kept), speculative (its drafts verified: lossless), pipo. "
    "Default: regular,pipo, or regular where MODEL is uncompressed."
)
BASE = "The model of all but `pipo`. Default: what MODEL was trained from; demo-base for demo."
ENGINE = "local, or vllm for regular and pipo: --batch-size answers at a time, of any length."
REPLICAS = "Of vLLM, on GPUs one each: they share the answers out."
PASS_K = "The k of pass@k, at most --samples, which is the default."
LIMIT = "Questions of each task. Default: 200 of generated tasks, all of files."
THRESHOLD = "Keep drafts of at least this confidence. Default: the model's own."
THRESHOLDS = "A sweep: a row pipo@τ for each of these in place of pipo, the model loaded once."
THINKING = "The chat template's enable_thinking. Default: what the template does."


@with_sampling
def eval_(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Folder, hub id, or demo.")],
    task: Annotated[str, typer.Option(metavar="T[,T]", help="Tasks, see above.")],
    output: Annotated[Path, typer.Option(metavar="DIR", help="Folder of this run: new, or one to go on with.")],
    methods: Annotated[str | None, typer.Option(metavar="M[,M]", help=METHODS)] = None,
    base: Annotated[str | None, typer.Option(help=BASE)] = None,
    samples: Annotated[int, typer.Option(help="Answers to each question.")] = 4,
    pass_k: Annotated[int | None, typer.Option(metavar="K", help=PASS_K)] = None,
    budget: Annotated[str, typer.Option(help="tokens:N, or slots:N for N steps.")] = "tokens:512",
    limit: Annotated[int | None, typer.Option(help=LIMIT)] = None,
    seed: Annotated[int, typer.Option(help="Chooses generated questions and the sampling noise.")] = 0,
    sampling: Any = None,
    threshold: Annotated[float | None, typer.Option(help=THRESHOLD)] = None,
    thresholds: Annotated[str | None, typer.Option(metavar="τ[,τ]", help=THRESHOLDS)] = None,
    thinking: Annotated[bool | None, typer.Option("--thinking/--no-thinking", help=THINKING)] = None,
    engine: Annotated[str, typer.Option(help=ENGINE)] = "local",
    replicas: Annotated[int, typer.Option(help=REPLICAS)] = 1,
    batch_size: Annotated[int, typer.Option(help="Answers decoded at a time.")] = 8,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or auto.")] = "auto",
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "auto",
    held_out: Annotated[bool, typer.Option("--held-out", help="smollm2_mix in wordings never trained on.")] = False,
    timing: Annotated[bool, typer.Option(help="Time the first 16 questions one by one.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    from pipo.measure.evals.budget import Budget
    from pipo.measure.evals.options import EvalOptions
    from pipo.measure.evals.run import evaluate

    options = EvalOptions(
        model=model,
        tasks=_names(task),
        output=output,
        methods=None if methods is None else _names(methods),
        base=base,
        samples=samples,
        pass_k=pass_k,
        budget=Budget.parse(budget),
        limit=limit,
        seed=seed,
        sampling=sampling,
        threshold=threshold,
        thresholds=_numbers(thresholds),
        thinking=thinking,
        engine=engine,
        replicas=replicas,
        batch_size=batch_size,
        dtype=dtype,
        device=device,
        held_out=held_out,
        timing=timing,
    )
    log_progress()
    summary = evaluate(options)
    typer.echo(
        json.dumps(summary, ensure_ascii=False) if as_json else (output / "report.md").read_text("utf-8").strip()
    )


eval_.__doc__ = HELP


def _numbers(text: str | None) -> tuple[float, ...]:
    try:
        return tuple(float(number) for number in _names(text or ""))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no list of numbers", param_hint="--thresholds") from None


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())
