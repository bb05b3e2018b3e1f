"""Weights from elsewhere: torchvision's, timm's and our own, as files; what is wrong with one ends in a line."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline import artifact, cli, config, plan
from pipeline.errors import ConfigError, DataError
from pipeline.evaluation import encoders, exports
from pipeline.image import Image
from pipeline.nets import pretrained, trunks
from pipeline.settings.nets import CNN, LibraryNet, ResNet, ViT

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
PHOTO, SMALL, GREY = Image(3, 64, *IMAGENET), Image(3, 32, *IMAGENET), Image(1, 64, (0.4,), (0.2,))
TINY = ViT(width=32, depth=2, heads=2, patch=8)


def peer(name="resnet18", seed=0, **changes):
    """torchvision's network with its classifier, untrained, but with statistics that are not the first ones."""
    from torchvision import models

    torch.manual_seed(seed)
    net = models.get_model(name, **changes)
    net(torch.randn(4, 3, 64, 64))
    return net.eval()


def saved(module, path):
    save_file({name: x.contiguous() for name, x in module.state_dict().items()}, path)
    return f"file:{path}"


def vit(side, **changes):
    """timm's transformer of TINY's shape."""
    import timm

    torch.manual_seed(0)
    sizes = {"img_size": side, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    return timm.create_model("vit_small_patch16_224", **sizes | changes).eval()


def test_torchvisions_weights_come_in_and_leave_as_the_same_features(tmp_path, capsys):
    """In torchvision and in timm, from the exported files."""
    import timm
    from torchvision.models import resnet18

    theirs = peer()
    net = ResNet(init=saved(theirs, tmp_path / "weights.safetensors"))
    trunk = trunks.build(net, PHOTO)
    said = capsys.readouterr().out
    assert "100 of 100 tensors" in said and "not used: fc.bias, fc.weight" in said and "not found" not in said
    encoders.save(tmp_path / "run", trunk, {"net": net.model_dump(mode="json"), "image": encoders.describe(PHOTO)})
    exports.write(tmp_path / "run", tmp_path / "out")
    theirs.fc = torch.nn.Identity()
    again = resnet18()
    again.fc = torch.nn.Identity()
    again.load_state_dict(load_file(tmp_path / "out/model.safetensors"))
    x = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        expected = theirs(x)
        for model in (trunk, again, timm.create_model(f"local-dir:{tmp_path}/out", pretrained=True)):
            assert (model.eval()(x) - expected).abs().max() < 1e-5 * expected.abs().max()


def test_timms_transformer_comes_in_at_another_side(tmp_path, capsys):
    """By timm's names; its positions are interpolated as timm does it."""
    from timm.layers.pos_embed import resample_abs_pos_embed

    theirs = vit(64)
    net = TINY.model_copy(update={"init": saved(theirs, tmp_path / "vit.safetensors")})
    same, smaller = trunks.build(net, PHOTO).eval(), trunks.build(net, SMALL)
    said = capsys.readouterr().out.splitlines()
    assert "interpolated" not in said[0] and "interpolated from 8 x 8 patches to 4 x 4" in said[1]
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(same(x), theirs.forward_head(theirs.forward_features(x), pre_logits=True), atol=1e-5)
    table = resample_abs_pos_embed(theirs.pos_embed, [4, 4])
    assert torch.allclose(smaller.encoder.pos_embedding, table, atol=1e-6)


def test_the_first_layer_follows_the_channels(tmp_path, capsys):
    net, first = CNN(width=8, depth=2), "layers.0.weight"
    colours = trunks.build(net, PHOTO, seed=1)
    grey = trunks.build(net.model_copy(update={"init": saved(colours, tmp_path / "a.safetensors")}), GREY)
    assert torch.equal(grey.state_dict()[first], colours.state_dict()[first].sum(1, keepdim=True))
    assert f"{first} summed over its 3 channels" in capsys.readouterr().out
    again = trunks.build(net.model_copy(update={"init": saved(grey, tmp_path / "b.safetensors")}), PHOTO)
    assert torch.allclose(again.state_dict()[first].sum(1, keepdim=True), grey.state_dict()[first], atol=1e-6)
    assert f"{first} repeated over 3 channels" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext", "test_nfnet"])
def test_timms_networks_keep_their_output_with_our_batch_norm(name):
    """In training and in evaluation, from the same weights by the same names."""
    import timm

    trunk = trunks.build(LibraryNet(name=name), SMALL, None, 3)
    theirs = timm.create_model(name, num_classes=0)
    theirs.load_state_dict(trunk.model.state_dict())
    x = torch.randn(4, 3, 32, 32)
    found = trunk(x)
    assert torch.equal(found, theirs(x)) and found.shape == (4, trunk.features)
    assert torch.equal(trunk.eval()(x), theirs.eval()(x))


def test_a_librarys_network_starts_from_a_file_of_its_own(tmp_path, capsys):
    trunk = trunks.build(LibraryNet(name="test_vit"), PHOTO, None, 1)
    init = saved(trunk, tmp_path / "ours.safetensors")  # by names after model.; an artifact's are after trunk.model.
    again = trunks.build(LibraryNet(name="test_vit", init=init), SMALL)
    assert torch.equal(again.model.blocks[0].mlp.fc1.weight, trunk.model.blocks[0].mlp.fc1.weight)
    assert "pos_embed interpolated from 4 x 4 patches to 2 x 2" in capsys.readouterr().out


def test_a_network_that_cannot_be_trained_here_ends_in_one_line():
    wrong = {
        ("timm", "resnet18x"): 'timm has no model "resnet18x"; did you mean "resnet18"',
        ("timm", "swin_tiny_patch4_window7_224"): "draws numbers of its own in training .DropPath layers",
        ("torchvision", "efficientnet_b0"): "StochasticDepth .* as timm's are by default",
        ("torchvision", "squeezenet1_0"): "does not end in a linear layer",
        ("torchvision", "resnet17"): 'no classifier "resnet17"; did you mean',
        ("torchvision", "alexnet"): "alexnet does not take images of 3 x 32 x 32",
    }
    for (kind, name), text in wrong.items():
        with pytest.raises(ConfigError, match=text) as error, torch.device("meta"):
            trunks.build(LibraryNet(kind=kind, name=name), SMALL)
        assert "\n" not in str(error.value)


def test_what_does_not_fit_ends_in_one_line(tmp_path):
    five = torch.nn.Sequential()
    five.conv1 = torch.nn.Conv2d(5, 64, 7, 2, 3, bias=False)
    trunk = trunks.build(ResNet(), PHOTO)
    wrong = {
        saved(five, tmp_path / "five.safetensors"): "conv1.weight takes 5 channels, and the images have 3",
        saved(vit(64), tmp_path / "vit.safetensors"): "100 of this network's 100 tensors are not there, such as conv1",
        f"file:{tmp_path}/vi.safetensors": r"no such file; did you mean .*vit.safetensors",
        "artifact:no/such-run": "no stage of this name, and no folder with a model",
        "torchvision:resnet19": 'torchvision has no weights of "resnet19"; did you mean "resnet18"',
        "torchvision:resnet18.V3": 'torchvision has no "V3" of resnet18',
        "timm:resnet18x": 'timm has no model "resnet18x"; did you mean "resnet18"',
        "timm:resnet18.a9": 'timm has no weights "a9" of resnet18',
    }
    for init, text in wrong.items():
        with pytest.raises(ConfigError, match=text) as error:
            pretrained.load(trunk, init, PHOTO)
        assert "\n" not in str(error.value)
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "vit.safetensors").read_bytes()[:1000])
    with pytest.raises(DataError, match="cannot be read"):
        pretrained.load(trunk, f"file:{tmp_path}/cut.safetensors", PHOTO)
    for init in ("file:a.pth", "somewhere:x", "file:"):
        with pytest.raises(ValueError, match=r"expected (file:PATH|a \.safetensors)"):
            ResNet(init=init)


