#!/usr/bin/env bash
# Free text: the stock SmolLM2-135M-Instruct answers instructions, PIPO is trained on its answers, and both are judged by the
# stock model's log-likelihood, on instructions that were not trained on. An hour on two cores, resumable.
source "$(dirname "$0")/smollm2.sh"
link_stock
$python runs/instructions.py "$OUT/instructions.jsonl"
$pipo data build --config runs/data_smollm2_free_text.yaml teacher.dtype=$dtype
[ -d "$OUT/free_text_start" ] ||
  $python -c "from pipo.shipped import write_start as w; w('$OUT/free_text_start', '$OUT/stock')"
[ -f "$OUT/free_text_pipo/config.json" ] || $pipo sft --config runs/smollm2_free_text_sft.yaml --resume trainer.bf16=$bf16
$pipo calibrate "$OUT/free_text_pipo" --base "$OUT/stock" --data "$OUT/free_text/opd.jsonl" --thresholds 0,0.5,0.7,0.9,2 \
  --max-new-tokens 192 --batch-size 32 --dtype "$dtype" --output "$OUT/free_text_calibration"
