"""The quick start over several seeds, and every encoder's lead over raw pixels and an untrained network.

A lead is the mean paired difference in test accuracy at ten labels a class, over seeds x label draws: the draws of one
seed are the same for every row. Its interval is over seeds, whose draws share split and encoder, with the variance of
whatever varies most, seeds or draws: three seeds that happen to agree would else promise too much. It covers what a
seed decides: the split into training and test images, first weights, order, views, labels drawn. It does not cover
other images than these, another processor's rounding, or that settings were chosen by looking at such numbers.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from pipeline.evaluation import intervals

SEEDS = (0, 1, 2)


def draws(root: Path, config: str, seed: int) -> dict[str, list[float]]:
    """Runs the config at a seed (what is done already is not done again) -> accuracy of each label draw by row."""
    subprocess.run([sys.executable, "-m", "pipeline", "run", config, f"seed={seed}", f"root={root}"], check=True)
    probes = [p for p in root.glob("probe-*/artifact.json") if json.loads(p.read_text())["seed"] == seed]
    results = json.loads((max(probes, key=lambda p: p.stat().st_mtime).parent / "results.json").read_text())
    return {name: row["few_label_test"] for name, row in results["rows"].items()}


def main(root: str = "runs/seeds", config: str = "configs/quickstart.yaml") -> None:
    runs = [draws(Path(root), config, seed) for seed in SEEDS]
    table = {name: np.array([run[name] for run in runs]) for name in runs[0]}
    print(f"{'row':<12}{'mean':>7}{'sd draws':>10}{'sd seeds':>10}   lead over raw pixels      lead over untrained")
    for name, row in table.items():
        untrained = f"random_{name}" if f"random_{name}" in table else "random"  # its own network, or the first row's
        leads = [row - table[base] for base in ("raw_pixels", untrained)]
        text = "   ".join(f"{100 * lead.mean():+6.2f} [{low:+6.2f}, {high:+6.2f}]"
                          for lead in leads for _, low, high in [intervals.of_seeds(100 * lead)])  # fmt: skip
        spread = 100 * row.std(1, ddof=1).mean(), 100 * row.mean(1).std(ddof=1)
        print(f"{name:<12}{100 * row.mean():7.2f}{spread[0]:10.2f}{spread[1]:10.2f}   {text}")
        print(json.dumps({"figure": f"seeds_{name}", "mean": row.mean(), "n": row.size}), file=sys.stderr)
    print(f"Leads: 95 % intervals over {len(SEEDS)} seeds (split, first weights, order, views, label draws) by what "
          f"varies most; other images and other processors are not in them.")  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
