"""Keeps the libraries' own chatter off the terminal, and lets the project's log through."""

from __future__ import annotations

import logging
import os
import sys
import warnings

SETTINGS = {
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}


def quiet() -> None:
    """No progress bars of weight loading, none at all where no terminal is, no warnings. What the user set stays."""
    no_bars = {} if sys.stderr.isatty() else {"TQDM_DISABLE": "1"}
    for name, value in (SETTINGS | no_bars).items():
        os.environ.setdefault(name, value)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    if "transformers" in sys.modules:  # it has read the environment already
        from transformers.utils import logging as chatter

        chatter.set_verbosity_error()
        chatter.disable_progress_bar()


def log_progress() -> None:
    """The log, unless a terminal has a bar."""
    if not sys.stderr.isatty():
        log_lines()


def log_lines(level: int = logging.INFO) -> None:
    """The log of long work on stderr, without a line for every HTTP request."""
    logging.basicConfig(level=level, format="%(asctime)s %(message)s")
    for library in ("httpx", "openai"):
        logging.getLogger(library).setLevel(logging.WARNING)
