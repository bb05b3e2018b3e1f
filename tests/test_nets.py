"""Norms, trunks, heads and decoders: against torch's own, and against loops over blocks."""

import copy
import math

import pytest
import torch
from torch import nn

from pipeline.errors import ConfigError
from pipeline.image import Image
from pipeline.nets import decoders, ema, heads, norm, trunks
from pipeline.nets.norm import BatchNorm
from pipeline.settings.nets import CNN, MLP, Norm, ResNet, ViT
from pipeline.settings.objectives import Decoder, Head
from tests.cases import random

GREY, COLOUR = Image(1, 8, (0.5,), (0.5,)), Image(3, 32, (0.5,) * 3, (0.5,) * 3)


class Pretend:
    """Many ranks, as far as batch norm can tell; nothing is gathered."""

    rank, size = 0, 2

    def gather(self, x):
        return torch.cat([x, x])


def blocks_by_hand(x, blocks, strided):
    """Each block through torch's own batch norm -> outputs, in place."""
    out = torch.empty_like(x)
    for b in range(blocks):
        mine = torch.arange(len(x))[b::blocks] if strided else torch.arange(len(x)).chunk(blocks)[b]
        out[mine] = nn.functional.batch_norm(x[mine], None, None, training=True)
    return out


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("blocks", [1, 2, 4])
@pytest.mark.parametrize("shape", [(8, 5), (8, 5, 3, 4)])
def test_batch_norm_is_torchs_on_every_block(shape, blocks, strided):
    x = (random(*shape) * 3 + 100).requires_grad_()
    layer = BatchNorm(5, blocks, strided=strided).double()
    weight = random(*shape, seed=1)
    expected = blocks_by_hand(x, blocks, strided)
    y = layer(x)
    torch.testing.assert_close(y, expected, rtol=1e-11, atol=1e-11)
    grads = [torch.autograd.grad((v * weight).sum(), x)[0] for v in (y, expected)]
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-12)


def test_batch_norm_of_two_equal_halves_is_batch_norm_of_the_whole():
    """Chan's formula on gathered halves; the running statistics as torch keeps them."""
    half = random(6, 4, 3, 3) * 2 + 5
    ours, torchs = BatchNorm(4, world=Pretend()).double(), nn.BatchNorm2d(4).double()  # type: ignore[arg-type]
    for module in (ours, torchs):
        module.load_state_dict({**module.state_dict(), "weight": random(4, seed=2), "bias": random(4, seed=3)})
    whole = torch.cat([half, half])
    torch.testing.assert_close(ours(half), torchs(whole)[:6], rtol=1e-12, atol=1e-12)
    for key, value in torchs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[key], value, rtol=1e-12, atol=1e-12)
    ours.eval(), torchs.eval()
    torch.testing.assert_close(ours(half), torchs(half), rtol=1e-12, atol=1e-12)


def test_chans_variance_keeps_its_digits():
    """A mean ten thousand deviations away: E[x^2] - m^2 in fp32 would have none left."""
    x = (random(64, 3) + 1e4).float()
    layer = BatchNorm(3, world=Pretend())  # type: ignore[arg-type]
    deviation = layer(x).std(0, correction=0)
    torch.testing.assert_close(deviation, torch.ones(3), rtol=1e-4, atol=0)


def test_running_statistics_of_blocks_are_their_mean():
    x = random(8, 3)
    layer = BatchNorm(3, 2).double()
    layer(x)
    halves = x.chunk(2)
    torch.testing.assert_close(layer.running_mean, 0.1 * torch.stack([h.mean(0) for h in halves]).mean(0))
    torch.testing.assert_close(layer.running_var, 0.9 + 0.1 * torch.stack([h.var(0) for h in halves]).mean(0))
    assert layer.num_batches_tracked == 1


def test_batch_norm_says_what_does_not_fit():
    with pytest.raises(ConfigError, match="3 blocks on 1 ranks: each rank's 8 images"):
        BatchNorm(4, 3)(torch.zeros(8, 4))
    with pytest.raises(ConfigError, match="no variance"):
        BatchNorm(4, 8)(torch.zeros(8, 4))


