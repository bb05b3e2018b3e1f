"""pipeline doctor: measures what limits a config's trainings, or checks that the machines of a run fit together."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import launcher
from pipeline.commands import Parser, parse
from pipeline.errors import ClusterError, ConfigError

if TYPE_CHECKING:
    from pipeline.plan import PlannedStage
    from pipeline.world import World

ABOUT = """pipeline doctor CONFIG: sends a few hundred images through the feed of every pretraining stage, runs a few
steps of its model, and says which of the two limits it, how many threads would feed it, and one thing to change.
Shards are packed first where they are not there yet.

pipeline doctor --cluster [RUNS]: compares what a run would start on: code, versions, clocks, disk, the shared folder.
Under torchrun, accelerate or srun: its ranks. With RAY_ADDRESS: the nodes of that cluster. Else: this machine."""


def parser() -> Parser:
    args = Parser(prog="pipeline doctor", description=ABOUT, allow_abbrev=False,
                  formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    args.add_argument("target", nargs="?", metavar="CONFIG | RUNS",
                      help="a YAML file; with --cluster the run folder (default: runs)")  # fmt: skip
    args.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="such as moco.threads=8")
    args.add_argument("--cluster", action="store_true", help="check the machines")
    return args


def main(words: Sequence[str]) -> int:
    options = parse(parser(), words)
    if options.cluster:
        return check_processes(Path(options.target or "runs").resolve())
    if not options.target:
        raise ConfigError(f"pipeline doctor: what is to be checked? {parser().format_usage().strip()}")
    return check_trainings(options.target, options.overrides)


def check_trainings(path: str, overrides: Sequence[str]) -> int:
    """Examines every pretraining stage of a config, one after another."""
    from pipeline import config, plan
    from pipeline.settings.stages import Pretrain

    stages = plan.plan(config.load(path, overrides), here=True)
    trainings = [p for p in stages if isinstance(p.settings, Pretrain)]
    if not trainings:
        raise ConfigError(f"{path}: no stage of kind pretrain to examine")
    from pipeline.commands import run

    folders = {p.name: p.folder for p in stages}
    done = {p.name for p in stages if p.done}
    missing = [ref for p in trainings for ref in p.inputs if ref not in done]
    if missing and (code := run.main([path, *overrides, "--here", "--only", *missing])):
        return code
    from pipeline.world import World

    world = World(max(p.settings.threads for p in trainings))
    for p in trainings:
        (ref,) = p.inputs
        check_training(p, folders[ref], world)
    return 0


def check_training(p: "PlannedStage", folder: Path, world: "World") -> None:
    """Measures one training on the shards in ``folder``, and prints what limits it."""
    from pipeline import diagnosis, show
    from pipeline.data.shards import Shards

    settings: Any = p.settings
    speed = diagnosis.examine(settings, p.seed, folder, world)
    shards = Shards.open(folder, "train")
    size = shards.image(settings.view_size).side
    limit, warnings = diagnosis.advice(settings, speed, shards, size, settings.place.workers)
    steps = speed.stages | {"the model's step": speed.step}
    rows = [[name, f"{1e3 * seconds:.3f}", f"{1 / seconds:,.0f}"] for name, seconds in steps.items()]
    title = f"{p.name}: fed by {speed.cores:.2g} thread(s)"
    show.table(title, ["an image", "ms, one thread", "images/s"], rows, limit)
    for line in warnings:
        print(f"{p.name}: {line}")


def check_processes(root: Path) -> int:
    """Prints a table of the processes, or nodes, that a run would use. Raises ClusterError where they do not fit
    together."""
    from pipeline import preflight, show

    processes = process_facts(root)
    if launcher.rank() > 0:
        return 0
    first = processes[0]["clock"]
    rows = [
        [facts["who"], facts["code"], facts["versions"].get("torch", "-"), f"{facts['free'] / 2**30:.1f} GB",
         f"{facts['clock'] - first:+.1f} s", facts["devices"]] for facts in processes
    ]  # fmt: skip
    show.table(f"{len(processes)} process(es)", ["where", "code", "torch", "free disk", "clock", "devices"], rows)
    if texts := preflight.faults(processes):
        raise ClusterError("\n".join(texts))
    print("they fit")
    return 0


def process_facts(root: Path) -> list[dict]:
    """The facts of every rank that a launcher started, or of every node of the Ray cluster, or of this process."""
    from pipeline import preflight

    if launcher.size() > 1:
        return preflight.check(root)
    if "RAY_ADDRESS" in os.environ:
        from pipeline.placement.ray import Cluster

        cluster = Cluster()
        try:
            return cluster.node_facts(root)
        finally:
            cluster.close()
    return [preflight.facts(root)]
