#!/usr/bin/env bash
# Each choice alone, from the same start: a quarter of an hour to forty minutes an arm on two cores, resumable.
#   runs/smollm2_ablations.sh compressors   mlp, linear, random start: 0.3M tokens of PIPO-SFT, held-out losses
#   runs/smollm2_ablations.sh pads          PAD schemes, dense distillation: the same
#   runs/smollm2_ablations.sh distill       divergences, what the confidence sees: accuracy, tokens per step, ECE, from `demo`
source "$(dirname "$0")/smollm2.sh"
ARMS=$OUT/ablations
mkdir -p "$ARMS"
runs/smollm2_gsm.sh data

sft_arm() { # NAME START OVERRIDE...
  local name=$1 start=$2
  shift 2
  [ -d "$ARMS/starts/linear" ] || $python runs/starts.py demo-base "$OUT/train.jsonl" "$ARMS/starts"
  [ -f "$ARMS/$name/config.json" ] ||
    $pipo sft --config runs/smollm2_pipo.yaml --resume trainer.bf16=$bf16 "model=$ARMS/starts/$start" "output=$ARMS/$name" \
      'lora={rank: 64, alpha: 64}' trainer.max_steps=100 trainer.save_steps=50 "$@"
}

# ARM...: their losses on text that they were not trained on
judge_losses() {
  head -120 "$OUT/heldout.jsonl" >"$ARMS/heldout.jsonl"
  $python runs/heldout_loss.py "$ARMS/heldout.jsonl" "${@/#/$ARMS/}"
}

compressors() {
  sft_arm shift ours
  sft_arm linear linear
  sft_arm random random
  judge_losses shift linear random
}

pads() {
  sft_arm shift ours
  sft_arm split ours pads.scheme=split
  sft_arm dense ours loss.teacher=demo-base
  judge_losses shift split dense
}

distill_arm() { # NAME START OVERRIDE...
  local name=$1 start=$2
  shift 2
  [ -f "$ARMS/$name/config.json" ] ||
    $pipo distill --config runs/smollm2_distill.yaml --resume trainer.bf16=$bf16 "model=$ARMS/$start" "output=$ARMS/$name" \
      "lora={adapter: $ARMS/$start/adapter}" \
      trainer.max_steps=20 trainer.per_device_train_batch_size=16 "$@"
}

judge_arm() { # NAME MODEL
  $pipo eval "$2" --task smollm2_mix --seed 0 --limit 200 --samples 2 --budget tokens:256 --methods pipo --threshold 0.9 \
    --batch-size 64 --no-timing --dtype "$dtype" --output "$ARMS/eval/$1" >/dev/null
  $pipo calibrate "$2" --base demo-base --task smollm2_mix --limit 150 --thresholds 0.9 --no-control \
    --max-new-tokens 256 --batch-size 64 --dtype "$dtype" --output "$ARMS/calibration/$1" >/dev/null
}

distill() {
  for inputs in states draft; do
    [ -d "$ARMS/$inputs/adapter" ] || $python runs/distill_start.py "$ARMS/$inputs" "$inputs"
  done
  distill_arm topk states
  distill_arm topk_draft draft
  distill_arm full states 'divergence={kind: full}'
  # `sampled` needs draws from the student's whole distribution; what that alone changes, topk shows
  distill_arm topk_whole states rollout.top_p=1 rollout.top_k=0
  distill_arm sampled states rollout.top_p=1 rollout.top_k=0 'divergence={kind: sampled}'
  distill_arm topk_slow states trainer.learning_rate=1e-4
  judge_arm demo demo
  for name in topk topk_draft full topk_whole sampled topk_slow; do judge_arm "$name" "$ARMS/$name"; done
  $python runs/arms.py "$ARMS"/{eval,calibration} demo topk topk_draft full topk_whole sampled topk_slow
}

case "${1:-}" in
  compressors | pads | distill) "$1" ;;
  *) echo "usage: $0 compressors|pads|distill" >&2 && exit 2 ;;
esac
