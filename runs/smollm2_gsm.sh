#!/usr/bin/env bash
# SmolLM2-135M-Instruct on smollm2_mix, from the PyPI package to the results page: hours on two cores, resumable.
# Every step is skipped where its result is there already. Trained adapters are packed into the package's assets;
# `runs/smollm2_gsm.sh keep` evaluates the shipped ones instead of training.
set -euo pipefail
cd "$(dirname "$0")/.."
OUT=out/smollm2
python=.venv/bin/python
pipo=.venv/bin/pipo
mkdir -p "$OUT"

train() {
  ln -sfn "$($python -c 'from pipo.shipped import stock; print(stock())')" "$OUT/stock"
  [ -f "$OUT/train_regular.jsonl" ] || $python -m pipo.tasks.smollm2_mix --n 2400 --seed 1 --output "$OUT/train_regular.jsonl"
  [ -f "$OUT/train_pipo.jsonl" ] || $python -m pipo.tasks.smollm2_mix --n 60000 --seed 2 --output "$OUT/train_pipo.jsonl"

  # (a) the uncompressed fine-tune: baseline and teacher
  [ -f "$OUT/regular/config.json" ] || $pipo sft --config runs/smollm2_regular.yaml --resume
  $python -m pipo.shipped "$OUT/regular/adapter" demo-base

  # (b) PIPO-SFT from it
  [ -d "$OUT/pipo_start" ] || $pipo convert demo-base "$OUT/pipo_start"
  [ -f "$OUT/pipo/config.json" ] || $pipo sft --config runs/smollm2_pipo.yaml --resume
  $python -m pipo.shipped "$OUT/pipo/adapter" demo 0.7
}

# Accuracy, in batches, then speed, one at a time and on an idle machine.
evaluate() {
  local common=(--task smollm2_mix --seed 0 --budget tokens:160)
  local accuracy=("${common[@]}" --samples 4 --limit 200 --batch-size 32 --no-timing)
  local speed=("${common[@]}" --samples 1 --limit 16)
  $pipo eval demo-base "${accuracy[@]}" --methods regular --output "$OUT/eval/regular"
  $pipo eval demo-base "${speed[@]}" --methods regular --output "$OUT/speed/regular"
  for tau in 0 0.5 0.7 0.9 0.95 2; do
    $pipo eval demo "${accuracy[@]}" --methods pipo --threshold "$tau" --output "$OUT/eval/pipo_$tau"
    $pipo eval demo "${speed[@]}" --methods pipo --threshold "$tau" --output "$OUT/speed/pipo_$tau"
  done
  $python -m pipo.evals.sweep "$OUT"/eval/* --output docs/results/smollm2_gsm_accuracy
  $python runs/curves.py "$OUT/regular" "$OUT/pipo" --output docs/results/smollm2_gsm_training
  $python -m pipo.evals.sweep "$OUT"/speed/* --output docs/results/smollm2_gsm_speed
}

[ "${1:-}" = keep ] || train
evaluate
