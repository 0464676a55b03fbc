"""What becomes of an error: one line on stderr and an exit code."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from typer import Abort
from typer.core import TyperGroup

if TYPE_CHECKING:
    from pipo.errors import UsageError

USAGE, FAILURE = 2, 1

FLAGS = {"confidence_threshold": "--threshold", "max_new_tokens": "--max-new-tokens", "input_ids": "PROMPT"}
"""Names of the Python interface -> what the user typed."""


class OneLineErrors(TyperGroup):
    """Runs a verb. Wrong use exits with 2, any other failure with 1; `--debug`, anywhere, adds the traceback."""

    def main(  # type: ignore[override]
        self, args: Sequence[str] | None = None, *, standalone_mode: bool = True, **kwargs: Any
    ) -> Any:
        """As typer's; with `standalone_mode=False` the exit code is returned."""
        args = _debug_first(sys.argv[1:] if args is None else args)
        try:
            code = super().main(args, standalone_mode=False, **kwargs) or 0
        except Exception as error:
            if args[:1] == ["--debug"]:
                traceback.print_exc()
            code = _report(error)
        if not standalone_mode:
            return code
        sys.exit(code)


def _debug_first(args: Sequence[str]) -> list[str]:
    """`--debug` may stand before or after the verb, but not after `--`."""
    end = args.index("--") if "--" in args else len(args)
    kept = [arg for arg in args[:end] if arg != "--debug"]
    return [*(["--debug"] if len(kept) < end else []), *kept, *args[end:]]


def _report(error: Exception) -> int:
    """Print the line, return the exit code."""
    if isinstance(error, Abort):
        line, code = "interrupted", FAILURE
    elif hasattr(error, "format_message"):  # typer's own, wrong use of the command line
        line, code = error.format_message(), getattr(error, "exit_code", USAGE)
    elif (usage := sys.modules.get("pipo.errors")) and isinstance(error, usage.UsageError):
        line, code = usage_line(error), USAGE
    else:
        line, code = f"{type(error).__name__}: {error}", FAILURE
    print("error:", " ".join(line.split()), file=sys.stderr)
    return code


def usage_line(error: UsageError) -> str:
    """A `pipo.errors.UsageError` in the words of the command line."""
    return f"{FLAGS.get(error.field, error.field)}: {error.problem}; {error.fix}"
