"""Keys: every setting that can change a result is in them, and nothing else."""

import json
import random
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from pipeline import artifact, cli, config, plan
from pipeline.config import members, tags
from pipeline.settings.base import Settings
from pipeline.settings.objectives import PIRL, Head
from pipeline.settings.stages import AnyStage, Codes, Pack, Pretrain, Probe

CONFIG = """\
stages:
  shards: {kind: pack, source: digits}
  moco: {kind: pretrain, data: shards, views: {kind: characters}, net: {kind: cnn, width: 4, depth: 1}, batch: 64,
    steps: 3, objective: {kind: moco, queue: 64}}
"""
TRAINING = {
    "log_steps": 3, "save_epochs": 5, "save_steps": 50, "check_steps": 0, "collapse": "stop", "keep": 9,
    "snapshots": 1, "max_bad_share": 0.5, "place": {"on": "here"}, "online": {"images": 5},
}  # fmt: skip
HOUSEKEEPING = [
    (Pretrain(data="s"), TRAINING),
    (Codes(data="s"), {"log_steps": 3, "save_steps": 50, "place": {"on": "here"}}),
    (Pack(), {"max_bad": 3, "place": {"on": "here"}}),
    (Probe(data="s", encoders=("a",)), {"place": {"on": "here"}}),
]


def key(settings: Any) -> str:
    return artifact.key(settings, 0, {}, {})


@pytest.mark.parametrize(("settings", "changes"), HOUSEKEEPING, ids=lambda x: getattr(x, "kind", ""))
def test_housekeeping_is_not_in_the_key(settings, changes):
    assert set(changes) == settings.housekeeping()
    for name, value in changes.items():
        changed = type(settings).model_validate(settings.model_dump(exclude_unset=True) | {name: value})
        assert getattr(changed, name) != getattr(settings, name) and key(changed) == key(settings)


def test_a_setting_that_is_new_changes_no_key_at_its_default():
    class Newer(PIRL):
        blend: float = 0.0

    class NewerStage(Pretrain):
        patience: int = 3
        objective: Newer = Newer()  # type: ignore[assignment]

    older, newer = Pretrain(data="s", objective=PIRL()), NewerStage(data="s", objective=Newer(head=Head(dim=64)))
    assert key(Pretrain(data="s", objective=PIRL(head=Head(dim=64)))) == key(newer) != key(older)
    assert key(NewerStage(data="s", objective=Newer(head=Head(dim=64), blend=0.5))) != key(newer)
    assert key(NewerStage(data="s", objective=Newer(head=Head(dim=64)), patience=4)) != key(newer)


def test_a_default_of_a_field_is_not_one_of_its_class():
    """PIRL's head is linear; a head as its class has it is another one, and says so by being there."""
    assert PIRL().key_parts() == {"kind": "pirl"}
    assert PIRL(head=Head(hidden=2048)).key_parts() == {"kind": "pirl", "head": {}}
    assert PIRL(head=Head(hidden=0, dim=64)).key_parts() == {"kind": "pirl", "head": {"hidden": 0, "dim": 64}}


def body(model: type[Settings], draw: random.Random) -> dict[str, Any]:
    """A few settings of a class, most of them possible."""
    chosen = {}
    for name, info in model.model_fields.items():
        if name == "kind" or info.is_required() or draw.random() < 0.3:
            chosen[name] = value(name, info.annotation, draw)
    return chosen


def value(name: str, annotation: Any, draw: random.Random) -> Any:
    groups = members(annotation)
    if name in ("data", "encoder", "model"):
        return "s"
    if name == "encoders":
        return draw.sample(["a", "b", "c"], draw.randint(1, 3))
    if groups and (name not in ("splits", "predictor") or draw.random() < 0.5):
        group = body(draw.choice(groups), draw)
        return [group, group] if name == "views" and draw.random() < 0.3 else group
    literals = [v for part in (annotation, *get_args(annotation)) for v in get_args(part) if not isinstance(v, type)]
    literals = [v for v in literals if isinstance(v, str | bool)]
    if literals:
        return draw.choice(literals)
    return draw.choice([None, True, False, 0, 1, 2, 4, 0.25, 0.5, 1.0, [0.5, 1.0], [0.1, 0.2, 0.3, 0.4], "digits"])


