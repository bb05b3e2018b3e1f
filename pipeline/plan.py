"""Turns a config into a list of stages in the order of their needs, each with its key, its folder and its state.

    plan(cfg)             all stages of a config, without torch
    only(stages, names)   the named stages, and those that they still need
    merge(variants)       the stages of a sweep, each once
    job(stage, stages)    the description of one stage for the process that runs it
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
from pipeline.settings import imports
from pipeline.settings.imports import UserFile
from pipeline.settings.stage import Stage

Fingerprints = dict[str, dict[str, str]]
"""What identifies what a stage takes from outside (`artifact.fingerprint`), by the folder of runs and its settings."""


@dataclass(frozen=True)
class PlannedStage:
    """A stage of the config, its key, and whether its artifact exists. ``inputs``: for each stage that it reads, its
    identity (`artifact.identity`)."""

    name: str
    kind: str
    settings: Stage
    seed: int
    key: str
    folder: Path
    inputs: dict[str, str]
    fingerprint: dict[str, str]
    """Of what it takes from outside of the runs (`artifact.fingerprint`)."""
    place: str
    """Where it runs: "here", "task" or "workers"."""
    done: bool
    needs: dict[str, str] = field(default_factory=dict)
    """The key of each stage that it needs, by name. Unlike ``inputs``, a quarantine list does not change it."""
    label: str = ""
    """Its name in messages, which tells the variants of a sweep apart."""
    config: str = ""
    """The name of its config; in no key."""
    provisional: bool = False
    """Whether its key will change because a pack that it depends on is not done yet: plan again after packing."""

    @property
    def packs(self) -> bool:
        """Whether it makes shards, by whose content later stages are known."""
        return "shards" in self.settings.makes


@dataclass(frozen=True)
class Job:
    """The description of one stage for the process that runs it; picklable. ``inputs``: folders by stage name."""

    name: str
    kind: str
    settings: Stage
    seed: int
    inputs: dict[str, str]
    out: str
    key: str
    stop_file: str
    """A path; once the file exists, the stage saves and stops."""
    cwd: str
    """The folder that relative paths in settings start from."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Entries of artifact.json about the stage's origin."""
    needs: tuple[str, ...] = ()
    """Keys of the stages that must be done before it."""
    files: tuple[UserFile, ...] = ()
    """The user's files that it, or a stage whose artifact it reads, is made with."""


def plan(cfg: "config.Config", here: bool = False, fingerprints: Fingerprints | None = None) -> list[PlannedStage]:
    """Every stage of a config, after the stages it needs and otherwise in the config's order.

    Shards are identified by their content, so the keys of stages after an unfinished pack are provisional.
    ``fingerprints`` keeps those of the sources for the next plan, so that both plans mean the same images even if the
    source changes in between. Raises DataError where a source cannot be packed.
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
    provisional = any(p.provisional or (p.packs and not p.done) for p in needs)
    done = not provisional and artifact.done(folder, key) is not None
    keys = {p.name: p.key for p in needs}
    place = placement(settings, here)
    return PlannedStage(
        name, settings.kind, settings, seed, key, folder, inputs, fingerprint, place, done, keys,
        config=cfg.name, provisional=provisional,
    )  # fmt: skip


def placement(settings: Stage, here: bool) -> str:
    """"here", "task" or "workers": as a stage's settings say; for "auto" a Ray task if ray is installed, else here.
    Ranks that a launcher started run every stage themselves. Raises ConfigError where ray is needed and missing."""
    on = settings.place.on
    if here or launcher.size() > 1 or on == "here":
        return "here"
    if find_spec("ray"):
        return "task" if on == "auto" else on
    if on == "auto":
        return "here"
    raise ConfigError(f"place.on: {on} needs Ray, which is not installed; install ray, or add --here")


def only(stages: list[PlannedStage], names: Iterable[str]) -> list[PlannedStage]:
    """The named stages, and the unfinished stages that they need. Raises ConfigError for an unknown name."""
    by_name = {p.name: p for p in stages}
    wanted, needed = set(), list(names)
    while needed:
        name = needed.pop()
        if name not in by_name:
            raise ConfigError(f"--only {name}: no such stage{config.nearest(name, by_name)}")
        if name not in wanted:
            wanted.add(name)
            needed += [ref for ref in by_name[name].inputs if not by_name[ref].done]
    return [p for p in stages if p.name in wanted]


def merge(variants: dict[str, list[PlannedStage]]) -> list[PlannedStage]:
    """The stages of several variants of a config, each once. A stage that variants share is not labelled by them."""
    uses = Counter(p.key for stages in variants.values() for p in stages)
    by_key = {
        p.key: replace(p, label=p.name if uses[p.key] > 1 or not mark else f"{p.name} {mark}")
        for mark, stages in variants.items()
        for p in stages
    }
    return list(by_key.values())


def job(p: PlannedStage, stages: list[PlannedStage]) -> Job:
    """The description of a stage for the process that runs it. ``stages``: must contain those that it needs."""
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
    used = files(p, stages)
    facts |= {"imports": {file.name: file.fact for file in used}} if used else {}
    return Job(name, p.kind, p.settings, p.seed, folders, str(out), p.key, stop, os.getcwd(), facts, needs, used)


def files(p: PlannedStage, stages: list[PlannedStage]) -> tuple[UserFile, ...]:
    """The user's files that a stage, or one whose artifact it reads, is made with, each once."""
    below = [file for key in p.needs.values() for q in stages if q.key == key for file in files(q, stages)]
    return tuple(dict.fromkeys([*imports.used(p.settings), *below]))
