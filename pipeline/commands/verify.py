"""pipeline verify CONFIG: the same training in one process and in several, tensor by tensor."""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.commands import Parser, parse, positive
from pipeline.errors import ConfigError, PipelineError

ABOUT = """Trains every pretraining stage of a config a few steps, in one process and in several, and compares them
step by step: the loss, then the optimiser's state (its gradients), weights, statistics and memory. Names the first
tensor that differs. Exit code 0 where all agree, 1 where not. Stages that it needs, such as the shards, are made
first."""
TOLERANCE = {"fp64": 1e-10, "fp32": 1e-4, "bf16": 0.05}
ADAM = 100.0
"""Times that for weights, and what is made with them, where Adam divided each gradient, and its rounding, by the
gradient's own size."""
KINDS = ("pretrain", "generate")


def parser() -> Parser:
    made = Parser(prog="pipeline verify", description=ABOUT, allow_abbrev=False,
                  formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    made.add_argument("config", metavar="CONFIG", help="a YAML file: seed, root, stages")
    made.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="such as moco.batch=64")
    made.add_argument("--only", nargs="+", default=[], metavar="STAGE", help="these stages")
    made.add_argument("--steps", type=positive, default=3, help="optimiser steps (default: 3)")
    made.add_argument("--processes", type=positive, nargs="+", default=[2], metavar="N", help="ranks (default: 2)")
    made.add_argument("--precision", choices=tuple(TOLERANCE), default="fp64",
                      help="of both runs (default: fp64, in which only an error is larger than rounding)")  # fmt: skip
    return made


def main(words: Sequence[str]) -> int:
    options = parse(parser(), words)
    overrides = options.overrides + [w for w in options.only if "=" in w]
    names = [w for w in options.only if "=" not in w]
    from pipeline import config, runner

    cfg = config.load(options.config, overrides)
    planned = runner.plan(cfg, here=True)
    runner.only(planned, names)  # that they are there
    chosen = [p for p in planned if p.kind in KINDS and (p.name in names or not names)]
    if not chosen:
        raise ConfigError(f"{options.config}: no stage to verify; expected one of kind {' or '.join(KINDS)}")
    needed = sorted({ref for p in chosen for ref in p.inputs})
    command(options.config, [*overrides, "--only", *needed], 1)
    agree = True
    with tempfile.TemporaryDirectory(prefix="pipeline-verify-") as folder:
        for p in chosen:
            changes = overrides + settings(p, options)
            one = trained(p, planned, options.config, changes, Path(folder) / f"{p.name}-1", 1)
            for count in options.processes:
                several = trained(p, planned, options.config, changes, Path(folder) / f"{p.name}-{count}", count)
                tolerance = TOLERANCE[options.precision]
                weights = tolerance * (ADAM if p.settings.model_dump()["optimiser"]["kind"] == "adam" else 1)
                found = first_difference(one, several, tolerance, weights)
                agree &= found is None
                adam = f" (weights and memory, after Adam, within {weights:g})" if weights > tolerance else ""
                said = found or f"agree over {options.steps} steps within {tolerance:g}{adam}"
                print(f"{p.name}: 1 and {count} processes, {options.precision}: {said}", flush=True)
    if not agree:
        raise PipelineError("verify: processes do not agree (norm.kind local depends on their number by definition)")
    return 0


def settings(p: Any, options: argparse.Namespace) -> list[str]:
    """Overrides that keep every step of a short run."""
    wanted = {
        "steps": options.steps,
        "log_steps": 1,
        "save_steps": 1,
        "keep": options.steps,
        "snapshots": 0,
        "precision": options.precision,
        **({"bubbles": "false"} if p.kind == "generate" else {}),
    }
    return [f"{p.name}.{key}={value}" for key, value in wanted.items()]


def trained(p: Any, planned: list[Any], path: str, changes: list[str], root: Path, count: int) -> Path:
    """The stage's folder after a run of ``count`` processes under ``root``; what it needs is linked there."""
    root.mkdir()
    for other in planned:
        if other.name in p.inputs:
            (root / other.folder.name).symlink_to(other.folder.resolve())
    command(path, [*changes, f"root={root}", "--only", p.name], count)
    (folder,) = (f for f in root.iterdir() if not f.is_symlink())
    if (found := json.loads((folder / "artifact.json").read_text())["processes"]) != count:
        raise PipelineError(f"verify: {p.name} was trained by {found} processes, not by {count}: nothing to compare")
    return folder


def command(path: str, words: list[str], count: int) -> None:
    """`pipeline run` on ``count`` ranks of this machine; raises what the first that failed said."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    world = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    alone = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", *world)}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "pipeline", "run", path, *words, "--here"],
            env=alone | ({**world, "RANK": str(r), "LOCAL_RANK": str(r)} if count > 1 else {}),
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        for r in range(count)
    ]  # fmt: skip
    told = [rank.communicate()[1] for rank in ranks]
    failed = next((i for i, rank in enumerate(ranks) if rank.returncode), None)
    if failed is not None:
        last = (told[failed].strip() or told[0].strip() or "no message").splitlines()[-1]
        error = PipelineError(f"verify: {count} processes ended with code {ranks[failed].returncode}: {last}")
        error.code = max(1, ranks[failed].returncode)
        raise error


def first_difference(one: Path, several: Path, tolerance: float, weights: float | None = None) -> str | None:
    """Where the two runs part: the step, the tensor, by how much. What is not a number agrees with nothing, itself
    included, and no step compared is no agreement. ``weights``: the tolerance of what the optimiser has made of its
    state, which is compared before (default: the same)."""
    import torch

    from pipeline.training import checkpoint

    losses = [{r["step"]: r["train/loss"] for r in rows(f)} for f in (one, several)]
    steps = [checkpoint.steps(f / "checkpoints") for f in (one, several)]
    if steps[0] != steps[1] or not steps[0]:
        return f"checkpoints of steps {steps[1]}, not {steps[0]}: nothing to compare"
    for step in steps[0]:
        a, b = (losses[i][step] for i in (0, 1))
        if not abs(a - b) <= tolerance * abs(a):
            return f"step {step}: the loss is {b!r}, not {a!r}"
        (left, _), (right, _) = (checkpoint.read(f / "checkpoints" / f"{step:08d}") for f in (one, several))
        if left.keys() != right.keys():
            return f"step {step}: only one of the two holds {', '.join(sorted(left.keys() ^ right.keys()))}"
        for name in sorted(left, key=lambda n: (not n.startswith("optimiser."), n)):
            x, y = left[name].double(), right[name].double()
            if x.shape != y.shape:
                return f"step {step}: {name} is {list(y.shape)}, not {list(x.shape)}"
            for whose, found in (("the one process", x), ("several", y)):
                if not torch.isfinite(found).all():
                    return f"step {step}: {name} {list(x.shape)} of {whose} is not finite"
            scale = float(x.abs().max()) if x.numel() and left[name].is_floating_point() else 0.0
            apart = float((x - y).abs().max()) if x.numel() else 0.0
            limit = tolerance if name.startswith("optimiser.") else weights or tolerance
            if apart > limit * max(scale, 1e-3) or (apart and not left[name].is_floating_point()):
                return f"step {step}: {name} {list(x.shape)} differs by {apart:.3g}, its largest entry is {scale:.3g}"
    return None


def rows(folder: Path) -> Iterator[dict[str, float]]:
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        if "train/loss" in row:
            yield row
