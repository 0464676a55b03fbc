"""Which model a method decodes with."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipo.convert.base import stored_threshold
from pipo.convert.shipped import resolve
from pipo.decoding.engine import Completion, LocalEngine
from pipo.decoding.mtp_base import check_rolls_back
from pipo.errors import UsageError
from pipo.measure.evals.options import METHODS, EvalOptions
from pipo.model import mtp_base
from pipo.model.families import MTP_FILE, load_config, text_config
from pipo.pairing import chosen_threshold

if TYPE_CHECKING:
    from pipo.vllm.engine import VllmEngine
    from pipo.vllm.replicas import Replicas


@dataclass
class Contestant:
    """A method with its model. `threshold` is of `pipo` alone, None for the others.

    force_acceptance: share of the drafts that a coin keeps instead.
    served: what vLLM is started with, None for the local engine; `replicas` of it share the answers out.
    """

    method: str
    name: str  # as the user calls the model
    path: str
    threshold: float | None
    dtype: str
    device: str
    force_acceptance: float | None = None
    served: dict[str, Any] | None = None
    replicas: int = 1
    engines: dict[str, Any] = field(default_factory=dict)
    """Loaded models by path: methods share them."""

    @property
    def engine(self) -> Any:  # LocalEngine | VllmEngine | Replicas
        """The loaded model, once."""
        if self.path not in self.engines:
            self.engines[self.path] = self._load()
        return self.engines[self.path]

    def _load(self) -> LocalEngine | VllmEngine | Replicas:
        if self.served is None:
            return LocalEngine.load(self.path, dtype=self.dtype, device=self.device)
        from pipo.vllm.engine import VllmEngine
        from pipo.vllm.replicas import Replicas

        if self.replicas > 1:
            return Replicas.load(self.path, self.replicas, dtype=self.dtype, **self.served)
        return VllmEngine.load(self.path, dtype=self.dtype, **self.served)

    def complete(self, prompts: Sequence[Sequence[int]], **options: Any) -> list[Completion]:
        """As the engine's own `complete`, by this method."""
        if self.served is None:
            options["method"] = self.method
        done: list[Completion] = self.engine.complete(
            prompts, threshold=self.threshold, force_acceptance=self.force_acceptance, **options
        )
        return done

    def close(self) -> None:
        """End the processes of a served model."""
        engine = None if self.served is None else self.engines.pop(self.path, None)
        if engine is not None:
            engine.close()

    def variant(self, method: str, threshold: float, force_acceptance: float | None = None) -> Contestant:
        """The same model, loaded once for both, with another acceptance."""
        return replace(self, method=method, threshold=threshold, force_acceptance=force_acceptance)

    @property
    def tokens_per_slot(self) -> int:
        return 1 if self.method == "regular" else 2

    def fingerprint(self) -> str | None:
        """Changes when the files of a local model do; None for a model of the hub."""
        folder = Path(self.path)
        if not folder.exists():
            return None
        files = [folder] if folder.is_file() else sorted(p for p in folder.iterdir() if p.suffix in WEIGHTS)
        if self.method not in mtp_base.METHODS:
            files = [file for file in files if file.name != MTP_FILE]
        facts = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


WEIGHTS = {".safetensors", ".bin", ".gguf"}


def contestants(options: EvalOptions) -> list[Contestant]:
    """One for each method, in the order of METHODS. Raises `UsageError`."""
    path = resolve(options.model)
    config = _config("MODEL", path)
    is_pipo = config is not None and config.model_type == "pipo"
    methods = options.methods or (("regular", "pipo") if is_pipo else ("regular",))
    served = _served(options, methods)
    if not is_pipo and "pipo" in methods:
        raise UsageError("--methods", f"{options.model} is no PIPO model", "use regular, mtp or speculative")
    if not is_pipo and options.base is not None:
        raise UsageError("--base", f"{options.model} is uncompressed itself", "leave --base out")
    if not is_pipo and options.threshold is not None:
        raise UsageError("--threshold", f"{options.model} is no PIPO model", "leave it out")
    common: dict[str, Any] = {"dtype": options.dtype, "device": options.load_device(), "served": served, "engines": {}}
    common["replicas"] = options.replicas
    found = []
    if set(methods) != {"pipo"}:
        name, base = _base(options, config) if is_pipo else (options.model, config)
        for method in (method for method in METHODS if method in methods and method != "pipo"):
            _check_drafts(method, name, base)
            found.append(Contestant(method, name, resolve(name), None, **common))
    if "pipo" in methods:
        one = Contestant("pipo", options.model, path, _threshold(options, path), **common)
        found += [one.variant(f"pipo@{t:g}", t) for t in options.thresholds] or [one]
    return found


def _served(options: EvalOptions, methods: Sequence[str]) -> dict[str, Any] | None:
    """vLLM's settings; None for the local engine. Raises `UsageError` for a method that vLLM has not."""
    if options.engine != "vllm":
        return None
    for method in methods:
        if method in mtp_base.METHODS:
            raise UsageError("--methods", f"{method!r} is not measured in vLLM", "choose from regular, pipo")
    from pipo.vllm.engine import engine_memory

    models = ("pipo" in methods) + (set(methods) != {"pipo"})
    seats = -(-options.batch_size // options.replicas)
    return {"max_num_seqs": seats} | engine_memory(models, options.replicas)


def _check_drafts(method: str, name: str, config: Any) -> None:
    """Raises `UsageError` where the base cannot decode by this method."""
    if method in mtp_base.METHODS:
        mtp_base.check_mtp(f"--methods {method}", name, resolve(name), config)
    if method == "speculative":
        check_rolls_back(text_config(config))


def _config(field: str, path: str) -> Any:
    """The model's config; None for a GGUF file. Raises `UsageError` that names `field`."""
    return None if path.endswith(".gguf") else load_config(field, path)


def _base(options: EvalOptions, config: Any) -> tuple[str, Any]:
    """The uncompressed model and its config: --base, or what the PIPO model was trained from."""
    name = options.base or ("demo-base" if options.model == "demo" else config.base_model)
    if name is None:
        raise UsageError("--base", f"{options.model} does not say what it was trained from", "give --base BASE")
    try:
        base = _config("--base", resolve(name))
    except UsageError as error:
        raise UsageError("--base", error.problem, "give --base BASE, or --methods pipo") from None
    if base is not None and base.model_type == "pipo":
        raise UsageError("--base", f"{name} is a PIPO model", "give an uncompressed model")
    return str(name), base


def _threshold(options: EvalOptions, path: str) -> float:
    return chosen_threshold(options.threshold, stored_threshold(path))
