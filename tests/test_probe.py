"""The probe stage: rows with their protocol, the same bytes after kills, nothing learned from the test."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from pipeline import board, objectives
from pipeline.data.images import SquareImages
from pipeline.data.shards import Shards
from pipeline.errors import DataError, Stopped
from pipeline.evaluation import encoders, knn, results, scores
from pipeline.nets import trunks
from pipeline.objectives import models
from pipeline.objectives.base import Setup
from pipeline.settings.nets import CNN, MLP, Net, Norm, ResNet
from pipeline.settings.objectives import VAE, Head, MoCo
from pipeline.settings.sparse import Coding
from pipeline.settings.stages import Probe
from pipeline.stages import probe
from tests.artifacts import content
from tests.packed import reindexed
from tests.test_board import events

NET = CNN(width=8, depth=2)
FEW: dict[str, Any] = {"draws": 3}


@pytest.fixture(scope="module")
def inputs(digits, tmp_path_factory) -> dict[str, Path]:
    """Shards, an encoder with two snapshots along 30 steps, and one without."""
    image = Shards.open(digits).image(None)
    folders = {"shards": digits, "moco": tmp_path_factory.mktemp("moco"), "codes": tmp_path_factory.mktemp("codes")}
    spec = {"net": NET.model_dump(mode="json"), "image": encoders.describe(image)}
    for i, place in enumerate(("moco/snapshots/00000010", "moco/snapshots/00000020", "moco", "codes")):
        first, *rest = Path(place).parts
        encoders.save(folders[first].joinpath(*rest), trunks.build(NET, image, None, i), spec)
    (folders["moco"] / "metrics.jsonl").write_text('{"step": 10, "learn/loss": 2}\n{"step": 30, "learn/loss": 1}\n')
    return folders


@pytest.fixture(scope="module")
def done(inputs, tmp_path_factory, world):
    """A finished probe: its folder and metrics."""
    out = tmp_path_factory.mktemp("probe")
    settings = Probe(data="shards", encoders=("moco", "codes"), **FEW)
    return out, probe.run(settings, 0, inputs, out, world), settings


def test_rows_are_as_promised(done):
    _, metrics, _ = done
    assert list(metrics["rows"]) == ["moco", "codes", "raw_pixels", "random"]
    for row in metrics["rows"].values():
        assert set(row) == {"linear_top1", "linear_few", "linear_few_sd", "knn_top1"}
        assert all(0 <= v <= 1 for v in row.values())
    assert metrics["rows"]["raw_pixels"]["linear_top1"] > 0.95
    assert 0.84 < metrics["rows"]["raw_pixels"]["linear_few"] < 0.93
    assert metrics["rows"]["raw_pixels"]["knn_top1"] > 0.97
    protocol = metrics["protocol"]
    assert protocol["n_train"] + protocol["n_test"] == 1797 and protocol["seed"] == 0
    assert (protocol["draws"], protocol["per_class"], protocol["k"], protocol["temperature"]) == (3, 10, 20, 0.07)
    json.dumps(metrics)


def test_rows_of_any_number_of_labels_have_the_same_names(inputs, tmp_path, world, done):
    settings = Probe(data="shards", encoders=("codes",), per_class=3, train_examples=400, **FEW)
    metrics = probe.run(settings, 0, inputs, tmp_path, world)
    assert set(metrics["rows"]["codes"]) == set(done[1]["rows"]["codes"])
    assert metrics["protocol"]["n_train"] == 400 and metrics["protocol"]["per_class"] == 3
    assert "linear, 3 a class" in results.card(metrics)


def saved(folder: Path, spec: dict) -> Path:
    """An encoder as a training leaves it, whatever its weights."""
    made = models.build(spec, 5) if "objective" in spec else encoders.build(spec, 5).module
    encoders.save(folder, made, spec)
    return folder


def trunk(net: Net, digits: Path) -> dict:
    about = encoders.describe(Shards.open(digits).image(None))
    return {"net": net.model_dump(mode="json"), "image": about}


def test_the_untrained_row_is_the_encoders_own_network(digits, tmp_path, world):
    """A network each, once: a ResNet-18 of 512 features is held against a ResNet-18 of 512, not against a small one.
    Where batch norm takes its statistics from is nothing that an untrained network knows."""
    wide = ResNet(norm=Norm(kind="shuffle", splits=8))
    vae = trunk(MLP(), digits) | {"objective": VAE().model_dump(mode="json")}
    inner = {"codes": Coding(atoms=16).model_dump(mode="json"),
             "inner": trunk(NET, digits), "image": trunk(NET, digits)["image"]}  # fmt: skip
    specs = {
        "moco": trunk(wide, digits), "pirl": trunk(ResNet(), digits), "small": trunk(NET, digits),
        "vae": vae, "coded": inner,
    }  # fmt: skip
    patches = {"codes": Coding(atoms=16).model_dump(mode="json"), "image": vae["image"]}
    inputs = {name: saved(tmp_path / name, spec) for name, spec in (specs | {"codes": patches}).items()}
    settings = Probe(data="shards", encoders=tuple(inputs))
    rows = probe.untrained(settings, inputs)
    assert rows == {"random": ["moco", "pirl"], "random_small": ["small", "coded"], "random_vae": ["vae"]}
    lined = probe.line_up(settings, 3, inputs | {"shards": digits}, scores.load(settings, 3, digits))
    assert list(lined) == [*inputs, "raw_pixels", *rows]
    pictures = torch.randint(0, 256, (4, 1, 8, 8), generator=torch.Generator().manual_seed(0)).byte()
    for row, owners in rows.items():
        made, own = lined[row][0].load(), encoders.load(inputs[owners[0]])
        assert made(pictures).shape == own(pictures).shape and not torch.allclose(made(pictures), own(pictures))
    x = (pictures.float() / 255 - vae["image"]["mean"][0]) / vae["image"]["std"][0]
    expected = trunks.build(ResNet(), Shards.open(digits).image(None), None, 3)
    assert torch.equal(lined["random"][0].load()(pictures), expected.eval()(x))  # what its training began with
    only = Probe(data="shards", encoders=("codes",))
    assert probe.untrained(only, inputs) == {}


def test_the_untrained_row_is_named_in_protocol_and_card(done):
    _, metrics, _ = done
    assert metrics["protocol"]["untrained"] == {"random": "the network of moco, codes"}
    assert "- untrained: random: the network of moco, codes" in results.card(metrics)


def test_results_hold_every_draw_and_the_grid(done, inputs):
    out, metrics, settings = done
    found = json.loads((out / "results.json").read_text())
    assert found["protocol"] == metrics["protocol"]
    labels = Shards.open(inputs["shards"]).labels
    for row in found["rows"].values():
        assert len(row["few_label_test"]) == settings.draws
        assert row["linear_few"] == pytest.approx(np.mean(row["few_label_test"]), abs=1e-15)
        assert row["linear_few_sd"] == pytest.approx(np.std(row["few_label_test"], ddof=1), abs=1e-15)
        for chosen, grid in (("penalty", "validation"), ("few_label_penalty", "few_label_validation")):
            best = max(score for _, score in row[grid])
            assert row[chosen] == max(penalty for penalty, score in row[grid] if score == best)
        table = np.array(row["confusion"])
        assert table.sum() == metrics["protocol"]["n_test"]
        assert table.trace() / table.sum() == pytest.approx(row["linear_top1"])
    for draw in found["label_draws"]:
        assert (np.bincount(labels[[int(key) for key in draw]]) == 10).all()
    assert list(found["rows"]["moco"]["steps"]) == ["10", "20", "30"]


def test_the_confusion_table_has_true_classes_down(done, inputs):
    """Each row sums to how many test images the class has; and not each column."""
    found = json.loads((done[0] / "results.json").read_text())
    of_class = np.bincount(Shards.open(inputs["shards"], "test").labels)
    tables = [np.array(row["confusion"]) for row in found["rows"].values()]
    assert all((table.sum(1) == of_class).all() for table in tables)
    assert any((table.sum(0) != of_class).any() for table in tables)


def test_what_each_test_image_was_taken_for_gives_the_rows_accuracies(done, inputs):
    out, metrics, settings = done
    labels = Shards.open(inputs["shards"], "test").labels
    found = json.loads((out / "results.json").read_text())
    assert found["classes"] == [str(k) for k in range(10)] and found["untrained"] == {"random": ["moco", "codes"]}
    for name, row in metrics["rows"].items():
        classes = load_file(out / f"predicted/{name}.safetensors")
        assert (classes.pop("labels") == labels).all()
        assert set(classes) == {"linear_top1", "linear_few", "knn_top1"}
        assert classes["linear_few"].shape == (settings.draws, len(labels))
        for key, values in classes.items():
            assert (values == labels).mean() == pytest.approx(row[key], abs=1e-12)
        table = scores.confusion(labels, classes["linear_top1"], 10)
        assert table == found["rows"][name]["confusion"]


def test_labels_are_drawn_from_the_fit_part_alone(inputs):
    data = scores.load(Probe(data="shards", encoders=("moco",), draws=20), 0, inputs["shards"])
    drawn = np.unique(np.concatenate(data.draws))
    assert len(drawn) > 700 and not np.intersect1d(drawn, data.parts.validation).size
    assert np.isin(drawn, data.parts.fit).all()


def test_rows_overlay_in_one_card(done):
    out, metrics, _ = done
    accuracies = ("linear_top1", "linear_few", "knn_top1")
    bands = {f"range/{name}_{end}" for name in accuracies for end in ("low", "high")}
    tags = {f"accuracy/{name}" for name in accuracies} | bands | {"collapse/feature_rankme", "collapse/feature_std"}
    lines = {}
    for row in metrics["rows"]:
        found = events(out / row)
        assert set(found.PluginTagToContent("scalars")) == tags
        assert set(found.PluginTagToContent("images")) == {"confusion", "neighbours"}
        assert (out / row / "projector_config.pbtxt").exists()
        lines[row] = [(p.step, p.tensor_proto.float_val[0]) for p in found.Tensors("accuracy/linear_top1")]
        assert lines[row][-1][1] == np.float32(metrics["rows"][row]["linear_top1"])
    assert [step for step, _ in lines["moco"]] == [10, 20, 30]
    for flat in ("raw_pixels", "random", "codes"):
        (first, low), (last, high) = lines[flat]
        assert (first, last) == (1, 30) and low == high
    assert {"accuracy/rows", "protocol"} <= set(events(out).Tags()["tensors"])


def test_the_card_tells_the_protocol(done):
    _, metrics, _ = done
    card = results.card(metrics)
    for key in metrics["protocol"]:
        assert f"- {key}: " in card
    row = metrics["rows"]["moco"]
    assert f"| moco | {100 * row['linear_top1']:.2f} ± " in card


@pytest.mark.slow
def test_the_same_bytes_again_and_after_kills(done, inputs, tmp_path, world, monkeypatch):
    """Killed in the middle of every write and after every point, then once more to the end."""
    whole, metrics, settings = done
    writes = 0

    def torn(path, body, true=probe.write_json):
        nonlocal writes
        writes += 1
        if writes % 2:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_name(f".{path.name}.part").write_text("{")
            raise KeyboardInterrupt
        true(path, body)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(probe, "write_json", torn)
        for _ in range(14):
            with pytest.raises(KeyboardInterrupt):
                probe.run(settings, 0, inputs, tmp_path, world)
    with monkeypatch.context() as patch:
        patch.setattr(board.Board, "embedding", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            probe.run(settings, 0, inputs, tmp_path, world)
    assert probe.run(settings, 0, inputs, tmp_path, world) == metrics
    assert {k: v for k, v in content(tmp_path).items() if not k.endswith("progress.json")} == {
        k: v for k, v in content(whole).items() if not k.endswith("progress.json")
    }


def test_asked_to_stop_it_stops(inputs, tmp_path, world, monkeypatch):
    """Also between two batches of the third encoder's images."""
    asked = iter([False, True])
    monkeypatch.setattr(world, "stopping", lambda: len(list(tmp_path.glob("scores/*.json"))) == 2 and next(asked))
    with pytest.raises(Stopped, match="evaluated 2 of 6"):
        probe.run(Probe(data="shards", encoders=("moco", "codes"), **FEW), 0, inputs, tmp_path, world)
    assert len(list((tmp_path / "scores").glob("*.json"))) == 2


