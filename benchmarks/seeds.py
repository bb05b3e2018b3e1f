"""The quick start over several seeds, and every encoder's lead over raw pixels and the random encoder.

A lead is the mean paired difference in test accuracy at ten labels a class, over seeds x label draws: the draws of
one seed are the same for every row. Draws of one seed share its encoder, so the interval treats seeds as clusters
too: it is the wider of the t-interval over all pairs and the one over the seeds' means.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from scipy import stats

SEEDS = (0, 1, 2)


def draws(root: Path, config: str, seed: int) -> dict[str, list[float]]:
    """Runs the config at a seed (what is done already is not done again) -> accuracy of each label draw by row."""
    subprocess.run([sys.executable, "-m", "pipeline", "run", config, f"seed={seed}", f"root={root}"], check=True)
    probes = [p for p in root.glob("probe-*/artifact.json") if json.loads(p.read_text())["seed"] == seed]
    results = json.loads((max(probes, key=lambda p: p.stat().st_mtime).parent / "results.json").read_text())
    return {name: row["few_label_test"] for name, row in results["rows"].items()}


def interval(differences: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean of [seeds, draws] paired differences."""
    flat, means = differences.ravel(), differences.mean(1)
    widths = [stats.t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / len(x) ** 0.5 for x in (flat, means)]
    return flat.mean() - max(widths), flat.mean() + max(widths)


def main(root: str = "runs/seeds", config: str = "configs/quickstart.yaml") -> None:
    runs = [draws(Path(root), config, seed) for seed in SEEDS]
    table = {name: np.array([run[name] for run in runs]) for name in runs[0]}
    print(f"{'row':<12}{'mean':>7}{'sd draws':>10}{'sd seeds':>10}   lead over raw pixels   lead over random")
    for name, row in table.items():
        leads = [interval(row - table[base]) for base in ("raw_pixels", "random")]
        text = "   ".join(f"[{100 * low:+6.2f}, {100 * high:+6.2f}]" for low, high in leads)
        spread = 100 * row.std(1, ddof=1).mean(), 100 * row.mean(1).std(ddof=1)
        print(f"{name:<12}{100 * row.mean():7.2f}{spread[0]:10.2f}{spread[1]:10.2f}   {text}")
        print(json.dumps({"figure": f"seeds_{name}", "mean": row.mean(), "n": row.size}), file=sys.stderr)


if __name__ == "__main__":
    main(*sys.argv[1:])
