#!/usr/bin/env bash
# SmolLM2-135M-Instruct on smollm2_mix, from the PyPI package to the results page: hours on two cores, resumable.
# Every step is skipped where its result is there already. Training goes on from the shipped adapters (each session of
# training made them better; FRESH=1 starts from the stock model instead), and packs what it made into the assets.
# `runs/smollm2_gsm.sh keep` evaluates the shipped ones without training.
source "$(dirname "$0")/smollm2.sh"

data() {
  [ -f "$OUT/train.jsonl" ] || $python runs/smollm2_data.py --n 48000 --seed 4 --drills 0.15 --output "$OUT/train.jsonl"
  [ -f "$OUT/heldout.jsonl" ] || $python runs/smollm2_data.py --n 300 --seed 9 --output "$OUT/heldout.jsonl"
}

train() {
  link_stock
  # (a) the uncompressed fine-tune: baseline and teacher
  [ -f "$OUT/regular/config.json" ] || $pipo sft --config runs/smollm2_regular.yaml --resume trainer.bf16=$bf16 ${FRESH:+'lora={rank: 8}'}
  $python runs/pack_shipped.py "$OUT/regular/adapter" demo-base

  # (b) PIPO-SFT from it
  if [ ! -d "$OUT/pipo_start" ]; then
    if [ -n "${FRESH:-}" ]; then $pipo convert demo-base "$OUT/pipo_start"; else $python runs/pack_shipped.py "$OUT/pipo_start" demo-start; fi
  fi
  [ -f "$OUT/pipo/config.json" ] || $pipo sft --config runs/smollm2_pipo.yaml --resume trainer.bf16=$bf16 ${FRESH:+'lora={rank: 64, alpha: 64}'}

  # (c) on-policy distillation of that, from demo-base, which is its own backbone with the adapter off
  [ -f "$OUT/distilled/config.json" ] || $pipo distill --config runs/smollm2_distill.yaml --resume trainer.bf16=$bf16
  $python runs/pack_shipped.py "$OUT/distilled/adapter" demo 0.9

  # the control of drafting alone: an MTP head for demo-base
  [ -f "$OUT/mtp/mtp.safetensors" ] || $pipo sft --config runs/smollm2_mtp.yaml --resume trainer.bf16=$bf16
  $python runs/pack_shipped.py "$OUT/mtp/mtp.safetensors" demo-base-mtp
}

# RUN NAME: its report and plot among the results
publish() {
  sed "s/(accuracy.png)/($2.png)/" "$1/report.md" >"docs/results/$2.md"
  cp "$1/accuracy.png" "docs/results/$2.png"
}

# Accuracy, in batches: unseen numbers in known wordings, then held-out wordings.
accuracy() {
  local common=(--task smollm2_mix --seed 0 --budget tokens:256 --samples 4 --batch-size 64 --no-timing --dtype "$dtype")
  $pipo eval demo "${common[@]}" --limit 200 --methods regular,mtp,speculative,pipo --thresholds 0,0.5,0.7,0.9,0.95,2 \
    --output "$OUT/eval"
  publish "$OUT/eval" smollm2_gsm_accuracy
  $pipo eval demo "${common[@]}" --held-out --methods regular,pipo --thresholds 0.9,2 --output "$OUT/held_out"
  publish "$OUT/held_out" smollm2_gsm_held_out
  if [ -d "$OUT/pipo" ]; then # trained here: before distillation
    $pipo eval "$OUT/pipo" "${common[@]}" --limit 200 --methods pipo --threshold 0.9 --output "$OUT/sft_only"
    $python runs/curves.py "$OUT/regular" "$OUT/pipo" --output docs/results/smollm2_gsm_training
  fi
}

# Thresholds on other questions, beside random rejection; is the confidence what it says?
calibration() {
  $pipo calibrate demo --task smollm2_mix --limit 150 --thresholds 0,0.5,0.7,0.9,0.95,2 --max-new-tokens 256 --batch-size 64 \
    --dtype "$dtype" --output "$OUT/calibration"
  publish_calibration "$OUT/calibration" smollm2_gsm_calibration
}

# Speed at the same thresholds, one at a time: on an idle machine, with the allocator that users have.
speed() {
  unset MALLOC_MMAP_MAX_ MALLOC_TRIM_THRESHOLD_ MALLOC_ARENA_MAX
  $pipo eval demo --task smollm2_mix --seed 0 --budget tokens:256 --samples 1 --limit 16 \
    --methods regular,mtp,speculative,pipo --thresholds 0,0.5,0.7,0.9,0.95,2 --output "$OUT/speed"
  publish "$OUT/speed" smollm2_gsm_speed
}

data
case "${1:-all}" in
  all) train && accuracy && calibration && speed ;;
  keep) accuracy && calibration && speed ;;
  data) ;;
  train | accuracy | calibration | speed) "$1" ;;
  *) echo "usage: $0 [all|keep|data|train|accuracy|calibration|speed]" >&2 && exit 2 ;;
esac
