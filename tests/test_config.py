"""Configs: every mistake is met at once, with its place and the nearest right name; nothing else happens."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline import cli, config, document, plan
from pipeline.errors import ConfigError
from pipeline.settings.base import Settings, over
from pipeline.settings.nets import CNN, Norm
from pipeline.settings.objectives import AE, DAE, PIRL, VAE, MoCo, MoCoV3, SimCLR
from pipeline.settings.stages import Codes, Pretrain

GOOD = """\
seed: 0
stages:
  shards: {kind: pack, source: digits}
  moco: {kind: pretrain, data: shards, objective: {kind: moco, queue: 512}, epochs: 3}
  pirl:
    kind: pretrain
    data: shards
    objective: {kind: pirl, head: {dim: 64}}
    views: {kind: characters}
  codes: {kind: codes, data: shards}
  vae: {kind: pretrain, data: shards, objective: {kind: vae}, optimiser: {lr: 2e-3}}
  drawn: {kind: generate, data: shards, model: vae}
  probe: {kind: probe, data: shards, encoders: [moco, pirl, codes, vae]}
"""

OVERRIDES = [  # what is typed, and what the answer has to hold
    # misspelt keys
    ("moco.epohcs=3", 'unknown key "epohcs"; did you mean "epochs"?'),
    ("moco.objective.queu=3", 'did you mean "queue"?'),
    ("moco.objective.head.dims=3", 'did you mean "dim"?'),
    ("moco.optimiser.learning_rate=1", "moco.optimiser.learning_rate: unknown key"),
    ("moco.optimizer.lr=1", 'did you mean "optimiser"?'),
    ("pirl.objective.temprature=0.1", 'did you mean "temperature"?'),
    ("pirl.objective.jigsaw.cels=3", 'did you mean "cell'),
    ("pirl.views.rotatoin=3", 'did you mean "rotation"?'),
    ("codes.atom=3", 'did you mean "atoms"?'),
    ("codes.lista.layer=3", 'did you mean "layers"?'),
    ("vae.objective.likelyhood=gaussian", 'did you mean "likelihood"?'),
    ("vae.objective.latents=3", 'did you mean "latent"?'),
    ("probe.neighbors=3", 'did you mean "neighbours"?'),
    ("shards.sorce=digits", 'did you mean "source"?'),
    ("moco.place.gpu=1", 'did you mean "gpus"?'),
    ("moco.net.norm.split=2", 'did you mean "splits"?'),
    # right keys in the wrong place
    ("moco.queue=512", 'did you mean "objective.queue"?'),
    ("moco.lr=0.1", 'did you mean "optimiser.lr"?'),
    ("moco.gpus=1", 'did you mean "place.gpus"?'),
    ("pirl.objective.queue=512", "kind moco has it"),
    ("pirl.views.jitter_p=0.5", "kind moco_v1 has it"),
    ("codes.views=3", "kind pretrain has it"),
    ("vae.weights=sharded", "vae.weights: objective vae is not trained on shards"),
    ("pirl.net={kind: mlp}", "pirl.net.kind: a mlp takes images of one size, not patches; use pretext: rotation"),
    ("moco={kind: pretrain, data: shards, net: {kind: mlp}, views: {small: {size: 4}}}",
     "moco.views.small: a mlp takes images of one size, not small crops"),
    ("vae.views={kind: characters}", "vae.views: objective vae is given the image itself; leave views out"),
    ("moco.views=[{size: 8}, {size: 8}, {size: 8}]", "moco.views: found a list of 3; objective moco takes two views"),
    ("moco.views=[]", "moco.views: found an empty list; expected one mapping for all views"),
    ("moco.views=[{size: 8}, {kind: characters, size: 8}]", "moco.views: found kinds moco_v2 and characters"),
    ("moco.views=[{size: 8}, {size: 16}]", "moco.views: found sizes 8 and 16; expected one size for all views"),
    ("moco.views=[{}, {small: {size: 4}}]", "moco.views: found small crops in a later view's mapping"),
    ("moco.views=[{}, {blur_q: 0.1}]", 'moco.views.1.blur_q: unknown key "blur_q"; did you mean "blur'),
    ("moco.views=[{kind: simclr}, {kind: simclear}]", 'moco.views.1.kind: unknown kind "simclear"'),
    ("moco.views=[{}, {scale: [1, 0.5]}]", "moco.views.1.scale: found [1.0, 0.5]; expected [low, high]"),
    ("moco.views=[{}, 3]", "moco.views.1: found 3; expected keys {..}"),
    ("moco.views=3", "moco.views: found 3; expected keys {..}"),
    # misspelt stages and top keys
    ("moc.epochs=3", 'no stage "moc"; did you mean "moco"?'),
    ("sed=3", 'did you mean "seed"?'),
    ("rot=x", 'did you mean "root"?'),
    ("nam=x", 'did you mean "name"?'),
    ("name=a/b", 'name: found "a/b"; expected letters, digits'),
    ("name=3", "name: found 3; expected text"),
    ("nothing.like=1", 'no stage "nothing"; expected one of shards, moco'),
    # unknown kinds and values
    ("moco.kind=pretrian", 'unknown kind "pretrian"; did you mean "pretrain"?'),
    ("moco.objective.kind=mocco", 'did you mean "moco"?'),
    ("moco.objective.kind=rbn", 'unknown kind "rbn"; expected one of simclr, moco, moco_v3, pirl, byol, simsiam'),
    ("moco.net.kind=resnet80", 'did you mean "resnet'),
    ("moco.views.kind=simclear", 'did you mean "simclr"?'),
    ("moco.optimiser.kind=admm", 'did you mean "adam"?'),
    ("moco.precision=fp16", 'did you mean "fp'),
    ("moco.schedule=cosin", 'did you mean "cosine"?'),
    ("codes.features=lasoo", 'did you mean "lasso"?'),
    ("moco.place.on=werkers", 'did you mean "workers"?'),
    ("pirl.objective.loss=nse", 'did you mean "nce"?'),
    # wrong types and impossible values
    ("moco.epochs=three", 'found "three"; expected a whole number'),
    ("moco.epochs=2.5", "found 2.5; expected a whole number"),
    ("moco.epochs=true", "found true; expected a whole number"),
    ("moco.epochs=", "moco.epochs: found null"),
    ("moco.epochs=0", "moco.epochs: found 0"),
    ("moco.epochs=-3", "moco.epochs: found -3"),
    ("moco.batch=[1,2]", "found [1, 2]; expected a whole number"),
    ("moco.optimiser.lr='0.1'", 'found "0.1"; expected a number'),
    ("moco.optimiser.lr=0", "moco.optimiser.lr: found 0"),
    ("moco.optimiser.lr=1e999", 'found "1e999"; expected a number'),
    ("moco.optimiser.lr=.inf", 'found ".inf"; expected a number'),
    ("moco.optimiser=0.1", "found 0.1; expected keys {..}"),
    ("moco.objective.symmetric=yes", 'found "yes"; expected true or false'),
    ("moco.objective.momentum=1.5", "moco.objective.momentum: found 1.5"),
    ("pirl.views.scale=0.5", "found 0.5; expected a list [..]"),
    ("pirl.views.scale=[0.5]", "pirl.views.scale"),
    ("pirl.views.scale=[1.0, 0.5]", "expected [low, high]"),
    ("shards.source=5", "found 5; expected text"),
    ("shards.test=1.5", "shards.test: found 1.5"),
    ("probe.draws=1", "probe.draws: found 1"),
    ("probe.encoders=moco", 'found "moco"; expected a list [..]'),
    ("probe.encoders=[]", "probe.encoders"),
    ("seed=x", 'seed: found "x"; expected a whole number'),
    ("seed=-1", "seed: found -1"),
    ("moco.seed=-1", "moco.seed: found -1"),
    ("root=", "root: found null"),
    ("moco=5", "moco: found 5"),
    # numbers that do not go together
    ("moco.accumulate=3", "moco.batch: 256 is not a multiple of accumulate 3"),
    ("moco.train_examples=100", "100 is less than one batch of 256"),
    ("moco.place={on: workers, workers: 3}", "expected a multiple of 3, such as 255"),
    ("moco.place={on: workers, workers: 4, min_workers: 2}", "over 2 to 4 workers"),
    ("moco.place={on: workers, workers: 4, min_workers: 2}", "expected a multiple of 12, such as 252"),
    ("moco.place={on: workers, workers: 2, min_workers: 4}", "found 4; expected at most workers, 2"),
    ("moco.place.workers=2", "no effect with on: auto; set on: workers"),
    ("probe.place={on: workers, workers: 2}", "a probe stage is one process"),
    ("codes.place={on: workers, workers: 3}", "512 does not divide over 3 workers; expected a multiple of 3"),
    ("codes={kind: codes, data: shards, batch: 9, place: {on: workers, workers: 3}}",
     "codes.lista_batch: 256 does not divide over 3 workers; expected a multiple of 3, such as 255"),
    ("moco={kind: pretrain, data: shards, net: {kind: vit}, views: {size: 40}}",
     "moco.net.patch: 16 does not divide views of 40 pixels"),
    ("pirl={kind: pretrain, data: shards, objective: {kind: pirl, jigsaw: {patch: 12}}, views: {size: 32}}",
     "pirl.objective.jigsaw.patch: 12 is more than a cell's 10 pixels in views of 32"),
    ("pirl={kind: pretrain, data: shards, objective: {kind: pirl}, net: {norm: {kind: split, splits: 24}}}",
     "pirl.net.norm.splits: 24 blocks of the global batch need a multiple of 24 images of a micro-batch on each of 1"),
    ("moco={kind: pretrain, data: shards, net: {norm: {kind: shuffle, splits: 8}}, batch: 8, "
     "place: {on: workers, workers: 2}}", "need a multiple of 8 images of a micro-batch on each of 2 workers"),
    # references
    ("probe.encoders=[moc]", 'no stage "moc"; did you mean "moco"?'),
    ("probe.encoders=[shards]", '"shards" makes shards; expected an encoder, such as moco or pirl'),
    ("probe.encoders=[moco, moco]", "moco is listed 2 times"),
    ("probe.data=moco", '"moco" makes a model and an encoder; expected shards, such as shards'),
    ("moco.data=shard", 'no stage "shard"; did you mean "shards"?'),
    ("moco.data=SHARDS", "expected the name of a stage"),
    ("codes.encoder=codes", "needs itself: codes needs codes"),
    ("drawn.model=moco", 'drawn.model: "moco" is trained by moco, which draws nothing; leave this out'),
    ("drawn.likelihood.samples=9", '"vae" is trained on grey pixels, of which bernoulli is no likelihood'),
    ("drawn.beside=[vae]", '"vae" is no variational autoencoder of two latent units; leave it out'),
    ("vae.objective={kind: vae, likelihood: logistic, binarisation: static}", "likelihood logistic is of grey pixels"),
    ("vae.objective={kind: iwae, gradient: doubly_reparameterised, warmup: 0.1}", "expected beta 1 and no warmup"),
    ("drawn.model=codes", '"codes" makes an encoder; expected a model, such as moco or pirl or vae'),
    ("codes.encoder=probe", '"probe" makes a report; expected an encoder'),
    # sources
    ("shards.source=digit", 'did you mean "digits"?'),
    ("shards.source=foldr:data", 'did you mean "folder:"?'),
    ("shards.source=images", 'did you mean "folder:images"?'),
    ("shards.source='folder:'", "expected something after the colon"),
    ("shards.source=folder:imags", 'imags: no such folder; did you mean "images"?'),
    ("shards.source=folder:images/trian", 'did you mean "images/train"?'),
    ("shards.source=folder:good.yaml", "is a file, not a folder"),
    ("shards.source=torchvision:cifar-10", 'no set "cifar-10"; did you mean "CIFAR10"?'),
    ("shards.source=wds:images/x-{00..02}.tar", "no file matches"),
    # not overrides at all
    ("moco.epochs", "expected key=value"),
    ("moco.epochs 3", "expected key=value"),
    ("--moco.epochs=3", "unknown option"),
    ("moco..epochs=3", "expected key=value"),
    ("=3", "expected key=value"),
    ("moco.epochs=[1", "not YAML"),
    ("moco.epochs={a: 1, a: 2}", "found {"),
    ("moco.epochs.x=3", "epochs is 3, which has no keys"),
    ("probe.encoders.0=moc", 'no stage "moc"; did you mean "moco"?'),
    ("probe.encoders.a=moco", '"a" is no place in a list of 4'),
]

FILES = [  # what is changed in the file, and what the answer has to hold
    (("epochs: 3", "epohcs: 3"), 'bad.yaml:4: moco.epohcs: unknown key "epohcs"; did you mean "epochs"?'),
    (("stages:", "stage:"), 'bad.yaml:2: stage: unknown key "stage"; did you mean "stages"?'),
    (("seed: 0", "seeds: 0"), 'did you mean "seed"?'),
    (("seed: 0", "seed: 0\nseed: 1"), 'bad.yaml:2: seed: the key "seed" stands here a second time'),
    (("  codes:", "  moco:"), 'the key "moco" stands here a second time'),
    (("queue: 512", "queue: 512, queue: 513"), "moco.objective.queue: the key"),
    (("  moco:", "  Mo Co:"), 'a stage cannot be named "Mo Co"'),
    (("  codes:", "  seed:"), 'a stage cannot be named "seed"'),
    (("  codes:", "  7:"), "7"),
    (("{kind: codes, data: shards}", ""), "codes: found null; expected keys"),
    (("{kind: codes, data: shards}", "{data: shards}"), "codes.kind: missing; expected one of pack, pretrain"),
    (("{kind: codes, data: shards}", "{kind: codes}"), "codes.data: missing"),
    (("{kind: codes, data: shards}", "{kind: codes, data: shards"), "not YAML"),
    (("{kind: codes, data: shards}", "!!python/object:os.system {}"), "not YAML"),
    (("{kind: codes, data: shards}", "&a {kind: *a}"), "bad.yaml"),
    (("{kind: codes, data: shards}", "{kind: codes, data: !!binary aGVsbG8=}"), "holds what a config cannot"),
    (("seed: 0", "\tseed: 0"), "not YAML"),
    ((GOOD, ""), "found nothing; expected keys name, seed, root and stages"),
    ((GOOD, "- a\n- b\n"), 'found ["a", "b"]; expected keys'),
    ((GOOD, "seed: 3\n"), "stages: missing; expected stages by name"),
    ((GOOD, "stages: {}\n"), "stages: found {}; expected stages by name"),
    ((GOOD, "stages: [a]\n"), 'stages: found ["a"]; expected stages by name'),
]


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A folder with a good config and some images, in which the command is typed."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good.yaml").write_text(GOOD)
    (tmp_path / "images" / "train").mkdir(parents=True)
    return tmp_path


def refused(place: Path, capsys, words: list[str]) -> str:
    """Runs the command, which has to fail as a mistake of the user's and to write nothing; returns what it said."""
    before = sorted(place.rglob("*"))
    assert cli.main(words) == 2
    told = capsys.readouterr()
    assert told.out == "" and "Traceback" not in told.err
    assert sorted(place.rglob("*")) == before
    return told.err


