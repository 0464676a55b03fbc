"""The command line: its verbs and what all of them share."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import Annotated

import typer

from pipo_cli.bench import bench
from pipo_cli.calibrate import calibrate
from pipo_cli.chat import chat
from pipo_cli.check import check
from pipo_cli.convert import convert
from pipo_cli.data import DataCommand, data
from pipo_cli.distill import distill
from pipo_cli.env import env
from pipo_cli.errors import OneLineErrors
from pipo_cli.eval import eval_
from pipo_cli.generate import generate
from pipo_cli.inspect import inspect
from pipo_cli.published import export, import_
from pipo_cli.quiet import quiet
from pipo_cli.serve import serve
from pipo_cli.sft import sft
from pipo_cli.shortlist import shortlist

app = typer.Typer(
    name="pipo",
    cls=OneLineErrors,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"pipo {version('pipo-lm')}")
        raise typer.Exit


@app.callback()
def _common(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Print tracebacks and the libraries' own messages.")] = False,
) -> None:
    """Language models that read and write two tokens a step."""
    if not debug:
        quiet()


VERBS: dict[str, Callable[..., None]] = {
    "convert": convert,
    "import": import_,
    "export": export,
    "data": data,
    "sft": sft,
    "distill": distill,
    "shortlist": shortlist,
    "generate": generate,
    "chat": chat,
    "serve": serve,
    "eval": eval_,
    "bench": bench,
    "calibrate": calibrate,
    "check": check,
    "inspect": inspect,
    "env": env,
}

for name, verb in VERBS.items():
    app.command(name, cls=DataCommand if verb is data else None)(verb)


def main() -> None:
    """The console script."""
    app()
