"""pipeline parity CONFIG: compares the same training in one process and in several, tensor by tensor."""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.commands import Parser, parse, positive
from pipeline.errors import ConfigError, PipelineError

if TYPE_CHECKING:
    from torch import Tensor

ABOUT = """Trains every pretraining stage of a config a few steps, in one process and in several, and compares them
step by step: the loss, then the optimiser's state (its gradients), weights, statistics and memory. Names the first
tensor that differs. Exit code 0 where all agree, 1 where not. Stages that it needs, such as the shards, are made
first."""
TOLERANCE = {"fp64": 1e-10, "fp32": 1e-4, "bf16": 0.05}
ADAM = 100.0
"""Factor on the tolerance for weights trained by Adam, and for what is computed from them: Adam divides a gradient,
and its rounding error, by the gradient's size."""


def parser() -> Parser:
    made = Parser(prog="pipeline parity", description=ABOUT, allow_abbrev=False,
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
    from pipeline import config, plan
    from pipeline.settings.training import Training

    planned = plan.plan(config.load(options.config, overrides), here=True)
    plan.only(planned, names)  # that they are there
    trainings = [p for p in planned if isinstance(p.settings, Training) and (p.name in names or not names)]
    if not trainings:
        raise ConfigError(f"{options.config}: no stage to compare; expected one that trains an objective")
    inputs = sorted({ref for p in trainings for ref in p.inputs})
    command(options.config, [*overrides, "--only", *inputs], 1)
    with tempfile.TemporaryDirectory(prefix="pipeline-parity-") as folder:
        results = [agree(p, planned, options, overrides, Path(folder)) for p in trainings]
    if not all(results):
        raise PipelineError("parity: processes do not agree (norm.kind local depends on their number by definition)")
    return 0


def agree(p: Any, planned: list[Any], options: argparse.Namespace, overrides: list[str], folder: Path) -> bool:
    """Whether a stage has the same result with one process as with each other number of them. Prints a line for
    each."""
    changes = overrides + short_run(p, options)
    tolerance = TOLERANCE[options.precision]
    weights = tolerance * (ADAM if p.settings.optimiser.kind == "adam" else 1)
    adam = f" (weights and memory, after Adam, within {weights:g})" if weights > tolerance else ""
    single = trained(p, planned, options.config, changes, folder / f"{p.name}-1", 1)
    differences = []
    for count in options.processes:
        several = trained(p, planned, options.config, changes, folder / f"{p.name}-{count}", count)
        differences.append(first_difference(single, several, tolerance, weights))
        result = differences[-1] or f"agree over {options.steps} steps within {tolerance:g}{adam}"
        print(f"{p.name}: 1 and {count} processes, {options.precision}: {result}", flush=True)
    return not any(differences)


def short_run(p: Any, options: argparse.Namespace) -> list[str]:
    """Overrides for a short run that logs and keeps every step."""
    wanted = {
        "steps": options.steps,
        "log_steps": 1,
        "save_steps": 1,
        "keep": options.steps,
        "snapshots": 0,
        "precision": options.precision,
    }
    return [f"{p.name}.{key}={value}" for key, value in wanted.items()]


def trained(p: Any, planned: list[Any], path: str, changes: list[str], root: Path, count: int) -> Path:
    """Trains the stage with ``count`` processes under ``root``, where the stages that it needs are linked, and returns
    its folder."""
    root.mkdir()
    for other in planned:
        if other.name in p.inputs:
            (root / other.folder.name).symlink_to(other.folder.resolve())
    command(path, [*changes, f"root={root}", "--only", p.name], count)
    (folder,) = (f.parent for f in root.glob("*/artifact.json") if not f.parent.is_symlink())
    ranks = json.loads((folder / "artifact.json").read_text())["processes"]
    if ranks != count:
        raise PipelineError(f"parity: {p.name} was trained by {ranks} processes, not by {count}: nothing to compare")
    return folder


def command(path: str, words: list[str], count: int) -> None:
    """Calls `pipeline run` on ``count`` ranks of this machine. Raises the error of the first rank that failed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    world = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", *world)}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "pipeline", "run", path, *words, "--here"],
            env=environment | ({**world, "RANK": str(r), "LOCAL_RANK": str(r)} if count > 1 else {}),
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        for r in range(count)
    ]  # fmt: skip
    messages = [rank.communicate()[1].strip() for rank in ranks]
    failed = next((i for i, rank in enumerate(ranks) if rank.returncode), None)
    if failed is not None:
        last = (messages[failed] or messages[0] or "no message").splitlines()[-1]
        error = PipelineError(f"parity: {count} processes ended with code {ranks[failed].returncode}: {last}")
        error.code = max(1, ranks[failed].returncode)
        raise error


def first_difference(single: Path, several: Path, tolerance: float, weights: float | None = None) -> str | None:
    """A line about the first step and tensor in which two runs differ; None where they agree. NaN differs from
    everything, itself included, and runs without a common step do not agree. The optimiser's state is compared to
    ``tolerance``, then the weights to ``weights`` (default: the same)."""
    from pipeline.training import checkpoint

    runs = (single, several)
    losses = [{r["step"]: r["learn/loss"] for r in rows(folder)} for folder in runs]
    steps = [checkpoint.steps(folder / "checkpoints") for folder in runs]
    if steps[0] != steps[1] or not steps[0]:
        return f"checkpoints of steps {steps[1]}, not {steps[0]}: nothing to compare"
    for step in steps[0]:
        expected, loss = losses[0][step], losses[1][step]
        if not abs(expected - loss) <= tolerance * abs(expected):
            return f"step {step}: the loss is {loss!r}, not {expected!r}"
        left, right = (checkpoint.read(folder / "checkpoints" / f"{step:08d}")[0] for folder in runs)
        if left.keys() != right.keys():
            return f"step {step}: only one of the two holds {', '.join(sorted(left.keys() ^ right.keys()))}"
        for name in sorted(left, key=lambda n: (not n.startswith("optimiser."), n)):
            limit = tolerance if name.startswith("optimiser.") else weights or tolerance
            if text := difference(left[name], right[name], limit):
                return f"step {step}: {name} {text}"
    return None


def difference(x: "Tensor", y: "Tensor", limit: float) -> str | None:
    """A text on how ``y``, a tensor of several processes, differs from ``x``, that of one process; None where it does
    not. Floats may differ by ``limit`` times the largest entry of x, integers not at all."""
    integer = not x.is_floating_point()
    x, y = x.double(), y.double()
    if x.shape != y.shape:
        return f"is {list(y.shape)}, not {list(x.shape)}"
    for owner, tensor in (("the one process", x), ("several", y)):
        if not tensor.isfinite().all():
            return f"{list(x.shape)} of {owner} is not finite"
    scale = float(x.abs().max()) if x.numel() and not integer else 0.0
    distance = float((x - y).abs().max()) if x.numel() else 0.0
    if distance > limit * max(scale, 1e-3) or (distance and integer):
        return f"{list(x.shape)} differs by {distance:.3g}, its largest entry is {scale:.3g}"
    return None


def rows(folder: Path) -> Iterator[dict[str, float]]:
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        if "learn/loss" in row:
            yield row
