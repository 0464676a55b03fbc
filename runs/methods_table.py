"""The table of what `runs/methods.sh` measured.

usage: python runs/methods_table.py FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

FILES = {"": ("prompts", "batch"), " without drafts": ("prompts_alone", "batch_alone")}
"""What stands behind a method's name -> the runs on long prompts and on a batch."""


def table(folder: Path) -> str:
    """A row a method: TTFT at both lengths, cache at the shorter one, tokens a second of the batch."""
    lines = ["| method | TTFT, 2K | TTFT, 6K | KV bytes per token | tokens/s, 16 requests |", "|---|---|---|---|---|"]
    for suffix, names in FILES.items():
        prompts, batch = (json.loads((folder / f"{name}.json").read_text()) for name in names)
        for method in dict.fromkeys(row["method"] for row in prompts["rows"]):
            if suffix and method == "regular":
                continue  # the same again
            short, long = (row for row in prompts["rows"] if row["method"] == method)
            (many,) = (row for row in batch["rows"] if row["method"] == method)
            cells = [method + suffix, *_cells(short, long, many)]
            lines.append(f"| {' | '.join(cells)} |")
    hardware = prompts["hardware"]
    return "\n".join([*lines, "", f"{hardware['cpu']}, {hardware['cores']} cores, {prompts['dtype']}"])


def _cells(short: dict[str, Any], long: dict[str, Any], many: dict[str, Any]) -> list[str]:
    times = [f"{row['ttft_ms']:,.0f} ms" for row in (short, long)]
    return [*times, f"{short['kv_bytes_per_token']:,.0f}", f"{many['tokens_per_second']:.1f}"]


if __name__ == "__main__":
    print(table(Path(sys.argv[1])))
