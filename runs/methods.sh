#!/usr/bin/env bash
# Speed of every method at the same rates of kept drafts, in one run: first tokens of long prompts, cache, batches of 16.
# usage: runs/methods.sh [OUT]     writes OUT/*.json and prints a table; nothing else should run meanwhile
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
OUT=${1:-out/methods}
KEPT=0.83  # the share of drafts that demo keeps at its stored threshold, see docs/results/accuracy.md
mkdir -p "$OUT"

bench() { # NAME OPTIONS...
  local file="$OUT/$1.json"
  shift
  [ -f "$file" ] || { .venv/bin/pipo bench demo --base demo-base --json "$@" > "$file.tmp" && mv "$file.tmp" "$file"; }
}

bench prompts --methods regular,mtp,speculative,pipo --force-acceptance $KEPT --prompt-lengths 2048,6144 --new-tokens 32
bench prompts_alone --methods regular,pipo --threshold 2 --prompt-lengths 2048,6144 --new-tokens 32
bench batch --methods regular,mtp,speculative,pipo --force-acceptance $KEPT --prompt-lengths 128 --concurrency 16 --new-tokens 64
bench batch_alone --methods regular,pipo --threshold 2 --prompt-lengths 128 --concurrency 16 --new-tokens 64
.venv/bin/python runs/methods_table.py "$OUT"
