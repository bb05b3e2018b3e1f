"""Faults without end: `python -m tests.chaos --full` (300 of them; 15 without).

A training is started again and again, each time struck by one fault, until it is done; then its artifact is compared
byte for byte with that of a run that nothing struck, and the next life begins. Equal bytes mean: no sample lost or
repeated, no damaged checkpoint accepted. Prints a table of what was struck and how long recovery took.
"""

import argparse
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

from pipeline import cli, show
from pipeline.training import checkpoint
from tests import small

KINDS = ("kill", "stop", "slow", "torn", "flipped", "full", "vanished")
ENDS = {"kill": {-9}, "stop": {75}, "slow": {0}, "torn": {-9}, "flipped": {-9}, "full": {70}, "vanished": {65}}
"""Exit codes that each ends with where it strikes; a training that was done before it did ends with 0."""


@dataclass
class Tally:
    """What happened: seconds from each start after a fault to the first new step, and where the time went."""

    recovery: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    struck: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    lives: int = 0
    passed_over: int = 0
    spent: float = 0.0


class Chaos:
    def __init__(self, folder: Path, seed: int):
        self.folder, self.draw, self.tally = folder, random.Random(seed), Tally()
        self.root, self.log = folder / "struck", folder / "log"
        self.config = small.write(self.root)
        self.whole = folder / "whole"
        begun = time.monotonic()
        assert self.wait(self.start(self.whole)) == 0, self.log.read_text()
        self.alone = time.monotonic() - begun

    def start(self, root: Path, limit: int | None = None) -> int:
        """The command in a process of its own, forked, since importing takes longer than the training."""
        if pid := os.fork():
            return pid
        code = 1
        try:
            os.setsid()
            output = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(output, 1)
            os.dup2(output, 2)
            if limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            code = cli.main(["run", str(self.config), f"root={root}", "--here", "--only", "moco"])
        finally:
            os._exit(code)

    def wait(self, pid: int) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def strike(self, kind: str) -> None:
        """One start, one fault."""
        before, begun = small.step(self.root), time.monotonic()
        shards = list(self.root.glob("shards-*/*.tar"))
        if kind == "vanished" and not shards:
            kind = "kill"  # there is none yet
        if kind == "vanished":
            shards[0].rename(gone := shards[0].with_suffix(".gone"))
            code = self.wait(self.start(self.root))
            gone.rename(shards[0])
        elif kind == "full":
            code = self.wait(self.start(self.root, limit=20_000))
        else:
            code = self.hit(kind, before, begun)
        self.tally.struck[kind] += code in ENDS[kind]
        self.tally.spent += time.monotonic() - begun
        done = code == 0 and list(self.root.glob("moco-*/artifact.json"))
        assert code in ENDS[kind] or done, f"{kind}: {code}\n{self.log.read_text()[-3000:]}"
        if kind in ("torn", "flipped"):
            self.damage(kind)

    def hit(self, kind: str, before: int, begun: float) -> int:
        """Lets the training come some way, then signals it; notes how long it took to get beyond where it was."""
        pid, goal = self.start(self.root), before + self.draw.randrange(small.LOG, 60)
        ended: list[int] = []

        def over() -> bool:
            found, status = os.waitpid(pid, os.WNOHANG) if not ended else (0, 0)
            if found:
                ended.append(os.waitstatus_to_exitcode(status))
            return bool(ended)

        while not over() and small.step(self.root) <= before:
            time.sleep(0.005)
        self.tally.recovery[kind].append(time.monotonic() - begun)
        while not over() and small.step(self.root) < goal:
            time.sleep(0.005)
        time.sleep(self.draw.uniform(0, 0.03))
        if over():
            return ended[0]
        if kind == "slow":
            os.kill(pid, signal.SIGSTOP)
            time.sleep(0.2)
            os.kill(pid, signal.SIGCONT)
        else:
            os.kill(pid, signal.SIGTERM if kind == "stop" else signal.SIGKILL)
        return self.wait(pid)

    def damage(self, kind: str) -> None:
        """Cuts off the newest checkpoint, or turns one bit of it, unless the training is done with them."""
        kept = next(iter(self.root.glob("moco-*/checkpoints")), self.root)
        if not checkpoint.steps(kept) or (kept.parent / "artifact.json").exists():
            return
        name = self.draw.choice([checkpoint.TENSORS, checkpoint.STATE])
        path = kept / f"{checkpoint.steps(kept)[-1]:08d}" / name
        data = bytearray(path.read_bytes())
        at = self.draw.randrange(len(data))
        if kind == "torn":
            del data[at:]
        else:
            data[at] ^= 1 << self.draw.randrange(8)
        path.write_bytes(data)

    def live(self, left: Callable[[], bool]) -> None:
        """One training, from nothing to an artifact that is that of the undisturbed run."""
        while left() and not list(self.root.glob("moco-*/artifact.json")):
            self.strike(self.draw.choice(KINDS))
        begun = time.monotonic()
        assert self.wait(self.start(self.root)) == 0, self.log.read_text()[-3000:]
        self.tally.spent += time.monotonic() - begun
        found = small.apart(self.whole, self.root)
        assert not found, f"{found}\n{self.log.read_text()[-3000:]}"
        self.tally.lives += 1
        self.tally.passed_over += self.log.read_text().count("is damaged")
        self.log.unlink()
        shutil.rmtree(self.root)
        print(f"{sum(self.tally.struck.values())} faults, {self.tally.lives} trainings, all as if none", flush=True)


def run(faults: int, seed: int = 0) -> Tally:
    """Strikes ``faults`` times; raises AssertionError at the first thing that is not as if nothing had happened."""
    import torch._dynamo  # what every start would import for seconds, once before all of them are forked

    import pipeline.stages.pretrain  # noqa: F401

    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="chaos"))
    try:
        chaos = Chaos(folder, seed)
        while sum(chaos.tally.struck.values()) < faults:
            chaos.live(lambda: sum(chaos.tally.struck.values()) < faults)
        table(chaos.tally, chaos.alone)
        return chaos.tally
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def table(tally: Tally, alone: float) -> None:
    rows = [
        [kind, tally.struck[kind], f"{mean(found):.2f} s" if (found := tally.recovery[kind]) else "-"]
        for kind in KINDS
    ]
    show.table(
        f"{sum(tally.struck.values())} faults in {tally.lives} trainings",
        ["fault", "struck", "start to first new step, mean"],
        rows,
        f"effective share of the time: {tally.lives * alone / tally.spent:.0%}; samples lost or repeated 0; damaged "
        f"checkpoints passed over {tally.passed_over}, accepted 0; all {tally.lives} artifacts equal",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="300 faults")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    run(300 if options.full else 15, options.seed)


if __name__ == "__main__":
    sys.exit(main())