def relabelled(digits: Path, to: Path, split: str, change) -> Path:
    """The digits with other labels in one split."""
    def relabel(rows: np.ndarray) -> None:
        rows["label"] = change(rows["label"])

    shutil.copytree(digits, to)
    reindexed(to, split, relabel)
    return to


@pytest.mark.slow
def test_another_test_split_chooses_the_same(inputs, tmp_path, world, done):
    """Shuffled test labels change the accuracies and nothing that was chosen."""
    out, _, settings = done
    shards = relabelled(inputs["shards"], tmp_path / "s", "test", np.random.default_rng(0).permutation)
    probe.run(settings, 0, inputs | {"shards": shards}, tmp_path / "out", world)
    true, other = (json.loads((p / "results.json").read_text()) for p in (out, tmp_path / "out"))
    assert true["label_draws"] == other["label_draws"]
    for name, row in true["rows"].items():
        for key in ("penalty", "validation", "few_label_penalty", "few_label_validation"):
            assert row[key] == other["rows"][name][key]
        assert other["rows"][name]["linear_top1"] < 0.3


@pytest.mark.parametrize("split", ["train", "test"])
def test_unlabelled_images_are_refused(inputs, tmp_path, world, split):
    shards = relabelled(inputs["shards"], tmp_path / "s", split, lambda y: np.where(y == 3, -1, y))
    with pytest.raises(DataError, match=r"have no label; a probe needs one for each"):
        probe.run(Probe(data="shards", encoders=("codes",), **FEW), 0, inputs | {"shards": shards}, tmp_path, world)