def test_norm_kinds():
    world = Pretend()
    assert norm.layer(Norm(), world)(16).blocks == 1  # type: ignore[arg-type]
    assert norm.layer(Norm(kind="split", splits=4), world)(16).blocks == 4  # type: ignore[arg-type]
    assert norm.layer(Norm(kind="local"), world)(16).blocks == 2  # type: ignore[arg-type]
    group = norm.layer(Norm(kind="none", groups=8), None)(12)
    assert isinstance(group, nn.GroupNorm) and group.num_groups == 4
    assert torch.equal(*(BatchNorm(4, b)(random(8, 4).float()) for b in (1, 1)))
    assert not BatchNorm(4, affine=False).affine


def test_batch_norm_in_bf16_keeps_statistics_in_fp32():
    layer = BatchNorm(4, 2)
    y = layer(random(8, 4).bfloat16())
    assert y.dtype == torch.bfloat16 and layer.running_mean.dtype == torch.float32


NETS = [CNN(), CNN(width=8, depth=1), CNN(norm=Norm(kind="none")), CNN(norm=Norm(kind="split", splits=2)),
        CNN(halve="stride", grid=2), CNN(grid=3, norm=Norm(kind="none")), ResNet()]  # fmt: skip


@pytest.mark.parametrize("net", NETS, ids=str)
@pytest.mark.parametrize("image", [GREY, COLOUR], ids=["grey", "colour"])
def test_trunk_gives_its_features(net, image):
    trunk = trunks.build(net, image)
    assert trunk(torch.zeros(4, image.channels, image.side, image.side)).shape == (4, trunk.features)
    patches = torch.zeros(2, 9, image.channels, 4, 4)
    assert trunks.embed_patches(trunk, patches).shape == (2, 9, trunk.features)


