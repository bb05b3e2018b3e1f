"""Score matching on densities in the plane that are known exactly: by quadrature, not by samples."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from pipeline import keyed
from pipeline.config import load
from pipeline.errors import ConfigError
from pipeline.image import Image
from pipeline.nets.energies import EnergyNet
from pipeline.objectives.base import Batch, Setup
from pipeline.objectives.noise import GreyConditionalNCE
from pipeline.objectives.scores import FLAT, ScoreMatching
from pipeline.samplers.langevin import Target
from pipeline.settings import nets, scores
from pipeline.world import World

PLANE = Image(2, 1, (0.5,) * 2, (0.5,) * 2)
SMALL = nets.Energy(trunk=nets.MLP(width=16, activation="silu"))
POINTS = torch.tensor([[0.1, 0.2], [0.9, 0.4], [0.4, 0.9]], dtype=torch.float64)
SHARES = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
SIGNS = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
"""Of which v v^T is the unit matrix in the mean."""
BOTH = pytest.mark.parametrize("loss", ["denoising", "sliced"])


@dataclass(frozen=True)
class Given(Batch):
    """A batch whose noise [B, D] and signs [B, D] are not drawn."""

    noise: Tensor = POINTS
    signs: Tensor = POINTS

    def normal(self, op: str, *shape: int) -> Tensor:
        return self.noise

    def uniform(self, op: str, *shape: int) -> Tensor:
        return (self.signs < 0).double() if shape else torch.zeros(len(self.ids)).double()


class Mixture(EnergyNet):
    """Energies under noise of a data set that is a few points, times the noise's deviation."""

    visible, features, centred = 2, 2, False

    def __init__(self, deviation: float):
        super().__init__()
        self.deviation = deviation
        self.points, self.shares = nn.Parameter(POINTS.clone()), nn.Parameter(SHARES.log())

    def energy(self, x: Tensor) -> Tensor:
        squares = (x[:, None] - self.points).square().sum(2) / (2 * self.deviation**2)
        return -self.deviation * (self.shares - squares).logsumexp(1)


def build(net: nn.Module | None = None, **words) -> ScoreMatching:
    """The objective for points in the plane."""
    settings = scores.ScoreMatching(**words)
    made = ScoreMatching(settings, Setup(PLANE, 3, SMALL, World.single(device="cpu"), 0)).double()
    if net is not None:
        made.net = net
    return made


def population(reach: float, count: int) -> tuple[Given, Tensor]:
    """The points under all noise and all signs, and the probability of each of them."""
    line = torch.linspace(-reach, reach, count, dtype=torch.float64)
    noise = torch.cartesian_prod(line, line)
    weights = (-noise.square().sum(1) / 2).softmax(0)
    parts = [torch.arange(n) for n in (len(POINTS), len(noise), len(SIGNS))]
    point, draw, sign = torch.cartesian_prod(*parts).unbind(1)
    views = (POINTS[point].view(-1, 2, 1, 1),)
    return (
        Given(views, torch.arange(len(point)), dtype=torch.float64, noise=noise[draw], signs=SIGNS[sign]),
        SHARES[point] * weights[draw] / len(SIGNS),
    )


def gradient(o: ScoreMatching, reach: float = 7.0, count: int = 51) -> list[Tensor]:
    """Of the loss in expectation."""
    batch, weights = population(reach, count)
    _, losses, *_ = o.embed(batch)
    return list(torch.autograd.grad(weights @ losses, list(o.parameters())))


@BOTH
def test_the_gradient_is_zero_where_energies_are_those_of_data_under_noise(loss):
    o, size = build(Mixture(0.3), loss=loss, levels=1, noise=(0.3, 0.3)), []
    for factor in (1.0, 0.8):
        with torch.no_grad():
            o.net.points.mul_(factor)
        size.append(max(float(g.abs().max()) for g in gradient(o)))
    assert size[0] < 1e-8 and size[1] > 1e-2


def test_both_losses_have_the_same_gradient_wherever_they_are():
    """Integration by parts: they differ by a constant."""
    both = [build(loss=loss, levels=1, noise=(0.2, 0.2)) for loss in ("denoising", "sliced")]
    for one, other in zip(*map(gradient, both), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)
        assert one.abs().max() > 1e-4


