"""The graph of a config as a list of stages in order, each with its key, its folder, and whether it is done.

    plan(cfg)             what there is to do, without torch
    only(stages, names)   the stages named, and what they still need
    merge(variants)       the stages of a sweep, each once
    job(stage, stages)    what a process needs to know to run one of them
"""

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from graphlib import TopologicalSorter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipeline import artifact, config, launcher
from pipeline.errors import ConfigError
from pipeline.settings.stage import Stage

Fingerprints = dict[str, dict[str, str]]
"""What is known of each pack's source, by root and settings."""


@dataclass(frozen=True)
class PlannedStage:
    """A stage of the config, its key, and whether its artifact exists. ``inputs``: identities by stage name."""

    name: str
    kind: str
    settings: Stage
    seed: int
    key: str
    folder: Path
    inputs: dict[str, str]
    fingerprint: dict[str, str]
    """What is known of a pack's source without reading its images."""
    place: str
    """Where it runs: here, task or workers."""
    done: bool
    needs: dict[str, str] = field(default_factory=dict)
    """Keys by stage name of the stages it needs. ``inputs`` are their identities, which a quarantine changes."""
    label: str = ""
    """Its name in what is said: another one where several variants of a config run at once."""
    config: str = ""
    """The name of the config that it stands in; in no key."""
    provisional: bool = False
    """Whether images are still to be packed whose fingerprint will be in its key: plan again when they are."""


@dataclass(frozen=True)
class Job:
    """What a process needs to know to run one stage: plain and picklable. ``inputs``: folders by stage name."""

    name: str
    kind: str
    settings: Stage
    seed: int
    inputs: dict[str, str]
    out: str
    key: str
    stop_file: str
    """Asks the stage to save and leave, once it exists."""
    cwd: str
    """What relative paths in settings are relative to."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What artifact.json says of where this comes from."""
    needs: tuple[str, ...] = ()
    """Keys of the stages that have to be done before."""


def plan(cfg: "config.Config", here: bool = False, fingerprints: Fingerprints | None = None) -> list[PlannedStage]:
    """Every stage of a config, after the stages it needs and otherwise in the config's order.

    Shards are known by what is in them, so the keys of stages after a pack which is not done are provisional.
    ``fingerprints`` keeps what is known of the sources for the next plan, so that the same images are meant however
    long packing takes. Raises DataError where a source cannot be packed.
    """
    fingerprints = {} if fingerprints is None else fingerprints
    edges = {name: config.needs(stage) for name, stage in cfg.stages.items()}
    stages: dict[str, PlannedStage] = {}
    for name in TopologicalSorter(edges).static_order():
        stages[name] = plan_stage(cfg, name, [stages[ref] for ref in edges[name]], here, fingerprints)
    return list(stages.values())


def plan_stage(
    cfg: "config.Config", name: str, needs: list[PlannedStage], here: bool, fingerprints: Fingerprints
) -> PlannedStage:
    settings, root = cfg.stages[name], Path(cfg.root)
    seed = cfg.seed if settings.seed is None else settings.seed
    inputs = {p.name: artifact.identity(p.folder, p.key) for p in needs}
    text = f"{cfg.root} {settings.model_dump_json()}"
    if text not in fingerprints:
        fingerprints[text] = artifact.fingerprint(settings, root)
    fingerprint = fingerprints[text]
    key = artifact.key(settings, seed, inputs, fingerprint)
    folder = artifact.folder(root, name, key)
    provisional = any(p.provisional or (p.kind == "pack" and not p.done) for p in needs)
    done = not provisional and artifact.done(folder, key) is not None
    keys = {p.name: p.key for p in needs}
    place = placement(settings, here)
    return PlannedStage(
        name, settings.kind, settings, seed, key, folder, inputs, fingerprint, place, done, keys,
        config=cfg.name, provisional=provisional,
    )  # fmt: skip


def placement(settings: Stage, here: bool) -> str:
    """Where a stage runs: as its settings say; auto: a Ray task where ray can be imported, else here. A process of a
    launcher's world runs everything itself."""
    on = settings.place.on
    if here or launcher.size() > 1 or on == "here":
        return "here"
    if find_spec("ray"):
        return "task" if on == "auto" else on
    if on == "auto":
        return "here"
    raise ConfigError(f"place.on: {on} needs Ray, which is not installed; install ray, or add --here")


def only(stages: list[PlannedStage], names: Iterable[str]) -> list[PlannedStage]:
    """The stages named, and those not yet done that they need."""
    by_name = {p.name: p for p in stages}
    wanted, todo = set(), list(names)
    while todo:
        name = todo.pop()
        if name not in by_name:
            raise ConfigError(f"--only {name}: no such stage{config.nearest(name, by_name)}")
        if name not in wanted:
            wanted.add(name)
            todo += [ref for ref in by_name[name].inputs if not by_name[ref].done]
    return [p for p in stages if p.name in wanted]


def merge(variants: dict[str, list[PlannedStage]]) -> list[PlannedStage]:
    """The stages of several variants of a config, each once. A stage that two of them share is labelled by neither."""
    uses = Counter(p.key for stages in variants.values() for p in stages)
    by_key = {
        p.key: replace(p, label=p.name if uses[p.key] > 1 or not mark else f"{p.name} {mark}")
        for mark, stages in variants.items()
        for p in stages
    }
    return list(by_key.values())


def job(p: PlannedStage, stages: list[PlannedStage]) -> Job:
    """A stage as it is handed to the process that runs it. ``stages``: those among which are the ones it needs."""
    folders = {name: str(next(q.folder for q in stages if q.key == key).resolve()) for name, key in p.needs.items()}
    out = p.folder.resolve()
    facts = {
        "config": p.config,
        "stage": p.name,
        "kind": p.kind,
        "key": p.key,
        "settings": p.settings.model_dump(mode="json", exclude={"place"}),
        "seed": p.seed,
        "inputs": p.inputs,
        "fingerprints": p.fingerprint,
    }
    stop = str(out / artifact.STOP)
    name, needs = p.label or p.name, tuple(p.needs.values())
    return Job(name, p.kind, p.settings, p.seed, folders, str(out), p.key, stop, os.getcwd(), facts, needs)