@pytest.mark.parametrize(("override", "answer"), OVERRIDES, ids=[o for o, _ in OVERRIDES])
def test_override_is_refused(place, capsys, override, answer):
    assert answer in refused(place, capsys, ["run", "good.yaml", override])


@pytest.mark.parametrize(("edit", "answer"), FILES, ids=[e[1].strip()[:30] for e, _ in FILES])
def test_file_is_refused(place, capsys, edit, answer):
    assert edit[0] in GOOD
    (place / "bad.yaml").write_text(GOOD.replace(*edit))
    assert answer in refused(place, capsys, ["run", "bad.yaml"])


def test_every_key_of_every_setting_misspelt(place, capsys):
    """A letter left out of, or put onto, any key that a config may hold."""
    whole = yaml.safe_load(GOOD)["stages"]
    cfg = config.load("good.yaml")
    for name in whole:
        right = set(keys(cfg.stages[name].model_dump(mode="json"), name))
        for path in sorted(right):
            for wrong in {path + "x", path[:-1]} - right:
                with pytest.raises(ConfigError, match=r"unknown key|which has no keys|expected key=value"):
                    config.load("good.yaml", [f"{wrong}=1"])


def keys(group: dict, above: str):
    for key, value in group.items():
        yield f"{above}.{key}"
        if isinstance(value, dict):
            yield from keys(value, f"{above}.{key}")


