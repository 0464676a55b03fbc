"""The model card: what the folder is, and what was measured."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pipo.runtime.provenance import write_text

CARD = """---
library_name: pipo
{known}tags: [pipo, multi-token-prediction]
---
# {title}

{kind} Load it with `pipo.PipoForCausalLM.from_pretrained` or `pipo generate`.

| | |
|---|---|
| base model | {base} |
| licence | {license} |
| training data | {data} |
| confidence threshold | {threshold} |
| accuracy against the base | {accuracy} |
| speed against the base | {speed} |

PIPO is lossy by design: measure both before use, with `pipo eval` and `pipo bench`.
"""

KINDS = {
    True: "A PIPO model: it reads and writes two tokens a step (arXiv 2605.27255).",
    False: "An uncompressed causal language model, the control of a PIPO model.",
}


HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
LICENSE_ID = re.compile(r"[a-z0-9.+-]+")
THRESHOLD = re.compile(r"(?m)^\| confidence threshold \|.*\|$")


def state_threshold(folder: Path, threshold: float) -> None:
    """Put a new threshold into the model card of `folder`, if it has one with such a line."""
    card = folder / "README.md"
    if card.is_file():
        text = card.read_text(encoding="utf-8")
        write_text(card, THRESHOLD.sub(f"| confidence threshold | {threshold} |", text))


def write_card(model: Any, folder: Path, facts: dict[str, Any]) -> None:
    """README.md in the model's folder. What is not among `facts` is "not measured" or "unknown"."""
    pipo = model.config.model_type == "pipo"
    base = facts.get("base") or getattr(model.config, "base_model", None)
    text = CARD.format(
        title=facts.get("title", folder.name),
        known=_known(facts, base),
        kind=KINDS[pipo],
        base=base or "unknown",
        license=facts.get("license", "the base model's"),
        data=", ".join(facts["data"]) if facts.get("data") else "none: converted, not trained",
        threshold=getattr(model.generation_config, "confidence_threshold", "not set (0.95)") if pipo else "none",
        accuracy=facts.get("accuracy", "not measured"),
        speed=facts.get("speed", "not measured"),
    )
    write_text(folder / "README.md", text)


def _known(facts: dict[str, Any], base: str | None) -> str:
    """Lines of the front matter that the hub accepts: a hub id as the base model, a licence by its identifier."""
    lines = ""
    if base is not None and HUB_ID.fullmatch(base) and not Path(base).exists():
        lines += f"base_model: {base}\n"
    if LICENSE_ID.fullmatch(facts.get("license", "")):
        lines += f"license: {facts['license']}\n"
    return lines
