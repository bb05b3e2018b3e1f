"""Classes of the user's own files in a config: named, in keys, on other machines, and their mistakes in one line."""

import json
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import pipeline
from pipeline import artifact, cli, errors, runs, testing
from pipeline.evaluation import encoders
from pipeline.image import Image
from pipeline.settings import imports
from pipeline.views import transforms

ROOT = Path(__file__).parents[1]
SLOW = (pytest.mark.slow,)
EXAMPLE = ROOT / "docs/plugins/triplet.py"
CONFIG = """\
imports: [mine.py]
root: ROOT
stages:
  shards: {kind: pack}
  own:
    kind: pretrain
    data: shards
    net: {kind: cnn, width: 8, depth: 2}
    views: {kind: characters}
    objective: {kind: "mine:Triplet", dim: 8}
    batch: 64
    steps: 2
    online: {images: 64}
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Of all runs, so that images are packed once."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def config(root, tmp_path, monkeypatch) -> Path:
    """A config beside the example, under another name."""
    monkeypatch.setattr(imports, "known", {})  # as in a process that has read no file yet
    shutil.copy(EXAMPLE, tmp_path / "mine.py")
    path = tmp_path / "c.yaml"
    path.write_text(CONFIG.replace("ROOT", str(root)))
    return path


def key(config: Path, *overrides: str) -> str:
    stage = pipeline.load_config(str(config), overrides).stages["own"]
    return artifact.key(stage, 0, {}, {})


def test_the_files_hash_is_in_the_key(config):
    first = key(config)
    assert first == key(config) and first != key(config, "own.objective.temperature=0.3")
    with (config.parent / "mine.py").open("a") as file:
        file.write("# changed\n")
    assert first != key(config)


def test_where_the_file_lies_is_in_no_key(config, tmp_path):
    (other := tmp_path / "other").mkdir()
    for name in ("mine.py", "c.yaml"):
        shutil.copy(tmp_path / name, other / name)
    assert key(config) == key(other / "c.yaml")


@pytest.mark.parametrize(
    ("text", "overrides", "line"),
    [
        ("", ["own.objective.kind=mine:Tripelt"],
         'own.objective.kind: *mine.py has no "Tripelt"; did you mean "mine:Triplet"?'),
        ("", ["own.objective.kind=mime:Triplet"],
         'own.objective.kind: no file of imports is called "mime"; did you mean "mine"?'),
        ("", ["own.objective.dmi=3"], 'own.objective.dmi: unknown key "dmi"; did you mean "dim"?'),
        ("", ["own.objective.dim=x"], 'own.objective.dim: found "x"; expected a whole number'),
        ("", ["imports=[mien.py]"], '*: imports: *mien.py: no such file; did you mean "mine.py"?'),
        ("", ["imports=[c.yaml]"], 'imports: found "c.yaml"; expected a file whose name is a word and ends in .py'),
        ("", ["imports=[]"], 'own.objective.kind: no file of imports is called "mine"; add imports: [mine.py]'),
        ("import no_such_module\n", [], "mine.py:1: ModuleNotFoundError: No module named 'no_such_module'"),
        ("def f(:\n", [], "mine.py:1: SyntaxError: invalid syntax"),
        ("raise SystemExit(0)\n", [], "mine.py:1: SystemExit: 0"),
        ("import pipeline\nclass Triplet(pipeline.Objective): pass\n", [],
         "Triplet in *mine.py has no settings: expected Settings = a subclass of pipeline.ObjectiveSettings"),
        ("class Triplet: pass\n", [], "Triplet in *mine.py is no subclass of pipeline.Objective"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_that_says_where(text, overrides, line, config, capsys):
    """``line``: its parts in their order, the rest between them whatever it is."""
    if text:
        (config.parent / "mine.py").write_text(text)
    assert cli.main(["run", str(config), "--dry-run", "--here", *overrides]) == 2
    (found,) = capsys.readouterr().err.splitlines()
    at = 0
    for part in line.split("*"):
        assert part in found[at:], found
        at = found.index(part, at) + len(part)


def test_reading_a_config_says_once_what_is_run_and_runs_nothing_that_no_kind_names(config, capsys):
    (config.parent / "other.py").write_text("raise ValueError('it was run')\n# " + str(config))
    with (config.parent / "mine.py").open("a") as file:
        file.write(f"# {config}\n")
    for _ in range(2):
        pipeline.load_config(str(config), ["imports=[other.py, mine.py]"])
    (line,) = capsys.readouterr().out.splitlines()
    assert str(config.parent / "mine.py") in line and "sha256" in line


def test_a_process_that_has_no_such_file_is_sent_its_text(config):
    stage = pipeline.load_config(str(config)).stages["own"]
    sent = pickle.dumps(stage)
    assert pickle.loads(sent) == stage
    (config.parent / "mine.py").unlink()
    for made in (imports.run, imports.classes):  # as another process begins
        made.cache_clear()
    arrived = pickle.loads(sent)
    assert arrived.objective.made.__name__ == "Triplet" and arrived.objective.made is not stage.objective.made
    assert arrived.key_parts() == stage.key_parts() and arrived.model_dump() == stage.model_dump()


def test_a_training_starts_from_another_one_of_the_users_file(config, capsys):
    first = pipeline.run(config, "own.seed=1")["own"]
    second = pipeline.run(config, "own.seed=1", f"own.net.init=artifact:{first}")["own"]
    assert re.search(rf"starts from artifact:{re.escape(str(first))}: (\d+) of \1 tensors", capsys.readouterr().out)
    images = [json.loads((folder / "model.json").read_text())["image"] for folder in (first, second)]
    assert images[0] == images[1]


def test_a_trained_one_is_loaded_from_its_recorded_file_unless_that_has_changed(config, monkeypatch):
    folder = pipeline.run(config)["own"]
    mine = config.parent / "mine.py"
    record = artifact.read(folder) or {}
    assert record["imports"]["mine"]["path"] == str(mine)
    assert json.loads((folder / "model.json").read_text())["imports"] == {"mine": record["imports"]["mine"]["sha256"]}
    assert (folder / "imports/mine.py").read_text() == mine.read_text()
    assert set(runs.read(folder)[0].outcome) == {"loss"}
    encoder = pipeline.load_encoder(folder)
    monkeypatch.setattr(imports, "known", {})  # another process
    images = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    assert torch.equal(pipeline.load_encoder(folder)(images), encoder(images))
    assert type(pipeline.load_model(folder)).__name__ == "Triplet"
    monkeypatch.setattr(imports, "known", {})
    mine.write_text(mine.read_text() + "# changed\n")
    with pytest.raises(pipeline.DataError, match=r"mine\.py is another file .* than .*own-.* was trained"):
        pipeline.load_encoder(folder)
    mine.unlink()
    with pytest.raises(pipeline.DataError, match=r"mine\.py: no such file; .* bring it back"):
        pipeline.load_model(folder)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (("x, y = embedded", "x, y = embedded; y.no_such()"), r"mine\.py:\d+: AttributeError: .*no_such"),
        ((".clamp_min(1)).mean()", ".clamp_min(1))"), r"RuntimeError: .* by what .*mine\.py gives, or a fault"),
    ],
)
def test_an_error_of_the_users_file_is_not_called_ours(change, line, config, capsys):
    mine = config.parent / "mine.py"
    mine.write_text(mine.read_text().replace(*change))
    with pytest.raises(errors.NoProgressError):
        pipeline.run(config)
    text = "".join(capsys.readouterr())
    assert (found := re.search(line + r".* \(traceback in (.*)\)", text)), text
    assert "Traceback" in Path(found[1]).read_text()


LONG = ("learns_64_images_by_heart", "it_is_built_without_numbers")
"""Parts of the contract that take a second and more."""


@pytest.mark.parametrize("name", [pytest.param(name, marks=SLOW * (name in LONG)) for name in testing.CONTRACT])
def test_the_example_keeps_the_contract(name):
    testing.CONTRACT[name](testing.case(str(EXAMPLE.with_suffix(".yaml")), "triplet"))


def test_a_broken_contract_is_said_in_words(config):
    """Each change breaks one part; the line says which."""
    source = EXAMPLE.read_text()
    for name, before, after, line in [
        ("loss_falls_with_low_and_with_rising_high", "low[:, None] - high)", "high - low[:, None])", "does not fall"),
        ("accumulation_equals_the_big_batch", "coupled = True", "coupled = False", "micro-batches are not the whole"),
        ("first_weights_depend_on_the_seed_alone", 'seeded(setup.seed, "init", "head")', "torch.enable_grad()",
         "depend on torch's generator"),
        ("forward_is_pure", "x, y = embedded", "x, y = embedded; self.head.bias.data += 1", "forward"),
    ]:  # fmt: skip
        assert before in source
        (config.parent / "mine.py").write_text(source.replace(before, after))
        with pytest.raises(AssertionError, match=line):
            testing.CONTRACT[name](testing.case(str(config), "own"))


@pytest.fixture
def of_net(config) -> Path:
    """A config of MoCo on the example of a network."""
    shutil.copy(ROOT / "docs/plugins/plain.py", config.parent)
    text = config.read_text().replace("mine.py", "plain.py").replace("{kind: cnn,", '{kind: "plain:Plain",')
    config.write_text(text.replace('{kind: "mine:Triplet", dim: 8}', "{kind: moco, queue: 64}"))
    return config


def test_a_network_of_ones_own_is_trained_loaded_and_compared_with_itself_untrained(of_net, monkeypatch):
    overrides = ["own.objective={kind: moco, queue: 64, head: {hidden: 16, dim: 8}}"]
    first = key(of_net, *overrides)
    folder = pipeline.run(of_net, *overrides)["own"]
    monkeypatch.setattr(imports, "known", {})  # another process
    encoder = pipeline.load_encoder(folder)
    assert type(encoder.module).__name__ == "Plain" and encoder.module.features == 8
    assert type(encoders.untrained(encoders.network(folder), 1).module).__name__ == "Plain"
    with (of_net.parent / "plain.py").open("a") as file:
        file.write("# changed\n")
    assert first != key(of_net, *overrides)


def test_a_network_of_ones_own_keeps_the_contract(of_net):
    case = testing.case(str(of_net), "own", "own.objective={kind: simclr, head: {hidden: 16, dim: 8}}")
    for name in ("forward_is_pure", "accumulation_equals_the_big_batch", "first_weights_depend_on_the_seed_alone"):
        testing.CONTRACT[name](case)


def test_a_network_that_does_not_say_its_width_ends_in_a_line(of_net, capsys):
    plain = of_net.parent / "plain.py"
    plain.write_text(plain.read_text().replace("        self.features = settings.width\n", ""))
    assert cli.main(["run", str(of_net), "--here", "own.objective={kind: simclr}"]) == 70
    assert re.search(r"own: plain:Plain \(.*plain\.py\) sets no features", "".join(capsys.readouterr()))


def test_views_of_ones_own_are_each_images_whatever_is_beside_it(config):
    shutil.copy(ROOT / "docs/plugins/noisy.py", config.parent)
    given = ["imports=[mine.py, noisy.py]", "own.views={kind: noisy:Noisy, missing: 0.4}"]
    stage = pipeline.load_config(str(config), given).stages["own"]
    assert key(config, *given) != key(config, given[0], given[1].replace("0.4", "0.5"))
    transform = transforms.build(stage.objective.inputs, stage.views, Image(1, 8, (0.5,), (0.5,)), 3)
    images = torch.arange(6 * 64, dtype=torch.uint8).reshape(6, 8, 8, 1)
    whole = transform.views((images,), 1, np.arange(6))
    for part in (np.array([4, 1]), np.arange(3)):
        for view, rest in zip(transform.views((images[part],), 1, part), whole, strict=True):
            assert torch.equal(view, rest[part])
    first, second = whole
    assert len(whole) == 2 and not torch.equal(first, second)
    assert not torch.equal(transform.views((images,), 2, np.arange(6))[0], first)


def test_views_of_another_shape_end_in_a_line(config):
    source = (ROOT / "docs/plugins/noisy.py").read_text()
    (config.parent / "noisy.py").write_text(source.replace("None], 0.5)", "None], 0.5)[:, :, 1:]"))
    given = ["imports=[mine.py, noisy.py]", "own.views={kind: noisy:Noisy}"]
    stage = pipeline.load_config(str(config), given).stages["own"]
    transform = transforms.build(stage.objective.inputs, stage.views, Image(1, 8, (0.5,), (0.5,)), 3)
    with pytest.raises(errors.UserError, match=r"noisy:Noisy \(.*noisy\.py\) gives views \[2, 1, 7, 8\]; expected"):
        transform.views((torch.zeros(2, 8, 8, 1, dtype=torch.uint8),), 0, np.arange(2))


def test_settings_of_a_file_are_printed(capsys):
    assert cli.main(["settings", str(EXAMPLE)]) == 0
    assert re.search(r"objective: triplet:Triplet.*dim: 64 .*Dimensions of an embed", capsys.readouterr().out, re.S)
    assert cli.main(["settings", "no_such.py"]) == 2 and "no_such.py: no such file" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.cluster
def test_two_ranks_of_the_example_are_one():
    testing.two_ranks_are_one(testing.case(str(EXAMPLE.with_suffix(".yaml")), "triplet"))
