"""Where a result comes from: command, versions, git revision, hardware, date."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PROCESS = ("command", "date", "versions", "git_revision", "hardware")
PACKAGES = {"pipo": "pipo-lm", "torch": "torch", "transformers": "transformers", "peft": "peft"}


def provenance(**extra: Any) -> dict[str, Any]:
    """The facts of this process, with `extra` beside them. What cannot be found out is None."""
    return {
        "command": command(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version()} | {name: _version(dist) for name, dist in PACKAGES.items()},
        "git_revision": git_revision(),
        "hardware": hardware(),
    } | extra


def write_provenance(folder: Path, **extra: Any) -> None:
    """`provenance(**extra)` as provenance.json in `folder`, whole or not at all."""
    write_json(folder / "provenance.json", provenance(**extra))


def made_from(source: str) -> dict[str, Any]:
    """What the provenance.json of a folder or hub id says beside the facts of its process; {} where there is none."""
    from transformers.utils import cached_file

    file = cached_file(source, "provenance.json", _raise_exceptions_for_missing_entries=False)
    facts: dict[str, Any] = json.loads(Path(file).read_text()) if file else {}
    return {name: value for name, value in facts.items() if name not in PROCESS}


def write_json(path: Path, value: Any) -> None:
    """Write through a temporary file beside `path`."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write through a temporary file beside `path`."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def command() -> str:
    """The command line, its program without the folder."""
    program, *arguments = sys.argv or [""]
    return shlex.join([Path(program).name, *arguments])


def git_revision() -> str | None:
    """The commit of the working folder, `-dirty` where files differ from it; None outside a repository."""
    describe = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        done = subprocess.run(describe, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def hardware() -> dict[str, Any]:
    """CPU model, the cores that this process may use, memory in GiB, GPU (None without one)."""
    return {"cpu": _cpu(), "cores": _cores(), "memory_gib": _memory_gib(), "gpu": _gpu()}


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _cpu() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine() or None


def _cores() -> int | None:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (OSError, ValueError, AttributeError):
        return None


def _gpu() -> str | None:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None
