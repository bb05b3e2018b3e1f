"""What is exported, loaded in a process that knows nothing of us: every key, the same features."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from pipeline import cli
from pipeline.evaluation import encoders, exports
from pipeline.image import Image
from pipeline.nets import trunks
from pipeline.settings.nets import CNN, ResNet, ViT

LOADS = """
import sys, timm, torch, torchvision
from safetensors.torch import load_file
folder, small, channels = sys.argv[1], sys.argv[2] == "True", int(sys.argv[3])
given = load_file(folder + "/../given.safetensors")
theirs = torchvision.models.resnet18()
theirs.fc = torch.nn.Identity()
if not small and channels != 3:
    theirs.conv1 = torch.nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
for model in (theirs, timm.create_model("resnet18", num_classes=0, in_chans=channels)):
    if small:
        model.conv1 = torch.nn.Conv2d(channels, 64, 3, 1, 1, bias=False)
        model.maxpool = torch.nn.Identity()
    model.load_state_dict(load_file(folder + "/model.safetensors"), strict=True)
    with torch.no_grad():
        apart = (model.eval()(given["images"]) - given["features"]).abs().max()
    assert apart < 1e-5, apart
assert not any(name.startswith("pipeline") for name in sys.modules)
"""


def trained(folder, net, image):
    """An encoder's folder, its statistics no longer the first ones."""
    trunk = trunks.build(net, image)
    trunk(torch.rand(4, image.channels, image.side, image.side))
    encoders.save(folder, "trunk", trunk, {"net": net.model_dump(mode="json"), "image": encoders.describe(image)})
    return encoders.load(folder)


@pytest.mark.parametrize("image", [Image(3, 64, (0.5,) * 3, (0.2,) * 3), Image(1, 28, (0.1,), (0.3,))], ids=str)
def test_torchvision_and_timm_load_every_key(image, tmp_path):
    encoder = trained(tmp_path / "run", ResNet(), image)
    assert cli.main(["export", str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    pixels = torch.randint(0, 256, (3, image.channels, image.side, image.side), dtype=torch.uint8)
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (image.mean, image.std))
    given = {"images": (pixels / 255 - mean) / std, "features": encoder(pixels)}
    save_file(given, tmp_path / "given.safetensors")
    words = [str(tmp_path / "out"), str(image.side < 64), str(image.channels)]
    done = subprocess.run([sys.executable, "-I", "-c", LOADS, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["architecture"] == "resnet18" and config["num_features"] == 512
    assert config["pretrained_cfg"]["mean"] == list(image.mean)


HUB = """
import sys, timm, torch
model = timm.create_model("local-dir:" + sys.argv[1], pretrained=True)
assert model.num_features == 512 and model.pretrained_cfg["mean"][0] == 0.5
from safetensors.torch import load_file
given = load_file(sys.argv[1] + "/../given.safetensors")
assert (model.eval()(given["images"]) - given["features"]).abs().max() < 1e-5
"""


def test_the_layout_is_the_hubs(tmp_path):
    image = Image(3, 64, (0.5,) * 3, (0.2,) * 3)
    encoder = trained(tmp_path / "run", ResNet(), image)
    assert cli.main(["export", str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    save_file({"images": (pixels / 255 - 0.5) / 0.2, "features": encoder(pixels)}, tmp_path / "given.safetensors")
    done = subprocess.run([sys.executable, "-I", "-c", HUB, str(tmp_path / "out")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


RUNS = """
import sys, numpy, onnxruntime
model = onnxruntime.InferenceSession(sys.argv[1] + "/model.onnx")
given = numpy.load(sys.argv[1] + "/../given.npz")
(found,) = model.run(["features"], {"images": given["images"]})
assert abs(found - given["features"]).max() < 1e-5 * max(1, abs(found).max()), abs(found - given["features"]).max()
assert "torch" not in sys.modules
"""


@pytest.mark.parametrize("net, image, kept", [
    (ResNet(), Image(3, 64, (0.5,) * 3, (0.2,) * 3), 4),
    (ViT(width=64, depth=2, heads=4, patch=8), Image(3, 32, (0.5,) * 3, (0.2,) * 3), 4),
    (CNN(grid=4), Image(1, 28, (0.1,), (0.3,)), 1),
], ids=["resnet", "vit", "cnn"])  # fmt: skip
def test_as_onnx_it_runs_without_torch(net, image, kept, tmp_path, capfd):
    import numpy as np

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
    home = tmp_path / "moco-12345678"
    trained(home, ResNet(), Image(3, 64, (0.5,) * 3, (0.2,) * 3))
    settings = {"kind": "pretrain", "objective": {"kind": "moco"}}
    (home / "artifact.json").write_text(json.dumps({"key": "k", "stage": "moco", "seed": 3, "settings": settings}))
    probe = {
        "kind": "probe", "inputs": {"moco": "k", "shards": "s"}, "seed": 3, "settings": {"per_class": 10, "draws": 10},
        "metrics": {"rows": {"moco": {"knn_top1": 0.75}, "raw_pixels": {"knn_top1": 0.5}}},
    }  # fmt: skip
    (tmp_path / "probe-1").mkdir()
    (tmp_path / "probe-1/artifact.json").write_text(json.dumps(probe))
    assert cli.main(["export", str(home), str(tmp_path / "out")]) == 0
    card = (tmp_path / "out/README.md").read_text()
    assert "moco: knn_top1 0.7500" in card and "raw_pixels: knn_top1 0.5000" in card and '"draws": 10' in card
    assert "by moco" in card and card.startswith("---\nlibrary_name: timm")


def test_what_nobody_else_loads_is_refused_in_a_line(tmp_path, capsys, monkeypatch):
    trained(tmp_path / "run", CNN(), Image(1, 8, (0.5,), (0.2,)))
    assert cli.main(["export", str(tmp_path / "run"), str(tmp_path / "out")]) == 65
    assert "a cnn has no counterpart" in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert cli.main(["export", str(tmp_path / "nothing"), str(tmp_path / "out")]) == 65
    monkeypatch.setattr(exports, "find_spec", lambda name: None)
    assert cli.main(["export", str(tmp_path / "run"), str(tmp_path / "out"), "--onnx"]) == 2
    assert "pip install 'pipeline[onnx]'" in capsys.readouterr().err and not (tmp_path / "out").exists()
