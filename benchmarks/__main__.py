"""Ours beside a peer on the same work: `uv run --group bench python -m benchmarks [FIGURE ...]`.

Prints a table, and for each figure a JSON line {"figure", "ratio", "ours", "peer", "unit", "n"}; a ratio above 1 says
that ours is better. Each figure is a function of that name in the module that it is listed with.
"""

import importlib
import json
import sys

from pipeline.errors import DataError

FIGURES = {
    "read_32": "streaming",
    "read_jpeg": "streaming",
    "shard_size": "streaming",
    "order_1e9": "streaming",
    "moco_step": "pretraining",
    "moco_step_compiled": "pretraining",
    "moco_step_bf16": "pretraining",
    "moco_overhead": "pretraining",
    "watching": "pretraining",
    "pirl_negatives": "pretraining",
    "crops_224": "views",
    "crops_32": "views",
    "moco_views_224": "views",
    "moco_views_32": "views",
    "feed_224": "views",
    "feed_32": "views",
    "pcd_update": "densities",
    "ratio_matching": "densities",
    "pseudo_likelihood": "densities",
    "probability_flow": "densities",
    "importance_sampling": "likelihood",
    "start": "starts",
    "dispatch": "starts",
}


def main(names: list[str]) -> int:
    unknown = [name for name in names if name not in FIGURES]
    if unknown:
        print(f"no figure {', '.join(unknown)}; expected some of {', '.join(FIGURES)}", file=sys.stderr)
        return 2
    code = 0
    for name in names or list(FIGURES):
        try:
            result = getattr(importlib.import_module(f"benchmarks.{FIGURES[name]}"), name)()
        except DataError as error:
            print(f"{name:20} not measured: {error}", file=sys.stderr)
            code = 65
            continue
        if result is None:
            print(f"{name:20} not measured: not on this machine")
            continue
        summary = f"ours {result['ours']:.4g}, peer {result['peer']:.4g} {result['unit']}, ratio {result['ratio']:.2f}"
        print(f"{name:20} {summary}")
        print(json.dumps({"figure": name, **result}), flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
