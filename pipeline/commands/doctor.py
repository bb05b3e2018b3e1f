"""pipeline doctor: what limits a config's trainings, or whether the machines of a run fit together."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from pipeline import launcher
from pipeline.commands import Parser, parse
from pipeline.errors import ClusterError, ConfigError

ABOUT = """pipeline doctor CONFIG: sends a few hundred images through the feed of every pretraining stage, runs a few
steps of its model, and says which of the two limits it, how many threads would feed it, and one thing to change.
Shards are packed first where they are not there yet.

pipeline doctor --cluster [RUNS]: compares what a run would start on: code, versions, clocks, disk, the shared folder.
Under torchrun, accelerate or srun: its ranks. With RAY_ADDRESS: the nodes of that cluster. Else: this machine."""


def parser() -> Parser:
    made = Parser(prog="pipeline doctor", description=ABOUT, allow_abbrev=False,
                  formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    made.add_argument("place", nargs="?", metavar="CONFIG | RUNS",
                      help="a YAML file; with --cluster the run folder (default: runs)")  # fmt: skip
    made.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="such as moco.threads=8")
    made.add_argument("--cluster", action="store_true", help="check the machines")
    return made


def main(words: Sequence[str]) -> int:
    options = parse(parser(), words)
    if options.cluster:
        return machines(Path(options.place or "runs").resolve())
    if not options.place:
        raise ConfigError(f"pipeline doctor: what is to be checked? {parser().format_usage().strip()}")
    return trainings(options.place, options.overrides)


def trainings(path: str, overrides: Sequence[str]) -> int:
    """Every pretraining stage of a config, one after another."""
    from pipeline import config, runner
    from pipeline.settings.stages import Pretrain

    cfg = config.load(path, overrides)
    planned = runner.plan(cfg, here=True)
    chosen = [(p, p.settings) for p in planned if isinstance(p.settings, Pretrain)]
    if not chosen:
        raise ConfigError(f"{path}: no stage of kind pretrain to examine")
    from pipeline.commands import run

    needed = [ref for p, _ in chosen for ref in p.inputs if not next(q for q in planned if q.name == ref).done]
    if needed and (code := run.main([path, *overrides, "--here", "--only", *needed])):
        return code
    from pipeline import diagnosis, show
    from pipeline.data.shards import Shards
    from pipeline.world import World

    world = World(max(settings.threads for _, settings in chosen))
    for p, settings in chosen:
        (folder,) = (q.folder for q in planned if q.name in p.inputs)
        found = diagnosis.examine(settings, p.seed, folder, world)
        shards = Shards.open(folder, "train")
        size = shards.image(settings.views.size).side
        limit, odd = diagnosis.advice(settings, found, shards, size, settings.place.workers)
        rows = [[stage, f"{1e3 * s:.3f}", f"{1 / s:,.0f}"] for stage, s in found.stages.items()]
        rows.append(["the model's step", f"{1e3 * found.step:.3f}", f"{1 / found.step:,.0f}"])
        show.table(
            f"{p.name}: fed by {found.cores:.2g} thread(s)", ["an image", "ms, one thread", "images/s"], rows, limit
        )
        for line in odd:
            print(f"{p.name}: {line}")
    return 0


def machines(root: Path) -> int:
    from pipeline import preflight, show

    found = census(root)
    if launcher.rank() > 0:
        return 0
    first = found[0]["clock"]
    rows = [
        [one["who"], one["code"], one["versions"].get("torch", "-"), f"{one['free'] / 2**30:.1f} GB",
         f"{one['clock'] - first:+.1f} s", one["devices"]] for one in found
    ]  # fmt: skip
    show.table(f"{len(found)} process(es)", ["where", "code", "torch", "free disk", "clock", "devices"], rows)
    if said := preflight.faults(found):
        raise ClusterError("\n".join(said))
    print("they fit")
    return 0


def census(root: Path) -> list[dict]:
    """The facts of every process, or node, there is."""
    from pipeline import preflight

    if launcher.size() > 1:
        return preflight.gate(root)
    if "RAY_ADDRESS" in os.environ:
        from pipeline.placement.ray import Cluster

        cluster = Cluster()
        try:
            return cluster.census(root)
        finally:
            cluster.close()
    return [preflight.facts(root)]
