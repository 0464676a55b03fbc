# What the scripts runs/smollm2_*.sh begin with: where things are, and the stock model's place.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
OUT=out/smollm2
python=.venv/bin/python
pipo=.venv/bin/pipo
mkdir -p "$OUT"

link_stock() {
  ln -sfn "$($python -c 'from pipo.shipped import stock; print(stock())')" "$OUT/stock"
}