def test_without_a_network_the_line_says_what_to_bring_and_where_to_put_it(tmp_path, monkeypatch):
    """And once it is there, it is used: torchvision's pickle by `weights_only`."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refused)
    place = tmp_path / "hub/checkpoints/resnet18-f37072fd.pth"
    trunk = trunks.build(ResNet(), PHOTO)
    with pytest.raises(DataError, match=f"models/resnet18-f37072fd.pth is not reached .*put it at {place}"):
        pretrained.load(trunk, "torchvision:resnet18", PHOTO)
    theirs = trunks.build(ResNet(), PHOTO, seed=1)
    torch.save(theirs.state_dict(), place)
    pretrained.load(trunk, "torchvision:resnet18", PHOTO)
    assert torch.equal(trunk.conv1.weight, theirs.conv1.weight)
    assert pretrained.locate("torchvision:resnet18").mean == IMAGENET[0]


def refused(*_, **__):
    raise OSError("no network")


RUN = """
root: {root}
stages:
  shards: {{kind: pack, source: digits}}
  first: {{kind: pretrain, data: shards, net: {{kind: cnn, width: 8, depth: 2}}, views: {{kind: characters}},
           objective: {{kind: simclr}}, steps: 3, batch: 32, snapshots: 0}}
  more: {{kind: pack, source: digits, test: 0.5}}
  second: {{kind: pretrain, data: more, net: {{kind: cnn, width: 8, depth: 2, init: "artifact:first"}}, steps: 1,
            views: {{kind: characters}}, objective: {{kind: moco, queue: 64, head: {{hidden: 0, dim: 24}}}}, batch: 32,
            snapshots: 0, optimiser: {{kind: adam, lr: 1.0e-30}}}}