def test_sliced_is_the_closed_form_of_a_gaussian():
    """J = 1/2 tr(P S P) - tr P at precision P and scatter S, least at P = S^-1 (Hyvarinen 2005, sec. 3.1); times the
    variance of the noise."""
    deviation, draws = 0.1, torch.from_numpy(keyed.normal(40, "x")).view(20, 2)
    images = 0.5 + draws @ torch.tensor([[0.5, 0.2], [0.0, 0.3]]).double()
    zero = torch.zeros(40, 2, dtype=torch.float64)
    batch = Given(
        (images.repeat(2, 1).view(-1, 2, 1, 1),), torch.arange(40), dtype=torch.float64, noise=zero,
        signs=SIGNS.repeat_interleave(20, 0),
    )  # fmt: skip
    scatter = images.T @ images / 20
    for precision in (torch.tensor([[3.0, 1.0], [1.0, 2.0]]).double(), scatter.inverse()):
        net = Mixture(deviation)
        net.shares = nn.Parameter(precision)
        net.energy = lambda x, p=net.shares: deviation * (x @ p * x).sum(1) / 2  # type: ignore[method-assign]
        o = build(net, loss="sliced", levels=1, noise=(deviation, deviation))
        losses = o.embed(batch)[1]
        wanted = deviation**2 * ((precision @ scatter @ precision).trace() / 2 - precision.trace())
        torch.testing.assert_close(losses.mean(), wanted, rtol=1e-12, atol=0)
        (slope,) = torch.autograd.grad(losses.mean(), [net.shares])
        assert (float(slope.abs().max()) < 1e-14) == bool(torch.equal(precision, scatter.inverse()))


def test_conditional_nce_is_zero_at_the_truth_for_any_noise():
    """On a torus of 81 x 81 points; each displacement and its opposite by themselves, as likely as each other."""
    settings = scores.GreyConditionalNCE()
    o = GreyConditionalNCE(settings, Setup(PLANE, 3, SMALL, World.single(device="cpu"), 0)).double()
    o.net, line = Mixture(0.3), torch.linspace(-1.5, 2.5, 81, dtype=torch.float64)
    points = torch.cartesian_prod(line, line)
    p = o.net.energy(points).detach().neg().softmax(0)
    for shift in ((1, 0), (3, -5), (-20, 8)):
        size = []
        for factor in (1.0, 0.8):
            o.net.points.data = factor * POINTS
            low = o.net.energy(points)
            moved = [low.view(81, 81).roll([s * sign for s in shift], (0, 1)).flatten() for sign in (1, -1)]
            loss = p @ o.losses(low, torch.stack(moved, 1))
            size.append(max(float(g.abs().max()) for g in torch.autograd.grad(loss, list(o.net.parameters()))))
        assert size[0] < 1e-10 and size[1] > 1e-4


def test_the_ladder_is_geometric_and_drawn_evenly():
    o = build(levels=5, noise=(0.01, 1.0))
    assert o.deviations() == pytest.approx([1, 10**-0.5, 0.1, 10**-1.5, 0.01])
    grey = torch.full((3000, 2, 1, 1), 0.5, dtype=torch.float64)
    seen = []
    o.net.energy = lambda x: seen.append(x.detach()) or x.square().sum(1)  # type: ignore[func-returns-value]
    batch = Batch((grey,), torch.arange(3000), dtype=torch.float64)
    noise = batch.normal("noise", 2)
    o.embed(batch)
    drawn = ((seen[0] - 0.5) / noise)[:, 0]
    for deviation in o.deviations():
        assert int((drawn / deviation - 1).abs().lt(1e-6).sum()) == pytest.approx(600, abs=80)


def test_annealed_chains_come_to_the_points_by_their_shares():
    """Of the true energies: as many to each point as its share, four errors of a count."""
    o = build(Mixture(0.1), levels=8, noise=(0.02, 1.0))
    o.target = lambda deviation: Target(lambda x: Mixture(deviation).energy(x) / deviation)  # type: ignore[method-assign]
    states = o.walk(400, 0)
    assert states.shape == (10, 400, 2)
    distance = torch.cdist(states[-1], POINTS)
    assert float(distance.amin(1).max()) < 1e-3  # the last step takes all noise away
    shares = torch.bincount(distance.argmin(1), minlength=3) / 400
    assert ((shares - SHARES).abs() < 4 * (SHARES * (1 - SHARES) / 400).sqrt() + 0.02).all()
    assert torch.equal(o.sample(5, 0), states[-1, :5])


def test_signs_of_what_goes_wrong():
    o = build()
    good = {"energy/volume": 1.0, "energy/low": -5.0}
    assert not o.collapse_signs(good)
    assert set(o.collapse_signs(good | {"energy/volume": FLAT})) == {"flat"}
    assert set(o.collapse_signs(good | {"energy/low": 1e3})) == {"magnitude"}


@pytest.mark.parametrize(
    "words, text",
    [
        ("net: {kind: rbm}", "a rbm is of binary images; objective score_matching expects an energy"),
        (
            "net: {kind: energy, trunk: {kind: mlp, activation: relu}}",
            "a mlp of ReLUs has no second derivatives; expected activation",
        ),
        ("objective: {kind: score_matching, noise: [1, 0.1]}", "the least is more than the greatest"),
    ],
)
def test_what_has_no_slopes_is_refused(words, text, tmp_path):
    path = tmp_path / "c.yaml"
    objective = "" if words.startswith("objective") else ", objective: {kind: score_matching}"
    path.write_text(f"stages:\n  s: {{kind: pack}}\n  e: {{kind: pretrain, data: s, {words}{objective}}}\n")
    with pytest.raises(ConfigError, match=text):
        load(path)