def possible(model: type[Settings], draw: random.Random) -> Settings | None:
    """Settings of a class, or None where the rules refuse what was drawn."""
    chosen = body(model, draw)
    for _ in range(40):  # what a rule refuses is left out, or drawn anew
        try:
            return TypeAdapter(model).validate_json(json.dumps(chosen), strict=True)
        except ValidationError as error:
            for problem in error.errors():
                inside, *_ = problem["loc"] or (draw.choice(list(chosen)),)
                if isinstance(inside, str) and not model.model_fields[inside].is_required() and inside != "kind":
                    chosen.pop(inside, None)
    return None


def read_back(parts: Any, default: Any, models: list[type[Settings]]) -> Any:
    """The settings that have these parts, as plain values without housekeeping."""
    if isinstance(parts, list):
        return [read_back(part, None, models) for part in parts]
    if not isinstance(parts, dict):
        return parts
    (model,) = [m for m in models if parts.get("kind") in tags(m)] or models
    plain = {}
    for name, info in model.model_fields.items():
        if name not in model.housekeeping():
            inner = members(info.annotation)
            plain[name] = read_back(parts[name], None, inner) if name in parts else without(info.default)
    return plain


def without(value: Any) -> Any:
    """A setting as plain values without housekeeping."""
    if isinstance(value, Settings):
        names = set(type(value).model_fields) - value.housekeeping()
        return {name: without(getattr(value, name)) for name in type(value).model_fields if name in names}
    return [without(each) for each in value] if isinstance(value, tuple) else value


@given(st.integers(0, 2**32))
def test_settings_can_be_read_back_from_their_parts(seed):
    """So that two that differ in more than housekeeping never share a key."""
    draw = random.Random(seed)
    model = draw.choice(members(AnyStage))
    settings = possible(model, draw)
    if settings is not None:
        parts = json.loads(json.dumps(settings.key_parts()))
        assert read_back(parts, None, [model]) == without(settings)


def test_most_settings_that_are_drawn_are_possible():
    made = [possible(m, random.Random(seed)) for seed in range(40) for m in members(AnyStage)]
    assert sum(s is not None for s in made) > len(made) / 2
    assert len({json.dumps(s.key_parts()) for s in made if s is not None}) > len(made) / 4


# ----------------------------------------------------------------------------------------------------------- in a run
@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text(CONFIG)
    return tmp_path


def times() -> dict[Path, int]:
    """When each file of the stages was written; a config's page is drawn anew by every run."""
    pages = Path("runs/pages")
    return {p: p.stat().st_mtime_ns for p in Path("runs").glob("*/**/*") if not p.is_relative_to(pages)}


def test_a_finished_stage_says_that_housekeeping_changes_nothing(place, capsys):
    assert cli.main(["run", "c.yaml", "--here"]) == 0
    record = json.loads(next(Path("runs").glob("moco-*/artifact.json")).read_text())
    assert record["settings"]["log_steps"] == 10  # all settings are in it
    before = times()
    capsys.readouterr()
    assert cli.main(["run", "c.yaml", "--here", "moco.log_steps=20", "moco.keep=3"]) == 0
    folder = next(p.folder for p in plan.plan(config.load("c.yaml"), here=True) if p.name == "moco")
    told = capsys.readouterr().out
    assert f"moco: done already, {folder}; log_steps 20, keep 3 would change no result\n" in told
    assert "starts" not in told and times() == before
    assert cli.main(["run", "c.yaml", "--here"]) == 0
    assert "would change" not in capsys.readouterr().out