def test_features_that_are_not_finite_are_refused(inputs, tmp_path, world):
    image = Shards.open(inputs["shards"]).image(None)
    broken = trunks.build(NET, image, None, 0)
    with torch.no_grad():
        next(broken.parameters()).fill_(float("nan"))
    spec = {"net": NET.model_dump(mode="json"), "image": encoders.describe(image)}
    encoders.save(tmp_path / "e", broken, spec)
    with pytest.raises(DataError, match="codes: its features are not all finite"):
        probe.run(
            Probe(data="shards", encoders=("codes",), **FEW), 0, inputs | {"codes": tmp_path / "e"}, tmp_path, world
        )


def test_a_row_has_a_name_of_its_own():
    for names in (("random",), ("sheets",), ("moco", "moco"), ("moco", "vae", "random_vae")):
        with pytest.raises(ValueError, match="expected"):
            Probe(data="shards", encoders=names)
    assert Probe(data="shards", encoders=("moco", "random_crops")).encoders[1] == "random_crops"


@pytest.mark.slow
def test_what_the_head_makes_of_features_has_a_row_where_there_is_a_head(inputs, digits, tmp_path, world):
    """MoCo's colab takes neighbours by the head's numbers: here the same vote, on the head's output by hand."""
    image = Shards.open(digits).image(None)
    setup = Setup(image, 10, NET, world, 4)
    objective = objectives.build(MoCo(queue=8, head=Head(hidden=0, dim=6)), setup).eval()
    models.write(tmp_path / "moco", models.state(objective), models.spec(objective, setup))
    folders = {"shards": digits, "moco": tmp_path / "moco", "bare": inputs["moco"]}
    settings = Probe(data="shards", encoders=("moco", "bare"), projection=True, **FEW)
    metrics = probe.run(settings, 0, folders, tmp_path / "out", world)
    assert list(metrics["rows"]) == ["moco", "moco_projection", "bare", "raw_pixels", "random"]
    assert "moco_projection" in results.card(metrics) and "- projection: " in results.card(metrics)
    rows = []
    for split in ("train", "test"):
        pixels = SquareImages(Shards.open(digits, split), 8).pixels
        with torch.no_grad():
            rows.append(objective.get_submodule("head")(objective.encoder(image.normalise(pixels.float() / 255))))
    labels = [torch.from_numpy(Shards.open(digits, split).labels) for split in ("train", "test")]
    right = knn.classify(rows[0], labels[0], rows[1], 20, 0.07) == labels[1]
    assert metrics["rows"]["moco_projection"]["knn_top1"] == pytest.approx(float(right.double().mean()), abs=0.003)
    assert metrics["rows"]["moco_projection"] != metrics["rows"]["moco"]
    with pytest.raises(ValueError, match="moco_projection is the row of moco's head"):
        Probe(data="shards", encoders=("moco", "moco_projection"), projection=True)
