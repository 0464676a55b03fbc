"""Where things lie in a checkout."""

from pathlib import Path

TESTS = Path(__file__).parent
ROOT = TESTS.parent
SRC, RUNS, DOCS = ROOT / "src", ROOT / "runs", ROOT / "docs"
PARITY = TESTS / "convert" / "parity"
"""Checkpoints in the authors' layout, with the tensors that the authors' model computes from them."""
SHARED = ROOT.parent / "shared" / "data"
"""Real benchmark files, which a user's clone has not."""
