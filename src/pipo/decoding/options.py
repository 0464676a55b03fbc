"""How tokens are drawn: the one description that recipes, command line, servers and `generate` are made from."""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, ValidationError

from pipo.errors import UsageError
from pipo.runtime.recipe import Section


class Sampling(Section):
    """Options of drawing, in the order in which they are applied: penalties, temperature, top-k, top-p."""

    temperature: float = Field(default=1.0, ge=0, allow_inf_nan=False, description="0 is greedy")
    top_p: float = Field(
        default=0.95, gt=0, le=1, description="draw from the likeliest tokens of this total probability; 1 is all"
    )
    top_k: int = Field(default=20, ge=0, description="draw from this many likeliest tokens; 0 is all")
    presence_penalty: float = Field(
        default=0.0, allow_inf_nan=False, description="taken from the logits of tokens already written"
    )
    repetition_penalty: float = Field(
        default=1.0, gt=0, allow_inf_nan=False, description="divides the logits of tokens already seen; 1 is none"
    )

    @classmethod
    def of(cls, **values: Any) -> Self:
        """Raises `UsageError` that names the flag of the first value that cannot be."""
        try:
            return cls(**values)
        except ValidationError as error:
            first = error.errors()[0]
            name = str(first["loc"][0])
            problem = f"{first['input']!r} cannot be: {first['msg'][0].lower()}{first['msg'][1:]}"
            fix = cls.model_fields[name].description or "see --help"
            raise UsageError(f"--{name.replace('_', '-')}", problem, fix) from None

    def draws(self) -> dict[str, Any]:
        """The options themselves, without what a section that is made from this one has besides."""
        return {name: getattr(self, name) for name in Sampling.model_fields}

    def generate_options(self) -> dict[str, Any]:
        """As `generate` takes them."""
        options = self.draws()
        if self.temperature == 0:
            return {"do_sample": False} | {name: options[name] for name in ("presence_penalty", "repetition_penalty")}
        return {"do_sample": True} | options


GREEDY = Sampling(temperature=0)
