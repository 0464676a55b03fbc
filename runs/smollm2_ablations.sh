#!/usr/bin/env bash
# Each choice alone, on 0.3M tokens from the same start: a few minutes an arm on two cores, resumable.
# Their losses on held-out conversations decide the defaults. Run runs/smollm2_gsm.sh first.
set -euo pipefail
cd "$(dirname "$0")/.."
OUT=out/smollm2
ARMS=$OUT/ablations
mkdir -p "$ARMS"
[ -d "$ARMS/start" ] || .venv/bin/pipo convert demo-base "$ARMS/start"

arm() {
  local name=$1
  shift
  [ -f "$ARMS/$name/config.json" ] ||
    .venv/bin/pipo sft --config runs/smollm2_pipo.yaml --resume "model=$ARMS/start" "output=$ARMS/$name" 'lora={rank: 64, alpha: 64}' \
      trainer.max_steps=100 trainer.save_steps=100 "$@"
}
arm shift
arm split pads.scheme=split
arm dense loss.teacher=demo-base

head -120 "$OUT/heldout.jsonl" >"$ARMS/heldout.jsonl"
.venv/bin/python runs/heldout_loss.py "$ARMS/heldout.jsonl" "$ARMS"/{shift,split,dense}
