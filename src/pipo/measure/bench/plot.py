"""`pipo bench --plot`: speed-up against prompt length, with the limit that bytes allow."""

from __future__ import annotations

from typing import Any


def plot(result: dict[str, Any], file: str) -> None:
    """Write a picture of the ratios."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    lines = dict.fromkeys((ratio["method"], ratio["concurrency"]) for ratio in result["ratios"])
    for method, concurrency in lines:
        ratios = [r for r in result["ratios"] if (r["method"], r["concurrency"]) == (method, concurrency)]
        lengths = [ratio["prompt_length"] for ratio in ratios]
        for name, style in (("ttft_speedup", "o-"), ("tpot_speedup", "s-"), ("tpot_speedup_limit", ":")):
            if name not in ratios[0]:
                continue
            label = f"{method}, {name.replace('_', ' ')}, concurrency {concurrency}"
            axes.plot(lengths, [ratio[name] for ratio in ratios], style, label=label)
    axes.axhline(1, color="grey", linewidth=0.8)
    axes.set(xscale="log", xlabel="prompt tokens", ylabel="regular / method")
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(file, dpi=150)
