# What the scripts runs/smollm2_*.sh begin with: where things are, the precision, and the stock model's place.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
OUT=out/smollm2
python=.venv/bin/python
pipo=.venv/bin/pipo
mkdir -p "$OUT"

# bfloat16 is slower than float32, by several times, where the processor has no instructions for it
if grep -qE 'avx512_bf16|amx_bf16' /proc/cpuinfo || $python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  dtype=bfloat16 bf16=true
else
  dtype=float32 bf16=false
fi

link_stock() {
  ln -sfn "$($python -c 'from pipo.shipped import stock; print(stock())')" "$OUT/stock"
}
