"""results.json: all that a report says of the runs of a config, as plain numbers and texts.

`Results` is its schema; `SCHEMA` is raised when a field changes its meaning or goes. Accuracies and shares are
fractions between 0 and 1, differences are fractions, too; sizes are bytes, times seconds, dates UTC. A number that is
not known is null.
"""

from dataclasses import asdict, dataclass
from typing import Any

SCHEMA = 1


@dataclass(frozen=True)
class Value:
    """A test accuracy: the ``mean`` of ``n`` numbers and their deviation ``sd`` (n - 1) over what ``over`` names:
    label draws, seeds, or test images (then the binomial deviation of one accuracy seen on n images)."""

    mean: float
    sd: float | None
    n: int
    over: str


@dataclass(frozen=True)
class Row:
    """An encoder's row of a probe. ``name``: as the probe calls it; ``label``: as it is shown; ``variant``: what it
    has of a sweep's settings, empty where all have the same row; ``trained``: whether it is an encoder of the config,
    or else something to hold them against; ``values`` by metric; ``folder``: its artifact."""

    name: str
    label: str
    variant: str
    trained: bool
    values: dict[str, Value]
    folder: str | None


@dataclass(frozen=True)
class Difference:
    """How far row ``a`` is ahead of row ``b`` in a metric, paired, with a 95 % interval (`evaluation.intervals`).
    ``against``: raw pixels, untrained, or the leader; ``n``: what ``over`` names: seeds, or test images, or label
    draws and test images. ``decided``: whether the interval holds no 0."""

    a: str
    b: str
    metric: str
    against: str
    mean: float
    low: float
    high: float
    n: int
    over: str
    decided: bool


@dataclass(frozen=True)
class Metric:
    """An accuracy of the rows: its ``key``, and what it is in words."""

    key: str
    label: str


@dataclass(frozen=True)
class Verdict:
    """The row with the highest mean of ``metric`` among the trained ones, and its leads: over raw pixels, over the
    network of its own untrained, and over the next encoder (null where there is none). ``answer``: ahead, behind or
    undecided, of raw pixels; none, where they were not measured."""

    metric: Metric
    row: Row
    answer: str
    pixels: Difference | None
    untrained: Difference | None
    rival: Difference | None


@dataclass(frozen=True)
class TestImage:
    """A test image by its id in the shards, and what it was called where it came from."""

    id: int
    name: str


@dataclass(frozen=True)
class Pair:
    """How many of the ``of`` test images of class ``true`` were taken for ``taken``, and the first of them."""

    true: str
    taken: str
    count: int
    of: int
    images: list[TestImage]


@dataclass(frozen=True)
class Confusion:
    """What the leading row took for what, with all labels, at one seed. ``table``: a row a true class, null past 20
    classes; ``pairs``: the commonest mistakes; ``shards``: the folder of the test images."""

    row: str
    seed: int
    shards: str
    classes: list[str]
    table: list[list[int]] | None
    pairs: list[Pair]


@dataclass(frozen=True)
class Curve:
    """At most 500 points of a quantity along a training; ``final``: the last one logged."""

    label: str
    steps: list[int]
    values: list[float]
    final: float


@dataclass(frozen=True)
class Chart:
    """Curves that share their axes. ``tag``: as it is logged."""

    title: str
    tag: str
    curves: list[Curve]


@dataclass(frozen=True)
class Probe:
    """A probe over all seeds and settings of a sweep: its rows, best first, what they are held against, paired
    differences, and accuracies along training. ``protocol``: as the artifacts have it, what differs between them by
    what marks each ("seed=1"); ``seeds``: those it was run with."""

    stage: str
    seeds: list[int]
    metrics: list[Metric]
    protocol: dict[str, Any]
    rows: list[Row]
    differences: list[Difference]
    verdict: Verdict | None
    along: list[Chart]
    confusion: Confusion | None


@dataclass(frozen=True)
class Training:
    """What a training took, and what limited it. ``wait``: share of its time that it waited for its feed; ``lost``:
    steps that were computed twice, after ``restarts``; ``bad``: images that could not be read."""

    stage: str
    images_per_s: float
    wait: float
    threads: int
    limit: str
    restarts: int
    lost: int
    bad: int


@dataclass(frozen=True)
class Stage:
    """A stage of the config. ``state``: done, running, stopped, failed or not begun; ``at``: how far an unfinished
    one is; ``needs``: labels of the stages it takes in; ``variants``: of the sweep, those it is of; ``numbers``: every
    number that its artifact ends with."""

    label: str
    name: str
    kind: str
    variants: list[str]
    needs: list[str]
    key: str
    folder: str
    state: str
    at: str
    seed: int
    bytes: int
    seconds: float | None
    finished: str | None
    numbers: dict[str, float]


@dataclass(frozen=True)
class Sheet:
    """A picture that a stage made. ``file``: relative to its folder; ``caption``: what it shows."""

    stage: str
    folder: str
    file: str
    label: str
    caption: str


@dataclass(frozen=True)
class Environment:
    """What artifacts record of where they were made: the value of most of them, and the stages with another."""

    name: str
    value: str
    others: dict[str, str]


@dataclass(frozen=True)
class Command:
    """Words to be typed, and what they do."""

    purpose: str
    words: str


@dataclass(frozen=True)
class Results:
    """Everything. ``finished``: when the newest artifact was; ``incomplete``: labels of the stages that are not done;
    ``packed``: images of the shards by split."""

    schema: int
    name: str
    variants: list[str]
    finished: str | None
    incomplete: list[str]
    packed: list[dict[str, Any]]
    probes: list[Probe]
    losses: list[Chart]
    trainings: list[Training]
    sheets: list[Sheet]
    stages: list[Stage]
    environment: list[Environment]
    commands: list[Command]

    def json(self) -> dict[str, Any]:
        """As results.json has it."""
        return asdict(self)
