"""Checkpoints of a run: which one to go on from, and the whole model out of a sharded one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from pipo.errors import UsageError


def last_checkpoint(folder: str, resume: bool, ranks: int = 1) -> str | None:
    """The newest whole checkpoint, which `ranks` processes wrote. Refuses to train over another run's checkpoints."""
    found = sorted(Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*[0-9]"), key=lambda path: int(path.name.split("-")[-1]))
    if found and not resume:
        raise UsageError("output", f"{folder} holds a run already", "pass --resume to go on, or choose another folder")
    return next((str(path) for path in reversed(found) if is_whole(path, ranks)), None)


def is_whole(checkpoint: Path, ranks: int) -> bool:
    """Was it written to its end? A process that is killed leaves a part of its last one."""
    try:
        json.loads((checkpoint / TRAINER_STATE_NAME).read_text())
    except (OSError, ValueError):
        return False
    states = [f"rng_state_{rank}.pth" for rank in range(ranks)] if ranks > 1 else ["rng_state.pth"]
    return all((checkpoint / name).is_file() for name in states)


def whole_model(trainer: Any, build: Callable[[], Any]) -> Any:
    """The trained model in one piece, on rank 0 (None elsewhere). All ranks take part.

    `build` makes the model that training started from; sharded tensors are gathered into it.
    """
    if not trainer.is_fsdp_enabled:
        return trainer.accelerator.unwrap_model(trainer.model) if trainer.is_world_process_zero() else None
    state = trainer.accelerator.get_state_dict(trainer.model)
    if not trainer.is_world_process_zero():
        return None
    model = build()
    model.load_state_dict(state)
    return model
