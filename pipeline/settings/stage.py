"""What every stage can be told: where it runs, on how many threads, with which seed."""

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from .base import Count, Housekeeping, Mistake, Settings


class Place(Settings):
    """Where a stage runs."""

    on: Literal["auto", "here", "task", "workers"] = "auto"
    """here: this process (or this rank of a world that a launcher started); task: a Ray task; workers: Ray Train;
    auto: task where ray can be imported, here where not."""
    workers: Count = 1
    """Processes, for workers."""
    min_workers: Count | None = None
    """Runs on as few where machines are missing; null: waits for all of them."""
    gpus: Annotated[float, Field(ge=0)] = 0.0
    """GPUs of the task, or of each worker."""
    memory_gb: Annotated[float, Field(ge=0)] = 0.0
    """Memory asked of Ray for the task, or for each worker; 0: none asked."""

    def mistakes(self) -> Iterator[Mistake]:
        if (self.min_workers or 1) > self.workers:
            yield "min_workers", f"found {self.min_workers}; expected at most workers, {self.workers}"
        if self.workers > 1 and self.on != "workers":
            yield "workers", f"has no effect with on: {self.on}; set on: workers"

    @property
    def counts(self) -> range:
        """Numbers of workers that the stage may come to run on."""
        return range(min(self.min_workers or self.workers, self.workers), self.workers + 1)


class Stage(Settings):
    """What every stage has; and, as class variables, what is true of every stage of a kind."""

    version: ClassVar[int]
    """Raised when the kind's code comes to other results from the same settings, or when one of its defaults changes:
    artifacts that were made before are then not reused."""
    makes: ClassVar[tuple[str, ...]]
    """What other stages may take from one of this kind."""
    numbers: ClassVar[Mapping[str, str]] = {}
    """The metrics that say what a finished one has come to, the most telling first, each with the word for it; a share
    of 1 that is said in percent has a word that ends in %."""
    shared: ClassVar[bool] = False
    """Whether its work is shared over the ranks of a world; else it is rank 0's alone."""

    place: Annotated[Place, Housekeeping()] = Place()
    """Ranks divide a batch, and its result is the batch's."""
    threads: Count = 1
    """Threads of each process; part of the key, since sums of floats depend on it. On a GPU, a training has its share
    of the machine's cores as workers for its images besides."""
    seed: Annotated[int, Field(ge=0)] | None = None
    """Null: the config's."""

    def mistakes(self) -> Iterator[Mistake]:
        yield from super().mistakes()
        if not self.shared and self.place.on == "workers" and self.place.workers > 1:
            yield "place.workers", f"found {self.place.workers}; a {getattr(self, 'kind', '')} stage is one process"
        yield from self.unequal_shares(self.place.counts)

    def outcome(self, metrics: Mapping[str, Any]) -> dict[str, float]:
        """What a finished one has come to, by the words of `numbers`."""
        known = {word: metrics[name] for name, word in self.numbers.items() if name in metrics}
        return {word: value * 100 if word.endswith(" %") else value for word, value in known.items()}

    @property
    def protocol(self) -> str:
        """How the outcome was come by, where it means nothing without that."""
        return ""

    def mistakes_among(self, stages: Mapping[str, "Stage"]) -> Iterator[Mistake]:
        """The rules about this and other stages of its config that they break."""
        yield from ()

    def batches(self) -> dict[str, tuple[int, int]]:
        """Batches that are shared over ranks, by setting: samples, and the micro-batches that they are cut into."""
        return {}

    def unequal_shares(self, ranks: range) -> Iterator[Mistake]:
        """The batches that some number of ``ranks`` cannot share equally."""
        counts = f"{ranks[0]} to {ranks[-1]}" if len(ranks) > 1 else ranks[0]
        for name, (size, micro) in self.batches().items():
            share = math.lcm(*ranks) * micro
            if size % share and not size % micro:  # else a rule of its own says so
                parts = f" x {micro} micro-batches" if micro > 1 else ""
                yield name, (
                    f"{size} does not divide over {counts} workers{parts}; "
                    f"expected a multiple of {share}, such as {max(1, round(size / share)) * share}"
                )
