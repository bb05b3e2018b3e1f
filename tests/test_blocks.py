"""Blocks that are computed again in the backward pass, and first blocks that are not trained."""

import copy

import pytest
import torch
from safetensors.torch import save_file

from pipeline import estimate
from pipeline.errors import ConfigError
from pipeline.image import Image
from pipeline.nets import blocks, trunks
from pipeline.settings.nets import LibraryNet, Norm, ResNet, ViT, structure
from pipeline.settings.stages import Pretrain

SMALL = Image(3, 32, (0.5,) * 3, (0.2,) * 3)
TINY = ViT(width=32, depth=3, heads=2, patch=8)
NETS = {
    "resnet": ResNet(norm=Norm(kind="split", splits=2)), "vit": TINY, "timm": LibraryNet(name="test_resnet"),
    "timm, activations in its norms": LibraryNet(name="test_efficientnet"), "nfnet": LibraryNet(name="test_nfnet"),
}  # fmt: skip


@pytest.mark.parametrize("name", NETS)
def test_computed_again_it_is_the_same_to_the_bit(name):
    """Output, gradients and running statistics, also of a copy, as a momentum encoder is."""
    net = NETS[name]
    plain = trunks.build(net, SMALL, None, 3)
    again = copy.deepcopy(trunks.build(net.model_copy(update={"checkpointing": True}), SMALL, None, 3))
    x = torch.randn(4, 3, 32, 32)
    for trunk in (plain, again):
        trunk(x).square().sum().backward()
    one, two = (dict(trunk.state_dict()) for trunk in (plain, again))
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    gradients = [{n: p.grad for n, p in trunk.named_parameters() if p.grad is not None} for trunk in (plain, again)]
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(gradients[0][key], gradients[1][key]) for key in gradients[0])


def test_what_is_computed_again_is_kept_nowhere():
    """By the tensors that autograd holds: of a block that is computed again its input alone."""
    def saved(net):
        trunk = trunks.build(net, Image(3, 64, (0.5,) * 3, (0.2,) * 3)).train()
        seen = {}
        with torch.autograd.graph.saved_tensors_hooks(lambda x: seen.setdefault(x.data_ptr(), x), lambda x: x):
            trunk(torch.randn(2, 3, 64, 64))
        weights = {p.data_ptr() for p in trunk.parameters()}
        return sum(x.numel() for at, x in seen.items() if at not in weights)

    net = TINY.model_copy(update={"depth": 8})
    assert saved(net.model_copy(update={"checkpointing": True})) < saved(net) / 5


def test_the_memory_of_a_dry_run_knows_it():
    def size(**changes):
        net = {"kind": "vit", "width": 64, "depth": 8, "heads": 2, "patch": 4, **changes}
        settings = Pretrain(data="s", net=net, views={"kind": "moco_v2", "size": 32}, objective={"kind": "simclr"})
        made = estimate.build(settings, estimate.Packed(1000, 3, 32), 0)
        return estimate.saved_bytes(settings, *made)

    whole, again = size(), size(checkpointing=True)
    inputs = 2 * 256 * 65 * 64 * 4 * 8  # two views of 256 images, tokens, width, bytes, blocks
    assert whole / 8 < again < whole / 3 and again > inputs + whole / 10


def test_first_blocks_stay_as_they_came(tmp_path):
    """Weights and running statistics; whatever comes after them is trained."""
    start = trunks.build(ResNet(), SMALL, None, 1)
    save_file(start.state_dict(), tmp_path / "w.safetensors")
    net = ResNet(init=f"file:{tmp_path}/w.safetensors", frozen=3)
    trunk = trunks.build(net, SMALL).train()
    trunk(torch.randn(4, 3, 32, 32)).sum().backward()
    first = ("conv1", "bn1", "layer1", "layer2.0")
    still = {name for name, p in trunk.named_parameters() if p.grad is None}
    assert still == {name for name, _ in trunk.named_parameters() if name.startswith(first)}
    before, after = start.state_dict(), trunk.state_dict()
    moved = {name for name in after if "running" in name and not torch.equal(before[name], after[name])}
    assert moved and not [name for name in moved if name.startswith(first)]
    assert structure(net) == ResNet()
    with pytest.raises(ConfigError, match="the network has 8 blocks"):
        blocks.freeze(trunk, 9)
    with pytest.raises(ValueError, match="the first 2 blocks would stay random"):
        ResNet(frozen=2)
    with pytest.raises(ConfigError, match="no blocks to compute again"):
        blocks.recompute(torch.nn.Linear(2, 2))
