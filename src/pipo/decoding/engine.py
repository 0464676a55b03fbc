"""The local engine: prompts in, completions out, for a PIPO model or any causal LM (regular decoding)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any, TypeVar

import torch

from pipo.convert.pad_token import id_list
from pipo.convert.shipped import resolve
from pipo.data.chat import encode_prompt
from pipo.decoding.generate import PipoGenerateOutput, generate
from pipo.decoding.options import Sampling
from pipo.decoding.reader import left_pad
from pipo.decoding.text_stream import decode
from pipo.errors import UsageError
from pipo.model import mtp_base
from pipo.model.families import warn_slow_layers
from pipo.model.mtp import MtpHead
from pipo.model.mtp_base import load_mtp
from pipo.pairing import Slot

T = TypeVar("T")


@dataclass(frozen=True)
class Completion:
    """One answer. Counts are of real tokens; times in milliseconds, None where a batch hides them."""

    prompt: list[int]
    slots: list[Slot]
    text: str  # special tokens skipped
    finish_reason: str  # "stop" or "length"
    ttft_ms: float | None = None
    tpot_ms: float | None = None
    kv_bytes: int = 0

    @cached_property
    def token_ids(self) -> list[int]:
        return [token for slot in self.slots for token in slot.tokens]

    @property
    def prompt_tokens(self) -> int:
        return len(self.prompt)

    @property
    def steps(self) -> int:
        return len(self.slots)

    @property
    def drafted(self) -> int:
        return sum(slot.draft is not None for slot in self.slots)

    @property
    def accepted(self) -> int:
        return sum(slot.accepted for slot in self.slots)

    @property
    def acceptance_rate(self) -> float | None:
        return self.accepted / self.drafted if self.drafted else None

    @property
    def tokens_per_step(self) -> float:
        return len(self.token_ids) / self.steps


class LocalEngine:
    """A model with its tokenizer. `source`: where an uncompressed one's MTP head is looked for."""

    def __init__(self, model: Any, tokenizer: Any, source: str = "") -> None:
        self.model, self.tokenizer, self.source = model.eval(), tokenizer, source
        self.is_pipo = model.config.model_type == "pipo"

    @classmethod
    def load(cls, source: str, *, dtype: str = "auto", device: str = "cpu") -> LocalEngine:
        """`source`: folder, hub id, GGUF file, `demo` or `demo-base`. On a CPU "auto" is float32."""
        from pipo.convert.base import load_model, load_tokenizer, warn_slow_bfloat16

        path = resolve(source)
        if torch.device(device).type == "cpu":
            if dtype == "auto":
                dtype = "float32"
            elif dtype == "bfloat16":
                warn_slow_bfloat16("--dtype bfloat16")
        model, tokenizer = load_model(path, dtype=dtype), load_tokenizer(path)
        rows = model.get_output_embeddings().weight.shape[0]
        if len(tokenizer) > rows:
            raise UsageError(
                "tokenizer", f"{len(tokenizer)} tokens, the model has {rows}", "use the model's own tokenizer"
            )
        warn_slow_layers(model, device)
        return cls(model.to(device), tokenizer, path)

    @cached_property
    def mtp(self) -> MtpHead:
        """The MTP head of an uncompressed model. Raises `UsageError` where it has none."""
        return load_mtp(self.model, self.source)

    @property
    def ends(self) -> list[int] | None:
        """The tokens that end an answer: the model's, or the tokenizer's where the model names none."""
        return id_list(self.model.generation_config.eos_token_id) or id_list(self.tokenizer.eos_token_id) or None

    def encode(self, prompt: str | Sequence[dict[str, Any]], thinking: bool | None = None, **options: Any) -> list[int]:
        """A question or chat messages -> the ids of the templated prompt; `thinking` and `options` as in `render`."""
        return encode_prompt(self.tokenizer, prompt, thinking=thinking, **options)

    def complete(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        sampling: Sampling,
        max_new_tokens: int,
        method: str | None = None,
        threshold: float | None = None,
        force_acceptance: float | None = None,
        seeds: Sequence[int] | None = None,
        ignore_eos: bool = False,
        stop_strings: Sequence[str] = (),
        tail: float | None = None,
        on_slot: Callable[[int, Slot], None] | None = None,
        arrived: float | None = None,
    ) -> list[Completion]:
        """Decode a batch. With `seeds`, one a prompt, an answer does not depend on the rest of its batch.

        An answer ends with the first of `stop_strings` that it contains. `arrived` (`time.perf_counter()`) is when the
        request came in, before tokenization. Times are given for a batch of one. `method`: mtp or speculative, where
        an uncompressed model is to decode with its MTP head. `tail`: as in `generate`.
        """
        arrived = time.perf_counter() if arrived is None else arrived
        pad = self.model.config.pad_token_id if self.is_pipo else (self.tokenizer.pad_token_id or 0)
        ids, mask = left_pad(prompts, pad, self.model.device)
        options: dict[str, Any] = {"eos_token_id": None if ignore_eos else self.ends}
        if method in mtp_base.METHODS:
            options |= {"mtp": self.mtp, "verified": method == "speculative"}
        if stop_strings:
            options |= {"stop_strings": list(stop_strings), "tokenizer": self.tokenizer}
        out = generate(
            self.model,
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            pad_token_id=pad,
            generators=None if seeds is None else [self._generator(seed) for seed in seeds],
            on_slot=on_slot,
            tail=tail,
            confidence_threshold=threshold,
            force_acceptance=force_acceptance,
            return_dict_in_generate=True,
            **sampling.generate_options(),
            **options,
        )
        return [self._completion(out, row, prompts[row], arrived) for row in range(len(prompts))]

    def _generator(self, seed: int) -> torch.Generator:
        return torch.Generator(self.model.device).manual_seed(seed)

    def _completion(self, out: PipoGenerateOutput, row: int, prompt: Sequence[int], arrived: float) -> Completion:
        slots = out.slots[row]  # type: ignore[index]
        tokens = [token for slot in slots for token in slot.tokens]
        later = len(tokens) - len(slots[0].tokens)
        alone = len(out.slots) == 1  # type: ignore[arg-type]
        loop_s = out.finished_at - out.first_slot_at  # type: ignore[operator]
        return Completion(
            prompt=list(prompt),
            slots=slots,
            text=decode(self.tokenizer, tokens),
            finish_reason=out.finish_reasons[row],  # type: ignore[index]
            ttft_ms=1000 * (out.first_slot_at - arrived) if alone else None,  # type: ignore[operator]
            tpot_ms=1000 * loop_s / later if alone and later else None,
            kv_bytes=out.kv_bytes or 0,
        )


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items, the last of what is left."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def pick_device(name: str) -> str:
    """A device by its name; "auto" is the GPU where there is one. Raises `UsageError` where it cannot be used."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError("--device", f"{name!r} cannot be used here", "use cpu, cuda or auto") from error
    return name
