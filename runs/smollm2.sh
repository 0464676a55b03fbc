# What the scripts runs/smollm2_*.sh begin with: where things are, the precision, the stock model, and what they publish.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
OUT=out/smollm2
python=.venv/bin/python
pipo=.venv/bin/pipo
mkdir -p "$OUT"

# Without this glibc gives large tensors back to the kernel when they are freed, and page faults take a quarter of the time.
export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=17179869184 MALLOC_ARENA_MAX=1

# bfloat16 is slower than float32, by several times, where the processor has no instructions for it
if $python -c 'import torch; from pipo.convert.base import cpu_lacks_bfloat16 as c; exit(torch.accelerator.is_available() or not c())'; then
  dtype=float32 bf16=false
else
  dtype=bfloat16 bf16=true
fi

# RUN NAME: the report and plots of a calibration among the results
publish_calibration() {
  sed "s/(\(pareto\|reliability\).png)/($2_\1.png)/" "$1/report.md" >"docs/results/$2.md"
  for plot in pareto reliability; do cp "$1/$plot.png" "docs/results/$2_$plot.png"; done
}

link_stock() {
  ln -sfn "$($python -c 'from pipo.convert.shipped import stock; print(stock())')" "$OUT/stock"
}