def test_all_mistakes_at_once(place, capsys):
    told = refused(place, capsys, ["run", "good.yaml", "moco.epohcs=3", "vae.betta=1", "prob.x=1", "probe.data=moco"])
    assert len(told.strip().splitlines()) == 4


def test_missing_file_names_the_nearest(place, capsys):
    assert 'goood.yaml: no such file; did you mean "good.yaml"?' in refused(place, capsys, ["run", "goood.yaml"])
    assert "is a folder; expected a YAML file" in refused(place, capsys, ["run", "images"])
    (place / "latin.yaml").write_bytes(b"seed: \xff")
    assert "cannot be read as text" in refused(place, capsys, ["run", "latin.yaml"])


def test_a_circle_is_named(place, capsys):
    text = "stages:\n  s: {kind: pack}\n"
    text += "  a: {kind: codes, data: s, encoder: b}\n  b: {kind: codes, data: s, encoder: a}\n"
    (place / "ring.yaml").write_text(text)
    assert "break the circle" in refused(place, capsys, ["run", "ring.yaml"])


def test_blocks_of_a_batch_norm_may_span_ranks(place):
    """Split: 8 blocks of 8 images on 2 ranks are 4 pieces of a rank's 4 images."""
    body = "{kind: pretrain, data: shards, net: {norm: {kind: split, splits: 8}}, batch: 8"
    config.load("good.yaml", [f"moco={body}, place: {{on: workers, workers: 2}}}}"])


