"""What is exported, loaded in a process that knows nothing of us: every key, the same features."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image as Picture
from pyarrow import parquet
from safetensors.torch import save_file

from pipeline import cli
from pipeline.evaluation import encoders, exports
from pipeline.image import Image
from pipeline.nets import trunks
from pipeline.settings.nets import CNN, LibraryNet, Norm, ResNet, ViT

RECIPES = """
import json, os, pathlib, re, sys
import timm, torch
from PIL import Image
from safetensors.torch import load_file
told = {}
for place in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    os.chdir(place / "out")
    blocks = re.findall("```python\\n(.*?)```", open("README.md").read(), re.S)
    space, said = {}, []
    exec(blocks[0], space)
    paths = sorted(map(str, (place / "photos").iterdir()))
    given = load_file("../given.safetensors")["features"]
    for block in blocks[1:]:
        space.pop("model", None)
        exec(block, space)
        apart = (space["features"](space["model"], paths) - given).abs().max() / given.abs().max()
        assert apart < 1e-5, (place.name, block, apart)
        library = re.search("import.*(torchvision|timm)", block)[1]
        said.append("local-dir" if "local-dir:." in block else library)
    if "local-dir" in said:  # timm's own transform, on images of the size packed
        model = timm.create_model("local-dir:.", pretrained=True)
        config = model.pretrained_cfg
        made = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
        opened = [Image.open(path).convert("L" if config["input_size"][0] == 1 else "RGB") for path in paths[:2]]
        with torch.no_grad():
            found = model.eval()(torch.stack([made(one) for one in opened]))
        if (found - given[:2]).abs().max() < 1e-5 * given.abs().max():
            said.append("transform")
    told[place.name] = " ".join(said)
assert not any(name.startswith("pipeline") for name in sys.modules)
print(json.dumps(told))
"""


def trained(folder, net, image):
    """An encoder's folder, its statistics no longer the first ones."""
    trunk = trunks.build(net, image)
    trunk(torch.rand(4, image.channels, image.side, image.side))
    encoders.save(folder, trunk, {"net": net.model_dump(mode="json"), "image": encoders.describe(image)})
    return encoders.load(folder)


COLOUR = ((0.5, 0.4, 0.6), (0.2, 0.25, 0.3))
GREY = ((0.1,), (0.3,))
CASES = {
    "resnet18": (ResNet(), Image(3, 64, *COLOUR), "torchvision local-dir transform"),
    "resnet18 of a packed centre": (ResNet(), Image(3, 64, *COLOUR, cropped=True), "torchvision local-dir"),
    "resnet18, grey": (ResNet(stem="imagenet"), Image(1, 48, *GREY), "torchvision local-dir transform"),
    "resnet18, split": (ResNet(norm=Norm(kind="split", splits=2)), Image(3, 64, *COLOUR, False),
                        "torchvision local-dir transform"),
    "small stem": (ResNet(), Image(3, 32, *COLOUR), "torchvision timm"),
    "small stem, grey": (ResNet(), Image(1, 28, *GREY), "torchvision timm"),
    "group norm": (ResNet(norm=Norm(kind="none", groups=12)), Image(3, 64, *COLOUR), "torchvision"),
    "timm's": (LibraryNet(name="test_resnet"), Image(3, 64, *COLOUR), "local-dir transform"),
    "timm's transformer, grey": (LibraryNet(name="test_vit"), Image(1, 48, *GREY), "local-dir transform"),
    "torchvision's, grey": (LibraryNet(kind="torchvision", name="mobilenet_v3_small"), Image(1, 64, *GREY),
                            "torchvision"),
    "vit": (ViT(width=64, depth=2, heads=4, patch=8), Image(3, 32, *COLOUR), "local-dir transform"),
    "vit, grey": (ViT(width=96, depth=3, heads=2, patch=7), Image(1, 28, *GREY), "local-dir transform"),
}  # fmt: skip


