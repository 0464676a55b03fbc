"""Compares answers with math-verify, one JSON line in, one out, in a process of its own that may be killed at any time.

math-verify's own time limits are signals: they need a main thread and cannot stop one huge power, so `boxed` runs this
file apart. It imports nothing of pipo, to start fast.
"""

from __future__ import annotations

import json
import resource
import sys

MEMORY = 4 * 2**30  # bytes of address space


def compare(gold: str, text: str) -> tuple[str | None, bool]:
    """The answer that math-verify finds in `text`, and whether it equals the formula `gold`."""
    from math_verify import parse, verify

    found = parse(text, parsing_timeout=5)
    correct = bool(found) and verify(parse(f"${gold}$", parsing_timeout=5), found, timeout_seconds=5)
    return str(found[-1]) if found else None, correct


def main() -> None:
    limit = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY if limit == resource.RLIM_INFINITY else min(MEMORY, limit), limit))
    for line in sys.stdin:
        try:
            reply = compare(*json.loads(line))
        except Exception:  # whatever a hostile formula raises, it is not the answer
            reply = None, False
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
