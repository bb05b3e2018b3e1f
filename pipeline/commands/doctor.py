"""pipeline doctor --cluster: whether the machines of a run fit together, and what to mend first."""

import os
from collections.abc import Sequence
from pathlib import Path

from pipeline.commands import Parser, parse
from pipeline.errors import ClusterError, ConfigError

ABOUT = """Compares what a run would start on: code, versions, clocks, disk, the shared folder.

Under torchrun, accelerate or srun: its ranks. With RAY_ADDRESS: the nodes of that cluster. Else: this machine."""


def main(words: Sequence[str]) -> int:
    parser = Parser(prog="pipeline doctor", description=ABOUT, allow_abbrev=False)
    parser.add_argument("--cluster", action="store_true", help="check the machines")
    parser.add_argument("root", nargs="?", default="runs", metavar="RUNS", help="the run folder (default: runs)")
    options = parse(parser, words)
    if not options.cluster:
        raise ConfigError(f"pipeline doctor: what is to be checked? {parser.format_usage().strip()}")
    from pipeline import preflight, show

    found = census(Path(options.root).resolve())
    if os.environ.get("RANK", "0") != "0":
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

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return preflight.gate(root)
    if "RAY_ADDRESS" in os.environ:
        from pipeline.placement.ray import Cluster

        cluster = Cluster()
        try:
            return cluster.census(root)
        finally:
            cluster.close()
    return [preflight.facts(root)]
