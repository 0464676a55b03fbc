"""Checkpoints of a run: which one to go on from, and the whole model out of a sharded one."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from pipo.errors import UsageError

log = logging.getLogger("pipo")


WEIGHTS = (
    "model*.safetensors",
    "adapter_model*.safetensors",
    "pytorch_model*.bin",
    "pytorch_model_fsdp_0",
    "global_step*",
)
OPTIMIZER = ("optimizer.pt", "optimizer.bin", "optimizer_0", "global_step*")
"""What a checkpoint's weights and its optimizer's state may lie in: whole, sharded, or DeepSpeed's."""


def last_checkpoint(folder: str, resume: bool, ranks: int = 1) -> str | None:
    """The newest whole checkpoint; None where there is none at all, so that training starts.

    Raises `UsageError` over another run's checkpoints without `resume`, and where with it none can be gone on from.
    """
    found = sorted(Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*[0-9]"), key=lambda path: int(path.name.split("-")[-1]))
    if found and not resume:
        raise UsageError("output", f"{folder} holds a run already", "pass --resume to go on, or choose another folder")
    for path in reversed(found):
        problem = what_is_wrong(path, ranks)
        if problem is None:
            return str(path)
        log.warning("left out %s: %s", path, problem)
    if found:
        reason = f"no checkpoint in {folder} can be gone on from ({found[-1].name}: {what_is_wrong(found[-1], ranks)})"
        raise UsageError("--resume", reason, "choose another output folder to start anew")
    return None


def what_is_wrong(checkpoint: Path, ranks: int) -> str | None:
    """Why training cannot go on from it, None where it can. A process that is killed leaves a part of its last one.

    Random states of ranks are not asked for: data, PADs and noise depend on (seed, epoch, index) alone.
    """
    try:
        json.loads((checkpoint / TRAINER_STATE_NAME).read_text())
    except (OSError, ValueError):
        return f"no whole {TRAINER_STATE_NAME}"
    if not any(any(checkpoint.glob(name)) for name in WEIGHTS):
        return "no weights"
    if not any(any(checkpoint.glob(name)) for name in OPTIMIZER):
        return "no state of the optimizer (trainer.save_only_model?)"
    shards = {part.name for part in checkpoint.glob("global_step*/*zero_pp_rank_*_optim_states.pt")}
    if shards and len(shards) != ranks:
        return f"DeepSpeed wrote it on {len(shards)} ranks, and these are {ranks}"
    return None


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