@pytest.mark.slow
def test_the_cards_recipes_give_the_probes_features(tmp_path, capsys):
    """In a clean process, in every library that a card names: images of the side and larger ones, turned by EXIF."""
    rng, exif = np.random.default_rng(0), Picture.Exif()
    exif[0x0112] = 6
    for name, (net, image, said) in CASES.items():
        place = tmp_path / name
        trained(place / "run", net, image)
        (place / "photos").mkdir()
        for i, (height, width) in enumerate([(image.side,) * 2, (image.side,) * 2, (97, 150), (300, 120)]):
            coarse = Picture.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8))
            photo = coarse.resize((width, height), Picture.Resampling.BICUBIC)
            photo.save(place / f"photos/{i}.png", exif=exif if i == 3 else Picture.Exif())
        assert cli.main(["embed", str(place / "run"), str(place / "photos"), str(place / "f.parquet")]) == 0
        features = torch.tensor(parquet.read_table(place / "f.parquet")["features"].to_pylist())
        save_file({"features": features}, place / "given.safetensors")
        assert cli.main(["export", str(place / "run"), str(place / "out")]) == 0
        config = json.loads((place / "out/config.json").read_text())
        assert config["pretrained_cfg"]["crop_pct"] == (0.875 if image.cropped else 1.0)
        assert config["num_features"] == features.shape[1]
        refused = "timm's local-dir: cannot build this network" in capsys.readouterr().out
        assert refused is ("local-dir" not in said) is ("which timm cannot do" in config["architecture"])
    words = [sys.executable, "-I", "-c", RECIPES, str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {name: said for name, (_, _, said) in CASES.items()}


def test_timm_refuses_what_it_cannot_build_in_a_line(tmp_path):
    import timm

    trained(tmp_path / "run", ResNet(), Image(3, 32, *COLOUR))
    assert cli.main(["export", str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    with pytest.raises(RuntimeError, match="resnet18, changed as its README says, which timm cannot do"):
        timm.create_model(f"local-dir:{tmp_path}/out", pretrained=True)


@pytest.mark.parametrize("packed, crop", [(32, 1.0), (40, 0.875)])
def test_crop_pct_is_what_the_probe_does_to_the_packed_images(packed, crop, tmp_path, world):
    """The probe takes images of the view's side as they are, and others by their centre."""
    from pipeline.data.shards import Shards
    from pipeline.settings.stages import Pack
    from pipeline.stages import pack

    for i in range(4):
        (tmp_path / "in").mkdir(exist_ok=True)
        Picture.new("RGB", (packed, packed), (i * 50, 0, 9)).save(tmp_path / f"in/{i}.png")
    (tmp_path / "shards").mkdir()
    pack.run(Pack(source=f"folder:{tmp_path / 'in'}"), 0, {}, tmp_path / "shards", world)
    image = Shards.open(tmp_path / "shards").image(32)
    trained(tmp_path / "run", ViT(width=64, depth=1, heads=4, patch=8), image)
    exports.write(str(tmp_path / "run"), str(tmp_path / "out"))
    assert json.loads((tmp_path / "out/config.json").read_text())["pretrained_cfg"]["crop_pct"] == crop


RUNS = """
import sys, numpy, onnxruntime
model = onnxruntime.InferenceSession(sys.argv[1] + "/model.onnx")
given = numpy.load(sys.argv[1] + "/../given.npz")
(found,) = model.run(["features"], {"images": given["images"]})
assert abs(found - given["features"]).max() < 1e-5 * max(1, abs(found).max()), abs(found - given["features"]).max()
assert "torch" not in sys.modules
"""


@pytest.mark.parametrize("net, image, kept", [
    pytest.param(ResNet(), Image(3, 64, (0.5,) * 3, (0.2,) * 3), 4, marks=pytest.mark.slow),
    pytest.param(
        ViT(width=64, depth=2, heads=4, patch=8), Image(3, 32, (0.5,) * 3, (0.2,) * 3), 4, marks=pytest.mark.slow
    ),
    (CNN(grid=4), Image(1, 28, (0.1,), (0.3,)), 1),
], ids=["resnet", "vit", "cnn"])  # fmt: skip
def test_as_onnx_it_runs_without_torch(net, image, kept, tmp_path, capfd):
    encoder = trained(tmp_path / "run", net, image)
    assert cli.main(["export", str(tmp_path / "run"), str(tmp_path / "out"), "--onnx"]) == 0
    said = capfd.readouterr()
    assert said.out.startswith(f"{tmp_path}/out: model.") and said.out.count("\n") == 1 and not said.err
    assert len(list((tmp_path / "out").iterdir())) == kept
    pixels = torch.randint(0, 256, (5, image.channels, image.side, image.side), dtype=torch.uint8)
    np.savez(tmp_path / "given.npz", images=pixels.numpy(), features=encoder(pixels).numpy())
    done = subprocess.run([sys.executable, "-I", "-c", RUNS, str(tmp_path / "out")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_card_tells_the_metrics_and_their_protocol(tmp_path):
    """In words, and as the Hub reads them: every accuracy in full, the data by name without a folder above it."""
    from huggingface_hub import ModelCard

    home = tmp_path / "moco-12345678"
    trained(home, ResNet(), Image(3, 64, (0.5,) * 3, (0.2,) * 3))
    settings = {"kind": "pretrain", "objective": {"kind": "moco"}}
    accuracies = {"linear_top1": 1 / 3, "linear_few": 2 / 3, "linear_few_sd": 0.01, "knn_top1": 0.75}
    records = {
        "moco-12345678": {"key": "k", "stage": "moco", "seed": 3, "settings": settings},
        "shards-1": {"kind": "pack", "settings": {"source": "folder:/home/me/cats: mine"},
                     "metrics": {"fingerprint": "f"}},
        "probe-1": {
            "kind": "probe", "inputs": {"moco": "k", "shards": "s"}, "seed": 3,
            "settings": {"per_class": 10, "draws": 10},
            "metrics": {"rows": {"moco": accuracies, "raw_pixels": {"knn_top1": 0.5}},
                        "protocol": {"n_test": 30, "per_class": 10, "data": "f"}},
        },
    }  # fmt: skip
    for name, record in records.items():
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "artifact.json").write_text(json.dumps(record))
    assert cli.main(["export", str(home), str(tmp_path / "out")]) == 0
    card = (tmp_path / "out/README.md").read_text()
    assert "knn_top1 0.7500" in card and "raw_pixels: knn_top1 0.5000" in card and '"draws": 10' in card
    assert "by moco" in card and card.startswith("---\nlibrary_name: timm") and "/home/me" not in card
    found = ModelCard.load(tmp_path / "out/README.md").data.eval_results
    assert found is not None and {(r.dataset_name, r.dataset_split, r.metric_type) for r in found} == {
        ("cats: mine", "test", "accuracy")
    }
    assert {r.metric_name: r.metric_value for r in found} == {
        "linear, all labels": 1 / 3, "linear, 10 labels a class": 2 / 3, "nearest neighbours": 0.75,
    }  # fmt: skip


def test_what_nobody_else_loads_is_refused_in_a_line(tmp_path, capsys, monkeypatch):
    trained(tmp_path / "run", CNN(), Image(1, 8, (0.5,), (0.2,)))
    assert cli.main(["export", str(tmp_path / "run"), str(tmp_path / "out")]) == 65
    assert "a cnn has no counterpart" in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert cli.main(["export", str(tmp_path / "nothing"), str(tmp_path / "out")]) == 65
    monkeypatch.setattr(exports, "find_spec", lambda name: None)
    assert cli.main(["export", str(tmp_path / "run"), str(tmp_path / "out"), "--onnx"]) == 2
    assert "pip install 'pipeline[onnx]'" in capsys.readouterr().err and not (tmp_path / "out").exists()
