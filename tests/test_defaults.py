"""A default that changes raises the version of every kind of stage whose results it changes.

A key leaves out what is at its default, so artifacts made before would else be taken for new ones. The defaults of now
stand in ``defaults.json``, which ``python -m tests.test_defaults`` writes anew.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.config import members
from pipeline.settings.base import key_part
from pipeline.settings.stages import AnyStage

STORED = Path(__file__).with_name("defaults.json")


def models(model: Any) -> Iterator[Any]:
    """A model and all that its fields may hold, however deep, but for housekeeping."""
    yield model
    for name, info in model.model_fields.items():
        for member in members(info.annotation) if name not in model.housekeeping() else ():
            yield from models(member)


def defaults(stage: Any) -> dict[str, Any]:
    """Defaults of a kind of stage by Model.setting, without housekeeping."""
    found = {}
    for model in dict.fromkeys(models(stage)):
        for name, info in model.model_fields.items():
            if name not in model.housekeeping() and not info.is_required():
                found[f"{model.__name__}.{name}"] = key_part(info.default)  # a group as a key has it
    return dict(sorted(found.items()))


def table() -> dict[str, dict[str, Any]]:
    return {
        stage.model_fields["kind"].default: {"version": stage.version, "defaults": defaults(stage)}
        for stage in members(AnyStage)
    }


def changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Defaults that are not as they were in kinds whose version is as it was."""
    return [
        f"{kind}: {name} was {old!r} and is {now[kind]['defaults'][name]!r}: raise the version of its settings"
        for kind, stored in before.items()
        for name, old in stored["defaults"].items()
        if kind in now and now[kind]["version"] == stored["version"]
        and name in now[kind]["defaults"] and now[kind]["defaults"][name] != old
    ]  # fmt: skip


def test_a_changed_default_raises_the_version():
    now = json.loads(json.dumps(table()))
    before = json.loads(STORED.read_text())
    assert not changes(before, now)
    assert before == now, "settings came or went: python -m tests.test_defaults writes the table anew"


def test_a_change_is_seen():
    now = json.loads(json.dumps(table()))
    before = json.loads(json.dumps(table()))
    before["pretrain"]["defaults"]["PIRL.temperature"] = 0.5
    assert [line.split(":")[1].split()[0] for line in changes(before, now)] == ["PIRL.temperature"]
    before["pretrain"]["version"] -= 1
    assert not changes(before, now)


if __name__ == "__main__":
    now = table()
    if lines := changes(json.loads(STORED.read_text()) if STORED.exists() else {}, json.loads(json.dumps(now))):
        raise SystemExit("\n".join(lines))
    STORED.write_text(json.dumps(now, indent=1) + "\n")
