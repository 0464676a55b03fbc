#!/usr/bin/env bash
# Free text: the stock SmolLM2-135M-Instruct answers instructions, PIPO is trained on its answers, then on-policy, and is
# judged by the stock model's log-likelihood, on instructions that were not trained on. Hours on two cores, resumable.
#   runs/smollm2_free_text.sh [all|sft|distill]     what to train and judge
source "$(dirname "$0")/smollm2.sh"

data() {
  link_stock
  $python runs/instructions.py "$OUT/instructions.jsonl"
  $pipo data build --config runs/data_smollm2_free_text.yaml teacher.dtype=$dtype
  [ -d "$OUT/free_text_start" ] ||
    $python runs/pack_shipped.py "$OUT/free_text_start" demo-start "$OUT/stock"
}

# RUN THRESHOLDS: its losses, its report and its plots among the results
judge() {
  local run=$1 name=smollm2_$1
  $pipo calibrate "$OUT/$run" --base "$OUT/stock" --data "$OUT/free_text/opd.jsonl" --thresholds "$2" \
    --max-new-tokens 192 --batch-size 64 --dtype "$dtype" --output "$OUT/${run}_calibration"
  publish_calibration "$OUT/${run}_calibration" "$name"
  $python runs/curves.py "$OUT/$run" --output "docs/results/${name}_training"
}

sft() {
  [ -f "$OUT/free_text_pipo/config.json" ] || $pipo sft --config runs/smollm2_free_text_sft.yaml --resume trainer.bf16=$bf16
  judge free_text_pipo 0,0.2,0.4,2
}

distill() {
  [ -f "$OUT/free_text_distilled/config.json" ] ||
    $pipo distill --config runs/smollm2_free_text_distill.yaml --resume trainer.bf16=$bf16
  judge free_text_distilled 0,0.2,0.4,2
}

case "${1:-all}" in
  all) data && sft && distill ;;
  sft | distill) data && "$1" ;;
  *) echo "usage: $0 [all|sft|distill]" >&2 && exit 2 ;;
esac
