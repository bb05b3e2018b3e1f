"""`pipeline settings`: every setting with its default and its meaning, without what takes long to import."""

import json

import pytest

from pipeline import cli
from pipeline.commands import settings
from pipeline.settings.base import Settings
from tests.test_cli import HEAVY, loaded

KINDS = list(settings.kinds())


def told(capsys, *words: str) -> str:
    assert cli.main(["settings", *words]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind.place}.{kind.names[0]}")
def test_every_setting_says_what_it_means(kind):
    assert kind.about
    for row in settings.rows(kind.model):
        name = row.path.rpartition(".")[2]
        assert name in ("kind", "norm", "lista") or len(row.meaning) > 4, row
        assert row.values or isinstance(row.default, Settings), row


def test_all_kinds_are_listed_and_found_by_name_or_place(capsys):
    text = told(capsys)
    for kind in KINDS:
        assert f"{kind.place}:" in text and ", ".join(kind.names) in text
    assert told(capsys, "pirl").count("\n\n") == 2  # an objective, and views
    assert told(capsys, "views.pirl").startswith("views: pirl. PIRL's image view")
    assert "vae " in told(capsys, "objective") and told(capsys, "net.resnet50") == told(capsys, "net.resnet18")


def test_a_setting_is_shown_with_default_values_and_meaning(capsys):
    assert "  queue: 65536                    # whole number ≥ 1\n      Keys kept; any" in told(capsys, "moco")
    assert "    hidden: 0 " in told(capsys, "objective.pirl")  # the default of the group that stands there
    text = told(capsys, "temperature")
    assert "online.temperature: 0.07" in text and "objective: simclr." in text and "vae" not in text
    assert "  data: (needed)                  # a stage that makes shards" in told(capsys, "probe")
    defaults = "Its stage's defaults: net: {kind: mlp}, optimiser: {kind: adam}, epochs: 50, batch: 128."
    assert defaults in " ".join(told(capsys, "vae").split())  # wrapped somewhere


def test_a_misspelt_name_is_met_with_the_nearest(capsys):
    for word, near in (("moko", "moco"), ("queu", "queue"), ("objectiv", "objective")):
        assert cli.main(["settings", word]) == 2
        assert f'"{word}"; did you mean "{near}"?' in capsys.readouterr().err
    assert cli.main(["settings", "zzzzzz"]) == 2 and "expected one of config, stage, pack" in capsys.readouterr().err


def test_settings_for_machines(capsys, monkeypatch):
    monkeypatch.setenv("PIPELINE_LOG", "")
    rows = [json.loads(line) for line in told(capsys, "simclr", "--json").splitlines()]
    assert {(row["place"], row["setting"]) for row in rows} >= {("objective", "head.dim"), ("views", "jitter_p")}
    assert next(row["default"] for row in rows if row["setting"] == "temperature") == 0.1


def test_settings_load_nothing_heavy():
    assert not loaded("settings", "moco") & set(HEAVY)
