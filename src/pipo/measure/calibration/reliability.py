"""Is a confidence of 0.9 right nine times of ten? Reliability, calibration error, and how right kept drafts are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipo.measure.evals.metrics import Line

BINS = 15
Array = NDArray[np.float64]


def judged(lines: Sequence[Line]) -> Array:  # -> [n, 4]: confidence, agreement, top-1, kept
    """The drafts of all samples."""
    rows = [draft for line in lines for draft in line.get("drafts", ())]
    return np.asarray(rows, dtype=np.float64).reshape(-1, 4)


def reliability(drafts: Array) -> dict[str, Any] | None:  # [n, 4]
    """Calibration against the agreement, which the head is trained for, and against top-1.

    None without drafts. `bins`: the non-empty of BINS equal parts of [0, 1].
    """
    if not len(drafts):
        return None
    confidence, accepted, top = drafts[:, 0], drafts[:, 1], drafts[:, 2]
    return {
        "drafts": len(drafts),
        "mean_confidence": float(confidence.mean()),
        "mean_agreement": float(accepted.mean()),
        "mean_top1": float(top.mean()),
        "ece": expected_calibration_error(confidence, accepted),
        "ece_top1": expected_calibration_error(confidence, top),
        "bins": _bins(confidence, accepted, top),
    }


def expected_calibration_error(confidence: Array, target: Array) -> float:  # [n], [n]
    """The mean over drafts of |mean confidence - mean target| of their bin."""
    at = _bin(confidence)
    sums = (np.bincount(at, weights=confidence - target, minlength=BINS)).astype(float)
    return float(np.abs(sums).sum() / len(confidence))


def of_kept(drafts: Array) -> dict[str, Any]:  # [n, 4]
    """How right the kept drafts were: their mean agreement and top-1, None where none was kept."""
    kept = drafts[drafts[:, 3] == 1]
    if not len(kept):
        return {"kept_agreement": None, "kept_top1": None}
    return {"kept_agreement": float(kept[:, 1].mean()), "kept_top1": float(kept[:, 2].mean())}


def _bin(confidence: Array) -> NDArray[np.int64]:
    return np.minimum((confidence * BINS).astype(np.int64), BINS - 1)


def _bins(confidence: Array, accepted: Array, top: Array) -> list[dict[str, float]]:
    at = _bin(confidence)
    found = []
    for i in range(BINS):
        here = at == i
        if here.any():
            found.append(
                {
                    "low": i / BINS,
                    "high": (i + 1) / BINS,
                    "drafts": int(here.sum()),
                    "confidence": float(confidence[here].mean()),
                    "agreement": float(accepted[here].mean()),
                    "top1": float(top[here].mean()),
                }
            )
    return found
