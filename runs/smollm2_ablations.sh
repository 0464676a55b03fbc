#!/usr/bin/env bash
# Each choice alone, from the same start: ten minutes or so an arm on two cores, resumable. Run runs/smollm2_gsm.sh first.
#   runs/smollm2_ablations.sh sft       PADs, dense distillation, compressors: 0.3M tokens of PIPO-SFT, held-out losses
#   runs/smollm2_ablations.sh distill   divergences, what the confidence sees: accuracy, tokens per step and ECE
source "$(dirname "$0")/smollm2.sh"
ARMS=$OUT/ablations
mkdir -p "$ARMS"

sft_arm() { # NAME START OVERRIDE...
  local name=$1 start=$2
  shift 2
  [ -f "$ARMS/$name/config.json" ] ||
    $pipo sft --config runs/smollm2_pipo.yaml --resume "model=$ARMS/starts/$start" "output=$ARMS/$name" \
      'lora={rank: 64, alpha: 64}' trainer.max_steps=100 trainer.save_steps=50 "$@"
}

sft() {
  [ -d "$ARMS/starts/linear" ] || $python runs/starts.py demo-base "$OUT/train.jsonl" "$ARMS/starts"
  sft_arm shift ours
  sft_arm linear linear
  sft_arm random random
  sft_arm split ours pads.scheme=split
  sft_arm dense ours loss.teacher=demo-base
  head -120 "$OUT/heldout.jsonl" >"$ARMS/heldout.jsonl"
  $python runs/heldout_loss.py "$ARMS/heldout.jsonl" "$ARMS"/{shift,linear,random,split,dense}
}

distill_arm() { # NAME START OVERRIDE...
  local name=$1 start=$2
  shift 2
  [ -f "$ARMS/$name/config.json" ] ||
    $pipo distill --config runs/smollm2_distill.yaml --resume "model=$start" "output=$ARMS/$name" \
      trainer.max_steps=30 trainer.save_steps=10 "$@"
  $pipo calibrate "$ARMS/$name" --base demo-base --task smollm2_mix --seed 0 --limit 200 --samples 2 --thresholds 0.9 --no-control \
    --max-new-tokens 256 --batch-size 64 --dtype bfloat16 --output "$ARMS/calibration/$name" >/dev/null
}

distill() {
  [ -d "$ARMS/draft_start" ] ||
    $python -c "from pipo.shipped import write_start as w; w('$ARMS/draft_start', confidence_inputs='draft')"
  distill_arm topk "$OUT/pipo_start"
  distill_arm full "$OUT/pipo_start" 'divergence={kind: full}'
  distill_arm sampled "$OUT/pipo_start" 'divergence={kind: sampled}'
  distill_arm draft "$ARMS/draft_start"
  $python - "$ARMS"/calibration/{topk,full,sampled,draft}/calibration.json <<'EOF'
import json, sys
from pathlib import Path

print("| arm | avg@2 | 95 % interval | tokens per step | acceptance | kept: true acceptance | ECE |\n" + "|---" * 7 + "|")
for path in map(Path, sys.argv[1:]):
    (point,) = json.loads(path.read_text())["points"]
    low, high = point["score_ci95"]
    cells = [f"{point['score']:.1%}", f"{low:.1%} to {high:.1%}", f"{point['tokens_per_step']:.2f}"]
    cells += [f"{point['acceptance_rate']:.1%}", f"{point['kept_acceptance']:.3f}", f"{point['ece']:.3f}"]
    print("| " + " | ".join([path.parent.name, *cells]) + " |")
EOF
}

case "${1:-}" in
  sft | distill) "$1" ;;
  *) echo "usage: $0 sft|distill" >&2 && exit 2 ;;
esac
