"""What is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipo.errors import UsageError

METHODS = {
    "local": ("regular", "mtp", "speculative", "pipo", "transformers"),
    "vllm": ("regular", "pipo", "ngram"),
}
"""Of each engine, what it can be measured with."""


@dataclass(frozen=True)
class BenchOptions:
    """What is measured. `transformers` is the base under transformers' own `generate`, `ngram` the base with vLLM's own
    speculative decoding by n-grams of the prompt: references.

    `methods` None: regular and, for a PIPO model, pipo. Without `base` the model's own backbone decodes uncompressed,
    with the model's MTP head, which was not trained for that: right for speed, not for acceptance.
    """

    model: str
    base: str | None = None  # None: the model's own backbone, uncompressed
    prompt_lengths: Sequence[int] = (128, 2048)
    new_tokens: int = 64
    concurrency: Sequence[int] = (1,)
    methods: Sequence[str] | None = None
    threshold: float | None = None
    force_acceptance: float | None = None
    trials: int = 3
    engine: str = "local"
    dtype: str = "auto"
    device: str = "cpu"
    seed: int = 0


def pick_methods(options: BenchOptions, is_pipo: bool) -> Sequence[str]:
    """What is asked for, or the default. Raises `UsageError` for what only a PIPO model has."""
    methods = options.methods or (("regular", "pipo") if is_pipo else ("regular",))
    if not is_pipo and "pipo" in methods:
        others = [method for method in METHODS[options.engine] if method != "pipo"]
        raise UsageError("--methods", f"{options.model} is no PIPO model", f"choose from {', '.join(others)}")
    if not is_pipo and options.threshold is not None:
        raise UsageError("--threshold", f"{options.model} is no PIPO model", "leave it out")
    return methods
