"""The command `pipo`. Nothing here imports torch or transformers before a verb runs, so that help is quick."""

from pipo_cli.app import main

__all__ = ["main"]
