#!/usr/bin/env bash
# Which start trains best: the same short PIPO-SFT from every start of the compressor and of the MTP head, on the same
# conversations in the same order, each read once. The losses of the last ten steps decide. A few minutes an arm on two
# cores, resumable. Run runs/smollm2_gsm.sh first: it makes the conversations.
source "$(dirname "$0")/smollm2.sh"
ARMS=$OUT/starts
STEPS=50
[ -f "$ARMS/losses.txt" ] || {
  mkdir -p "$ARMS"
  $python runs/starts.py demo-base "$OUT/train.jsonl" "$ARMS/start" | tee "$ARMS/losses.tmp"
  mv "$ARMS/losses.tmp" "$ARMS/losses.txt"
}
for start in "$ARMS"/start/*; do
  name=$(basename "$start")
  [ -f "$ARMS/$name/config.json" ] ||
    $pipo sft --config runs/smollm2_pipo.yaml --resume "model=$start" "output=$ARMS/$name" \
      'lora={rank: 64, alpha: 64}' trainer.max_steps=$STEPS trainer.save_steps=$STEPS trainer.warmup_steps=10 \
      trainer.logging_steps=10
  $python - "$ARMS/$name/checkpoint-$STEPS/trainer_state.json" "$name" <<'EOF'
import json, sys

log = [line for line in json.load(open(sys.argv[1]))["log_history"] if "backbone_loss" in line]
print(f"| {sys.argv[2]} | {float(log[-1]['backbone_loss']):.3f} | {float(log[-1]['mtp_loss']):.3f} |")
EOF
done
