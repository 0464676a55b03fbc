#!/usr/bin/env bash
# Each choice alone, on 0.3M tokens from the same start: a quarter of an hour an arm on two cores, resumable.
set -euo pipefail
cd "$(dirname "$0")/.."
OUT=out/smollm2
ARMS=out/smollm2/ablations
mkdir -p "$ARMS"
[ -d "$OUT/pipo_start" ] || .venv/bin/pipo convert demo-base "$OUT/pipo_start"
[ -f "$OUT/train_pipo.jsonl" ] || .venv/bin/python -m pipo.tasks.smollm2_mix --n 60000 --seed 2 --output "$OUT/train_pipo.jsonl"
[ -f "$OUT/heldout.jsonl" ] || .venv/bin/python -m pipo.tasks.smollm2_mix --n 300 --seed 9 --output "$OUT/heldout.jsonl"

arm() {
  local name=$1
  shift
  [ -f "$ARMS/$name/config.json" ] ||
    .venv/bin/pipo sft --config runs/smollm2_pipo.yaml --resume "output=$ARMS/$name" trainer.max_steps=230 "$@"
}
arm default
arm split pads.scheme=split
arm no_pads pads.scheme=none
arm dense loss.teacher=demo-base

.venv/bin/python runs/heldout_loss.py "$OUT/heldout.jsonl" "$ARMS"/{default,split,no_pads,dense}