@pytest.mark.parametrize("net", [CNN(), ResNet()], ids=str)
def test_trunk_starts_from_the_seed_alone(net):
    torch.manual_seed(1)
    numbers = torch.random.get_rng_state()
    one, two, other = (trunks.build(net, GREY, None, seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(numbers, torch.random.get_rng_state())
    assert all(torch.equal(v, two[k]) for k, v in one.items())
    assert any(not torch.equal(v, other[k]) for k, v in one.items())


def test_residual_network_is_torchvisions():
    """At 64 pixels and more the same function of the same names."""
    from torchvision.models import resnet18

    peer = resnet18().eval()
    peer.fc = nn.Identity()
    trunk = trunks.build(ResNet(), Image(3, 64, (0.5,) * 3, (0.5,) * 3)).eval()
    trunk.load_state_dict(peer.state_dict())
    x = random(2, 3, 64, 64).float()
    torch.testing.assert_close(trunk(x), peer(x))


@pytest.mark.parametrize("kind", ["resnet18", "resnet50"])
def test_zero_init_starts_as_the_shortcuts_alone(kind):
    trunk = trunks.build(ResNet(kind=kind, zero_init=True), COLOUR).eval()
    x = y = trunk.relu(trunk.bn1(trunk.conv1(random(2, 3, 16, 16).float())))
    for block in (b for layer in (trunk.layer1, trunk.layer2, trunk.layer3, trunk.layer4) for b in layer):
        x, y = block(x), torch.relu(y if block.downsample is None else block.downsample(y))
    torch.testing.assert_close(x, y, rtol=0, atol=0)


def test_small_stem_keeps_the_side():
    trunk = trunks.build(ResNet(), COLOUR)
    assert trunk.conv1.stride == (1, 1) and isinstance(trunk.maxpool, nn.Identity)
    assert trunks.build(ResNet(kind="resnet50", stem="imagenet"), GREY).conv1.kernel_size == (7, 7)


def test_a_copied_trunk_is_its_own():
    trunk = trunks.build(CNN(), GREY)
    again = copy.deepcopy(trunk)
    again(random(4, 1, 8, 8).float())
    assert all(int(b) == 0 for n, b in trunk.named_buffers() if n.endswith("tracked"))


def test_patch_head_joins_in_the_order_given_and_does_not_mix_images():
    head = heads.PatchHead(heads.build(Head(hidden=0, dim=4), 6), 4, 9).double()
    x = random(3, 9, 6)
    y = head(x)
    by_hand = []
    for image in x:
        joined = torch.cat([head.each[0].weight @ patch + head.each[0].bias for patch in image])
        by_hand.append(head.join.weight @ joined + head.join.bias)
    torch.testing.assert_close(y, torch.stack(by_hand), rtol=1e-12, atol=1e-12)
    changed = x.clone()
    changed[1] += 1
    assert torch.equal(head(changed)[[0, 2]], y[[0, 2]]) and not torch.equal(head(changed)[1], y[1])
    assert not torch.allclose(head(x[:, torch.arange(8, -1, -1)]), y)


def test_heads():
    assert [type(m).__name__ for m in heads.build(Head(), 64)] == ["Linear", "ReLU", "Linear"]
    assert [m.out_features for m in heads.build(Head(hidden=0, dim=7), 64)] == [7]


@pytest.mark.parametrize("kind", ["mlp", "conv"])
@pytest.mark.parametrize("layers", [1, 2, 4])
@pytest.mark.parametrize("side", [7, 8, 28])
def test_a_decoder_comes_to_the_images_shape(kind, layers, side):
    image = Image(3, side, (0.5,) * 3, (0.5,) * 3)
    decoder = decoders.build(Decoder(kind=kind, width=32, layers=layers), 5, image)
    assert decoder(torch.zeros(2, 5)).shape == (2, 3, side, side)


@pytest.mark.parametrize("layers", [1, 3])
def test_fully_connected_layers_with_a_relu_after_each(layers):
    trunk = trunks.build(MLP(width=9, layers=layers), COLOUR, None, 3)
    x = random(2, 3, 32, 32).float()
    expected = x.flatten(1)
    for part in trunk:
        if isinstance(part, torch.nn.Linear):
            expected = (expected @ part.weight.T + part.bias).clamp(min=0)
    assert trunk.features == 9 and trunk(x).shape == (2, 9) and len(trunk) == 1 + 2 * layers
    torch.testing.assert_close(trunk(x), expected, rtol=1e-5, atol=1e-5)


def test_vit_has_a_fixed_position_embedding_and_a_frozen_projection():
    net = ViT(patch=4, width=16, depth=2, heads=2)
    trunk = trunks.build(net, COLOUR, None, 3)
    x = random(2, 3, 32, 32).float()
    assert trunk(x).shape == (2, trunk.features) == (2, 16)
    still = {n for n, p in trunk.named_parameters() if not p.requires_grad}
    assert still == {"conv_proj.weight", "conv_proj.bias", "encoder.pos_embedding"}
    table = trunk.encoder.pos_embedding[0]
    assert table.shape == (65, 16) and (table[0] == 0).all()
    for place, (y, x) in ((1, (0, 0)), (12, (1, 3)), (64, (7, 7))):
        for i in range(4):
            speed = 10000 ** (-i / 4)
            found = table[place].view(4, 4)[:, i].tolist()
            expected = [math.sin(x * speed), math.cos(x * speed), math.sin(y * speed), math.cos(y * speed)]
            assert found == pytest.approx(expected, abs=1e-6)
    with pytest.raises(ConfigError, match="does not divide"):
        trunks.build(ViT(patch=5, width=16, depth=1, heads=2), COLOUR)


@pytest.mark.parametrize("patch", [4, 8])
def test_vits_patch_projection_starts_within_its_bound(patch):
    """Uniform in sqrt(6 / (3 patch^2 + width)), biases 0: vits.py of facebookresearch/moco-v3."""
    trunk = trunks.build(ViT(patch=patch, width=192, depth=1, heads=3), COLOUR, None, 3)
    bound = math.sqrt(6 / (3 * patch**2 + 192))
    assert 0.99 * bound < float(trunk.conv_proj.weight.detach().abs().max()) <= bound
    assert not trunk.conv_proj.bias.any() and float(trunk.class_token.detach().abs().max()) < 1e-5


def test_vits_linear_layers_start_as_moco_v3s():
    """Xavier's bound of each matrix, queries', keys' and values' apart, and biases 0: 0.0884 at width 384."""
    trunk = trunks.build(ViT(depth=1), Image(3, 32, (0.5,) * 3, (0.5,) * 3), None, 3)
    named = dict(trunk.encoder.layers.named_parameters())
    bounds = {
        "in_proj_weight": math.sqrt(6 / (384 + 384)),
        "out_proj.weight": math.sqrt(6 / (384 + 384)),
        "mlp.0.weight": math.sqrt(6 / (384 + 4 * 384)),
        "mlp.3.weight": math.sqrt(6 / (384 + 4 * 384)),
    }
    assert round(bounds["in_proj_weight"], 4) == 0.0884
    for name, bound in bounds.items():
        (weight,) = (v.detach() for k, v in named.items() if k.endswith(name))
        assert 0.999 * bound < float(weight.abs().max()) <= bound
        assert float(weight.std()) == pytest.approx(bound / math.sqrt(3), rel=0.01)
    for name, value in named.items():
        assert not name.endswith("bias") or not value.any(), name


def test_simclrs_last_norm_has_a_scale_and_no_shift():
    """linear_layer(use_bias=False, use_bn=True) of google-research/simclr: batch norm with center false."""
    image = random(16, 6).float()
    for norms in (Norm(), Norm(kind="split", splits=2), Norm(kind="none", groups=2)):
        head = heads.build(Head(hidden=8, dim=4, norm="scaled"), 6, norms)
        last = head[-1]
        assert last.bias is None and last.weight.shape == (4,) and head[-2].bias is None
        once = head(image)
        with torch.no_grad():
            last.weight.mul_(3)
        torch.testing.assert_close(head(image), 3 * once)
    fresh = heads.build(Head(hidden=8, dim=4, norm="scaled"), 6)
    assert {name for name, _ in fresh.named_parameters()} == {"0.weight", "1.weight", "1.bias", "3.weight", "4.weight"}


@pytest.mark.parametrize(("kind", "other"), [("shuffle", True), ("split", False)])
def test_shuffled_keys_have_other_companions(kind, other):
    """One key is changed: with shuffle those of its stride feel it, with split those beside it."""
    net = CNN(width=8, depth=1, norm=Norm(kind=kind, splits=2))
    trunk = trunks.build(net, GREY).double()
    (key_trunk,) = ema.momentum_encoder(net, trunk)
    images = random(8, 1, 8, 8)
    changed = images.clone()
    changed[0] += 1
    for part, strided in ((trunk, False), (key_trunk, other)):
        felt = ((part(changed) - part(images)).abs().amax(1) > 1e-9).nonzero()[:, 0].tolist()
        assert felt == ([0, 2, 4, 6] if strided else [0, 1, 2, 3])


def test_head_norms_follow_the_trunk():
    kinds = [type(m).__name__ for m in heads.build(Head(hidden=8, dim=4, layers=3, norm="all"), 6)]
    assert kinds == ["Linear", "BatchNorm", "ReLU", "Linear", "BatchNorm", "ReLU", "Linear", "BatchNorm"]
    last = heads.build(Head(hidden=8, dim=4, norm="all"), 6, Norm(kind="split", splits=2))[-1]
    assert last.weight is None and last.bias is None and last.blocks == 2
    y = heads.build(Head(hidden=8, dim=4, norm="all"), 6)(random(16, 6).float())
    torch.testing.assert_close(y.mean(0), torch.zeros(4), rtol=0, atol=1e-6)
    assert type(heads.build(Head(hidden=8, dim=4, norm="hidden"), 6, Norm(kind="none"))[1]).__name__ == "GroupNorm"


def test_untracked_statistics_are_as_before():
    trunk = trunks.build(CNN(), GREY)
    before = {k: v.clone() for k, v in trunk.state_dict().items()}
    with norm.untracked(trunk):
        trunk(random(4, 1, 8, 8).float())
    assert all(torch.equal(v, before[k]) for k, v in trunk.state_dict().items())
    assert norm.blocks(trunk) == 1 and norm.blocks(trunks.build(CNN(norm=Norm(kind="none")), GREY)) == 0


def test_a_module_has_its_averages_while_they_are_swapped_in():
    """And its own parameters again after, to the bit, whatever happens inside."""
    module = nn.Sequential(nn.Linear(3, 2), BatchNorm(2), nn.Linear(2, 2).requires_grad_(False)).double()
    average = ema.Average(module)
    assert set(average.tensors) == {"0.weight", "0.bias", "1.weight", "1.bias"}
    first = {name: x.clone() for name, x in average.tensors.items()}
    with torch.no_grad():
        for p in module.parameters():
            p.add_(random(*p.shape))
    average.update(0.75)
    own = {name: x.clone() for name, x in module.state_dict().items()}
    averages = {name: x.clone() for name, x in average.tensors.items()}
    for name, x in averages.items():
        torch.testing.assert_close(x, 0.75 * first[name] + 0.25 * own[name], rtol=1e-12, atol=1e-14)
    with pytest.raises(KeyError), average.swapped():
        assert all(torch.equal(x, averages.get(name, own[name])) for name, x in module.state_dict().items())
        raise KeyError
    assert all(torch.equal(x, own[name]) for name, x in module.state_dict().items())
    assert all(torch.equal(x, averages[name]) for name, x in average.tensors.items())