"""


@pytest.mark.slow
def test_another_head_on_other_images_starts_from_an_artifacts_trunk(tmp_path, capsys):
    """Exactly from its trunk: after one step that changes nothing, the weights are those of the stage before; and the
    images are normalised as they were there."""
    path = tmp_path / "run.yaml"
    path.write_text(RUN.format(root=tmp_path / "runs"))
    assert cli.main(["run", str(path), "--here"]) == 0
    assert "net starts from artifact:" in capsys.readouterr().out
    folders = {p.name: p.folder for p in plan.plan(config.load(str(path)))}
    first, second = (load_file(folders[name] / "model.safetensors") for name in ("first", "second"))
    trunk = [name for name in first if name.startswith("trunk.") and "running" not in name and "num_" not in name]
    assert trunk and all(torch.equal(first[name], second[name]) for name in trunk)
    specs = [json.loads((folders[name] / "model.json").read_text()) for name in ("first", "second")]
    assert specs[0]["image"]["mean"] == specs[1]["image"]["mean"] and specs[1]["net"]["init"] is None
    assert encoders.load(folders["second"]).image.mean == tuple(specs[0]["image"]["mean"])
    capsys.readouterr()
    assert cli.main(["run", str(path), "--here", "--dry-run", "first.steps=5", "second.batch=16"]) == 0
    said = capsys.readouterr().out
    told = f"first: starts from zero: {folders['first']}, which is done, is another training (steps 5, there 3); "
    assert f"{told}to go on from its network: first.net.init=artifact:{folders['first']}\n" in said
    assert "second: starts from zero" not in said


PHOTOS = """
root: {place}/runs
stages:
  shards: {{kind: pack, source: "folder:{place}/photos"}}
  net: {{kind: pretrain, data: shards, net: {{kind: resnet18, init: "file:{place}/w.safetensors", frozen: 8}},
         views: {{kind: moco_v2, size: 64}}, objective: {{kind: simclr}}, steps: 1, batch: 16, snapshots: 0}}
"""


@pytest.mark.slow
def test_from_torchvision_by_the_commands_and_back_to_torchvision_and_timm(tmp_path):
    """All blocks frozen, so that a training of one step changes no feature: what comes out is what went in."""
    import timm
    from PIL import Image as Picture

    (tmp_path / "photos").mkdir()
    for i in range(24):
        noise = np.random.default_rng(i).integers(0, 256, (64, 64, 3), np.uint8)
        Picture.fromarray(noise).save(tmp_path / f"photos/{i}.png")
    theirs = peer()
    saved(theirs, tmp_path / "w.safetensors")
    (tmp_path / "run.yaml").write_text(PHOTOS.format(place=tmp_path))
    assert cli.main(["run", str(tmp_path / "run.yaml"), "--here"]) == 0
    (folder,) = (tmp_path / "runs").glob("net-*")
    assert cli.main(["export", str(folder), str(tmp_path / "out")]) == 0
    theirs.fc = torch.nn.Identity()
    again = peer(seed=1)
    again.fc = torch.nn.Identity()
    again.load_state_dict(load_file(tmp_path / "out/model.safetensors"))
    x = torch.randn(8, 3, 64, 64)
    with torch.no_grad():
        expected = theirs(x)
        for model in (again, timm.create_model(f"local-dir:{tmp_path}/out", pretrained=True).eval()):
            assert (model(x) - expected).abs().max() < 1e-5 * expected.abs().max()


def test_the_key_holds_the_files_content_and_not_its_place(tmp_path):
    def key(place, state):
        place.mkdir(exist_ok=True)
        save_file(state, place / "w.safetensors")
        text = RUN.format(root=tmp_path / "runs").replace("artifact:first", f"file:{place}/w.safetensors")
        (tmp_path / "run.yaml").write_text(text)
        return {p.name: p.key for p in plan.plan(config.load(str(tmp_path / "run.yaml")))}["second"]

    state = trunks.build(CNN(width=8, depth=2), Image(1, 8, (0.3,), (0.3,))).state_dict()
    one, moved = key(tmp_path / "a", state), key(tmp_path / "b", state)
    other = key(tmp_path / "a", {name: x + 1 for name, x in state.items()})
    assert one == moved != other
    stage = config.load(str(tmp_path / "run.yaml")).stages["second"]
    artifact.check_weights(stage, artifact.fingerprint(stage, tmp_path))
    with pytest.raises(DataError, match=r"net.init: on .* the file is another one"):
        artifact.check_weights(stage, {"net.init": "0"})
    assert artifact.by_content({"net": {"init": "file:x"}}, {"net.init": "0"}) == {"net": {"init": "0"}}


def test_the_configs_of_the_documentation_are_valid(tmp_path):
    text = (Path(__file__).parents[1] / "docs/networks.md").read_text()
    for i, body in enumerate(re.findall(r"```yaml\n(.*?)```", text, re.S)):
        (tmp_path / f"{i}.yaml").write_text(body)
        assert cli.main(["run", str(tmp_path / f"{i}.yaml"), f"root={tmp_path}/runs", "--here", "--dry-run"]) == 0
