"""`pipo calibrate`: which threshold, and is the confidence what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from pipo_cli import options
from pipo_cli.eval import LIMIT
from pipo_cli.options import Dtype
from pipo_cli.quiet import log_progress

TASK = "A task of `pipo eval`, scored by accuracy."
DATA = "Chat JSONL instead: its prompts are answered, scored by the base's log-likelihood."
THRESHOLDS = "Confidence thresholds to measure, with commas between; 0 keeps every draft, above 1 none."
SEED = "Chooses generated questions and the sampling noise. Not eval's default: choose and test on different questions."
BASE = "The uncompressed teacher. Default: what MODEL was trained from; demo-base for demo."
OUTPUT = "Folder of this run: new, or one to go on with. Default: calibration-MODEL-TASK."
STORE = "Write this threshold into the model's generation_config.json; best: the one chosen by rule."
MARGIN = "Of the rule: how far the score may be below the best one."
CONTROL = "Random rejection at the same rates beside the confidence."


@options.with_sampling
def calibrate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="PIPO model: folder, hub id, or demo.")],
    task: Annotated[str | None, typer.Option(metavar="T", help=TASK)] = None,
    data: Annotated[Path | None, typer.Option(metavar="F", help=DATA)] = None,
    thresholds: Annotated[str | None, typer.Option(metavar="τ[,τ]", help=THRESHOLDS)] = None,
    base: Annotated[str | None, typer.Option("--base", "--teacher", help=BASE)] = None,
    output: Annotated[Path | None, typer.Option(metavar="DIR", help=OUTPUT)] = None,
    store: Annotated[str | None, typer.Option(metavar="τ|best", help=STORE)] = None,
    margin: Annotated[float, typer.Option(help=MARGIN)] = 0.01,
    control: Annotated[bool, typer.Option(help=CONTROL)] = True,
    samples: Annotated[int, typer.Option(help="Answers to each question.")] = 1,
    limit: Annotated[int | None, typer.Option(help=LIMIT)] = None,
    max_new_tokens: options.MaxNewTokensOption = 512,
    seed: Annotated[int, typer.Option(help=SEED)] = 1,
    sampling: Any = None,
    batch_size: Annotated[int, typer.Option(help="Answers decoded at a time.")] = 8,
    held_out: Annotated[bool, typer.Option("--held-out", help="smollm2_mix in wordings never trained on.")] = False,
    dtype: options.DtypeOption = Dtype.auto,
    device: options.DeviceOption = "auto",
    as_json: options.JsonOption = False,
) -> None:
    """Measure a model's confidence thresholds on held-out prompts: accuracy against tokens per step, and reliability,
    beside the uncompressed base.

    Writes samples.jsonl, calibration.json and report.md with plots into the output folder. Started again with the same
    options, it goes on where it stopped; thresholds may be added.
    """
    from pipo.measure.calibration.options import BEST, THRESHOLDS, CalibrateOptions
    from pipo.measure.calibration.run import calibrate as run

    log_progress()
    found = CalibrateOptions(
        model=model,
        output=output or Path(f"calibration-{_name(model)}-{_name(str(task or data))}"),
        task=task,
        data=data,
        base=base,
        thresholds=THRESHOLDS if thresholds is None else tuple(_numbers("--thresholds", thresholds.split(","))),
        samples=samples,
        limit=limit,
        max_new_tokens=max_new_tokens,
        seed=seed,
        sampling=sampling,
        control=control,
        store=store if store in (None, BEST) else _numbers("--store", [str(store)])[0],
        margin=margin,
        batch_size=batch_size,
        dtype=dtype.value,
        device=device,
        held_out=held_out,
    )
    summary = run(found)
    text = (found.output / "report.md").read_text("utf-8").strip()
    typer.echo(json.dumps(summary, ensure_ascii=False) if as_json else f"{text}\n\nwrote {found.output}")


def _numbers(option: str, texts: list[str]) -> list[float]:
    from pipo.errors import UsageError

    try:
        return [float(text) for text in texts]
    except ValueError:
        raise UsageError(option, f"{','.join(texts)!r} holds no number", "write 0.9, or 0.5,0.9 for several") from None


def _name(text: str) -> str:
    """The last part of a path or hub id, without its suffix and a task's file."""
    return Path(text.partition("=")[0]).name.removesuffix(".jsonl")