def test_good_configs_load(place):
    cfg = config.load("good.yaml", ["seed=7", "root=elsewhere", "moco.epochs=5", "stages.vae.batch=64"])
    stages: dict = cfg.stages
    assert (cfg.seed, cfg.root) == (7, "elsewhere")
    assert (stages["moco"].epochs, stages["vae"].batch, stages["moco"].objective.queue) == (5, 64, 512)


@pytest.mark.parametrize("name", sorted(p.name for p in (Path(__file__).parents[1] / "configs").glob("*.yaml")))
def test_published_configs_load(name, tmp_path):
    """Each, with a folder that is there."""
    (tmp_path / "images").mkdir()
    config.load(str(Path(__file__).parents[1] / "configs" / name), [f"shards.source=folder:{tmp_path / 'images'}"])


def test_a_config_is_called_as_it_says_or_as_its_file(place):
    assert config.load("good.yaml").name == "good" and config.load("good.yaml", ["name=b-2.c"]).name == "b-2.c"
    (place / ".a c.v2.yaml").write_text(f"root: x\n{GOOD}")
    assert config.load(".a c.v2.yaml").name == "a_c.v2"
    (place / "named.yaml").write_text(f"name: d\n{GOOD}")
    one, other = (plan.plan(config.load("named.yaml", words), here=True) for words in ((), ("name=e",)))
    assert [p.config for p in one] == ["d"] * len(one) and [p.key for p in one] == [p.key for p in other]


