#!/usr/bin/env bash
# Which start trains best: the same short PIPO-SFT from every start of the compressor and of the MTP head, judged by the
# losses on held-out conversations. A few minutes an arm on two cores, resumable. Run runs/smollm2_gsm.sh first: it
# makes the conversations.
set -euo pipefail
cd "$(dirname "$0")/.."
OUT=out/smollm2
ARMS=$OUT/starts
STEPS=50
[ -f "$ARMS/losses.txt" ] || {
  mkdir -p "$ARMS"
  .venv/bin/python runs/starts.py demo-base "$OUT/train.jsonl" "$ARMS/start" | tee "$ARMS/losses.tmp"
  mv "$ARMS/losses.tmp" "$ARMS/losses.txt"
}
head -120 "$OUT/heldout.jsonl" >"$ARMS/heldout.jsonl"
for start in "$ARMS"/start/*; do
  name=$(basename "$start")
  [ -f "$ARMS/$name/config.json" ] ||
    .venv/bin/pipo sft --config runs/smollm2_pipo.yaml --resume "model=$start" "output=$ARMS/$name" \
      'lora={rank: 64, alpha: 64}' trainer.max_steps=$STEPS trainer.save_steps=$STEPS trainer.warmup_steps=10
done
.venv/bin/python runs/heldout_loss.py "$ARMS/heldout.jsonl" $(for start in "$ARMS"/start/*; do echo "$ARMS/$(basename "$start")"; done)
