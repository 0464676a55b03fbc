"""Checkpoints as they are read: every tensor that is expected, in its shape, and no other."""

from __future__ import annotations

from typing import Any

from pipo.errors import UsageError

KINDS = {"missing_keys": "missing", "unexpected_keys": "unexpected", "mismatched_keys": "misshapen"}
"""What transformers calls them in its loading info, and what a message does."""
LISTED = 8
"""Names in a message."""


def check_loading(source: str, info: dict[str, Any], fix: str = "save or download it again") -> None:
    """Raises `UsageError` with the names of the tensors that `from_pretrained` missed, found over or misshapen."""
    for kind, word in KINDS.items():
        names = sorted(str(key[0] if isinstance(key, tuple) else key) for key in info[kind])
        if names:
            more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
            raise UsageError(source, f"{word} tensors {', '.join(names[:LISTED])}{more}", fix)