def test_views_are_one_mapping_or_two(place):
    """An override reaches the one mapping by its keys, and one of a list by its place."""
    pair = "moco.views=[{blur_p: 1}, {blur_p: 0.1, solarise_p: 0.2}]"
    for words, wanted in (
        (["moco.views={blur_p: 0.3}"], [(0.3, 0.0)]),
        (["moco.views=[{blur_p: 0.3}]", "moco.views.0.solarise_p=0.1"], [(0.3, 0.1)]),
        ([pair, "moco.views.1.blur_p=0.4"], [(1.0, 0.0), (0.4, 0.2)]),
    ):
        stages: dict = config.load("good.yaml", words).stages
        assert [(v.blur_p, v.solarise_p) for v in stages["moco"].views] == wanted
    for words, answer in (
        ("moco.views.2.blur_p=0.4", '"2" is no place in a list of 2; expected 0 to 1'),
        ("moco.views.blur_p=0.4", '"blur_p" is no place in a list of 2; expected 0 to 1'),
        ("moco.views.1.blur_p=4", "override moco.views.1.blur_p=4: moco.views.1.blur_p: found 4"),
    ):
        with pytest.raises(ConfigError, match=re.escape(answer)):
            config.load("good.yaml", [pair, words])


def test_a_vit_takes_images_of_one_size(place):
    with pytest.raises(ConfigError, match=r"pirl.net.kind: a vit takes images of one size, not patches"):
        config.load("good.yaml", ["pirl.net={kind: vit}"])
    config.load("good.yaml", ["pirl.net={kind: vit}", "pirl.objective.pretext=rotation"])
    with pytest.raises(ConfigError, match=r"moco.views.small: a vit takes images of one size"):
        config.load("good.yaml", ["moco.net={kind: vit}", "moco.views={small: {size: 4}}"])
    config.load("good.yaml", ["pirl.views={kind: pirl, small: {size: 4}}"])


def test_partly_given_groups_start_from_their_fields_default(place):
    stages: dict = config.load("good.yaml", ["moco.views.size=16", "vae.objective.decoder.width=8"]).stages
    head = stages["pirl"].objective.head
    assert (head.hidden, head.dim) == (0, 64)  # PIRL's own is linear
    assert (stages["vae"].optimiser.kind, stages["vae"].optimiser.lr) == ("adam", 2e-3)
    assert [(v.kind, v.size) for v in stages["moco"].views] == [("moco_v2", 16)]
    dae: dict = config.load("good.yaml", ["vae.objective={kind: dae, decoder: {width: 8}}"]).stages
    assert dae["vae"].objective.latent == 64


def partial_groups(model: type[Settings]) -> Iterator[dict[str, Any]]:
    """Bodies of a settings class that give one key of one group whose default says something, and nothing else."""
    for name, info in model.model_fields.items():
        default = info.default
        if isinstance(default, Settings):
            for key in set(type(default).model_fields) - {"kind"}:
                yield {name: {key: json.loads(default.model_dump_json())[key]}}


@pytest.mark.parametrize("model", [Pretrain, Codes, SimCLR, MoCo, MoCoV3, PIRL, AE, DAE, VAE])
def test_a_group_means_the_same_wherever_it_is_read(model, place):
    """A config, an override, model_validate and the constructor: one key given leaves the default's others."""
    bodies = list(partial_groups(model))
    assert bodies
    needed: dict[str, Any] = {"kind": model.model_fields["kind"].default}
    needed |= {"data": "shards"} if "data" in model.model_fields else {}
    for body in bodies:
        expected = model(**needed)
        assert model.model_validate(needed | body) == model(**needed, **body) == expected
        assert model.model_validate_json(json.dumps(needed | body), strict=True) == expected
        stage = needed | body
        if "data" not in needed:
            stage = {"kind": "pretrain", "data": "shards", "objective": needed | body}
        (place / "one.yaml").write_text(json.dumps({"stages": {"shards": {"kind": "pack"}, "one": stage}}))
        loaded: Any = config.load("one.yaml").stages["one"]
        assert (loaded if "data" in needed else loaded.objective) == expected


def test_a_partly_given_head_keeps_the_rest_of_its_objectives_own():
    head = MoCoV3.model_validate({"head": {"hidden": 256, "dim": 64}, "predictor": {"dim": 64}}).head
    assert (head.hidden, head.dim, head.norm, head.layers) == (256, 64, "all", 2)
    assert MoCoV3.model_validate({"head": {"hidden": 256}, "predictor": None}).predictor is None
    nested = over(Pretrain(data="s", net=CNN(width=8, norm=Norm(kind="split"))), {"net": {"norm": {"splits": 4}}})
    assert Pretrain(**nested).net == CNN(width=8, norm=Norm(kind="split", splits=4))
    assert Pretrain(data="s", net={"kind": "resnet18", "norm": {"splits": 8}}).net.norm == Norm(splits=8)  # type: ignore[arg-type]


def test_an_override_does_not_reach_through_an_alias(place):
    shared = GOOD.replace("{kind: characters}", "&v {kind: characters}")
    shared = shared.replace("epochs: 3}", "epochs: 3, views: *v}")
    lines = shared.splitlines(keepends=True)
    lines.append(lines.pop(3))  # the alias stands after its anchor
    (place / "shared.yaml").write_text("".join(lines))
    stages: dict = config.load("shared.yaml", ["pirl.views.rotation=1"]).stages
    assert (stages["pirl"].views[0].rotation, stages["moco"].views[0].rotation) == (1, 20)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("on", "on"),
        ("no", "no"),
        ("12:30", "12:30"),
        ("1e-3", 1e-3),
        ("1_000", 1000),
        ("010", "010"),
        ("-3", -3),
        (".5", 0.5),
        ("2020-01-01", "2020-01-01"),
        ("null", None),
        ("~", None),
        ("true", True),
        ("{on: [1, x]}", {"on": [1, "x"]}),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text, value):
    found = document.parse(text)
    assert found == value and type(found) is type(value)

