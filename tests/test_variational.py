"""Variational autoencoders where the truth is known: linear decoders, sums over grey levels, gradients in the mean."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline import keyed, objectives, tags
from pipeline.board import METRICS
from pipeline.evaluation import balls, importance
from pipeline.objectives import models, pixels, variational
from pipeline.objectives.base import Batch
from pipeline.settings.nets import Norm
from pipeline.settings.objectives import IWAE, VAE, Decoder
from tests.cases import IMAGE, NARROW, batch, make, random, setup

SIGMA, LATENT, D = 0.3, 4, 64
WIDTHS = torch.tensor([2.0, 1.5, 1.0, 0.5]).double()


def linear(world, settings, rotation: Tensor, spread: float = 1.0):
    """An objective with the decoder of probabilistic PCA, and for q the best normal distribution of independent units;
    ``spread``: its deviations over the best ones. Tipping & Bishop 1999: p(z|x) has precision P = W'W / s^2 + 1."""
    objective = objectives.build(settings, setup("vae_gaussian", world)).double()
    weight = torch.linalg.qr(random(D, LATENT))[0] * WIDTHS @ rotation
    precision = weight.T @ weight / SIGMA**2 + torch.eye(LATENT).double()
    encoder = nn.Linear(D, 2 * LATENT).double()
    with torch.no_grad():
        encoder.weight[:LATENT] = torch.linalg.solve(precision, weight.T) / SIGMA**2
        encoder.bias[:LATENT] = -encoder.weight[:LATENT] @ random(D, seed="mu")
        encoder.weight[LATENT:] = 0
        encoder.bias[LATENT:] = -precision.diagonal().log() + 2 * math.log(spread)
        objective.decoder[0].weight.copy_(weight)
        objective.decoder[0].bias.copy_(random(D, seed="mu"))
        objective.pixels.log_scale.fill_(math.log(math.expm1(math.log(SIGMA) + 6)) - 6)
    objective.mean.trunk, objective.mean.projection = nn.Flatten(), encoder
    return objective, precision


LINEAR = {"latent": LATENT, "likelihood": "gaussian", "decoder": Decoder(layers=0)}
STRAIGHT = torch.eye(LATENT).double()
ROTATION = torch.linalg.qr(random(LATENT, LATENT, seed="rotation"))[0]
IMAGES = random(5, 1, 8, 8, seed="x")
IDS = np.arange(5)


def truth(objective) -> Tensor:
    """log N(x; mu, W W' + sigma^2 I)."""
    weight = objective.decoder[0].weight.detach()
    covariance = weight @ weight.T + SIGMA**2 * torch.eye(D).double()
    return torch.distributions.MultivariateNormal(random(D, seed="mu"), covariance).log_prob(IMAGES.flatten(1))


@pytest.mark.parametrize("rotation", [STRAIGHT, ROTATION], ids=["straight", "rotated"])
def test_a_linear_decoder_has_an_exact_likelihood_and_a_bound_short_of_it_by_what_is_known(rotation, world):
    """Every weight of a draw is p(x) where q is p(z|x). Where p(z|x) couples units, the best q without coupling is
    short by (sum log P_jj - log |P|) / 2."""
    objective, precision = linear(world, VAE(**LINEAR), rotation)
    torch.testing.assert_close(importance.exact(objective, IMAGES), truth(objective), rtol=1e-10, atol=1e-10)
    gap = 0.5 * (precision.diagonal().log().sum() - torch.logdet(precision))
    assert float(gap) == pytest.approx(0, abs=1e-12) if rotation is STRAIGHT else float(gap) > 0.3
    k = LATENT
    points = math.sqrt(k) * torch.cat([torch.eye(k), -torch.eye(k)]).double().expand(5, -1, -1)
    mean, logvar = objective.encode(IMAGES)  # at these points the mean of a quadratic is exact
    recon = objective.negative_log_likelihood(IMAGES, variational.draw(mean, logvar, points)).mean(1)
    elbo = -recon - variational.divergence(mean, logvar).sum(1)
    torch.testing.assert_close(elbo, truth(objective) - gap, rtol=1e-10, atol=1e-10)


def test_importance_sampling_finds_the_truth_and_more_draws_a_higher_bound(world):
    objective, _ = linear(world, VAE(**LINEAR), ROTATION, spread=1.3)
    draws = 4000
    logs = importance.log_weights(objective, IMAGES, IDS, draws, 0).detach()
    found = importance.of_weights(logs)
    share = logs.softmax(1)
    error = (share.square().sum(1) - 1 / draws).sqrt()  # of the log of a mean, by the delta method
    assert ((found.log_likelihood - truth(objective)).abs() < 3 * error).all() and error.max() < 0.05
    assert torch.equal(found.effective, 1 / share.square().sum(1)) and (found.effective > 100).all()
    bounds = [-variational.bound(logs.view(5, -1, k).flatten(0, 1)).mean() for k in (1, 2, 10, 100)]
    assert bounds == sorted(bounds) and float(bounds[0]) < float(truth(objective).mean()) - 0.5


def test_draws_belong_to_an_image_alone(world, monkeypatch):
    """Whatever is looked at beside it, and however many at a time."""
    objective, _ = linear(world, VAE(**LINEAR), ROTATION)
    whole = importance.estimate(objective, IMAGES, IDS, 50, 3)
    monkeypatch.setitem(importance.IMAGES, "cpu", 2)
    some = importance.estimate(objective, IMAGES[[4, 1, 0]], IDS[[4, 1, 0]], 50, 3)
    for one, other in zip(whole, some, strict=True):
        torch.testing.assert_close(one[[4, 1, 0]], other, rtol=1e-12, atol=1e-12)


def test_what_is_measured_says_what_it_is_of(world):
    objective = make("iwae", world)
    images = objective.target(batch(objective, list(range(20))))
    found = importance.evaluate(objective, images, np.arange(20), 30, 0)
    assert found["protocol"] == {
        "likelihood": "bernoulli", "binarisation": "dynamic", "images": 20, "by": "importance sampling, 30 draws",
    }  # fmt: skip
    assert found["elbo"] < found["log_likelihood"] < 0 <= found["unsure"] <= 1
    assert all(tags.find(f"density/{name}") for name in found if name != "protocol")
    assert found["information"] + found["aggregate_kl"] == pytest.approx(found["kl"], abs=1.0)
    grey = make("vae", world)
    assert "log_likelihood" not in importance.evaluate(grey, images, np.arange(20), 30, 0)
    exact, _ = linear(world, VAE(**LINEAR), ROTATION)
    assert importance.evaluate(exact, IMAGES, IDS, 30, 0)["protocol"]["by"] == "exact"


def test_the_kl_divergence_has_two_parts():
    """Of two images by an integral over a grid; of images that are told apart entirely the first is log N."""
    means, logvars = torch.tensor([[-0.5], [1.0]]).double(), torch.tensor([[-1.0], [0.3]]).double()
    z = torch.linspace(-12, 12, 20001).double()
    each = torch.distributions.Normal(means, (0.5 * logvars).exp()).log_prob(z)
    mixture, prior = each.logsumexp(0) - math.log(2), torch.distributions.Normal(0.0, 1.0).log_prob(z)
    aggregate = torch.trapezoid(mixture.exp() * (mixture - prior), z)
    information = torch.trapezoid(each.exp() * (each - mixture), z).mean()
    torch.testing.assert_close(information + aggregate, variational.divergence(means, logvars).sum(1).mean())
    numbers = torch.from_numpy(keyed.normal(400, 0, np.arange(2))).T[..., None]
    draws = means + (0.5 * logvars).exp() * numbers
    found = torch.tensor([variational.divergence_parts(means, logvars, x) for x in draws]).mean(0)
    torch.testing.assert_close(found, torch.stack([information, aggregate]), rtol=0, atol=0.1)
    far = 10.0 * torch.arange(7).double()[:, None]
    assert float(variational.divergence_parts(far, far * 0, far)[0]) == pytest.approx(math.log(7))


@pytest.mark.parametrize("mean", [-0.3, 0.0, 0.41, 1.2])
@pytest.mark.parametrize("scale", [-6.0, -3.0, 1.0])
def test_a_logistic_pixel_has_256_levels(mean, scale):
    """Its probabilities sum to 1, and are the differences of sigmoids wherever those can be computed."""
    logistic = pixels.Logistic().double()
    with torch.no_grad():
        logistic.log_scale.fill_(scale)
    levels = torch.arange(256).double() / 255
    found = logistic.log_density(levels, torch.full((256,), mean).double())
    torch.testing.assert_close(found.logsumexp(0).exp(), torch.ones(()).double(), rtol=1e-12, atol=0)
    edges = torch.sigmoid((torch.arange(-0.5, 256).double() / 255 - mean) / logistic.log_deviation().exp())
    edges[0], edges[-1] = 0, 1
    known = edges.diff() > 1e-9
    torch.testing.assert_close(found[known].exp(), edges.diff()[known], rtol=1e-6, atol=0)
    assert torch.isfinite(found).all()


def test_one_draw_is_the_elbo_and_fifty_are_tighter(world):
    one, fifty = (
        objectives.build(IWAE(latent=4, decoder=NARROW, samples=k, single=s), setup("vae", world)).double()
        for k, s in ((50, 1.0), (50, 0.0))
    )
    b = batch(one, list(range(30)), progress=0.5)
    single = one(b)
    torch.testing.assert_close(single.low.mean(), single.loss)
    torch.testing.assert_close(single.loss, -single.scalars["vae/elbo"])
    many = fifty(b)
    assert float(many.scalars["vae/iwae"]) > float(many.scalars["vae/elbo"])
    _, ratio, _, logvar, z = one.embed(b)
    torch.testing.assert_close(ratio[:, 0], (0.5 * (b.normal("epsilon", 1, 4)[:, 0].square() - z**2 + logvar)).sum(1))


def test_a_doubly_reparameterised_gradient_is_the_same_in_the_mean_with_less_noise(world):
    found = {}
    for gradient in ("reparameterised", "doubly_reparameterised"):
        settings = IWAE(latent=4, decoder=NARROW, samples=5, binarisation="threshold", gradient=gradient)
        objective = objectives.build(settings, setup("iwae", world, Norm(kind="none"))).double()
        with torch.no_grad():
            objective.mean.projection.weight.mul_(3)
        b, wanted = batch(objective, [1, 2]), (objective.mean.projection.bias, objective.decoder[0].weight)
        draws = [torch.autograd.grad(objective(replace(b, epoch=i)).loss, wanted) for i in range(60)]
        found[gradient] = [torch.stack(column).flatten(1) for column in zip(*draws, strict=True)]
    (encoder, decoder), (encoder2, decoder2) = found.values()
    torch.testing.assert_close(decoder, decoder2, rtol=1e-9, atol=1e-12)
    error = ((encoder.var(0) + encoder2.var(0)) / len(encoder)).sqrt()
    assert ((encoder.mean(0) - encoder2.mean(0)).abs() < 4 * error).all()
    assert float(encoder2.std(0).mean()) < 0.5 * float(encoder.std(0).mean())


def test_an_image_is_binary_where_it_says_so(world):
    objective = make("iwae", world)
    b = batch(objective, [3, 1])
    states = objective.target(b)
    assert states.shape == b.views[0].shape and set(states.unique().tolist()) == {0.0, 1.0}
    assert not torch.equal(states, objective.target(replace(b, epoch=9)))
    plain = make("vae", world)
    assert torch.equal(plain.target(b), b.views[0])
    assert IMAGE.side == 8 and isinstance(b, Batch)


def test_balls_have_a_panel_for_each_form_and_its_number(tmp_path, world):
    forms = {"noise": {"beta": 0.0}, "stiff": {"beta": 2.0}, "soft": {"beta": 1.0}, "whole": {"variance": "learned"}}
    for i, (name, form) in enumerate(forms.items()):
        settings = VAE(**{"latent": 2, "decoder": NARROW, "variance": "one"} | form)
        objective, spec = objectives.build(settings, setup("vae", world)), setup("vae", world)
        with torch.no_grad():
            objective.mean.projection.weight.mul_(5 - i)
        models.write(tmp_path / name, models.state(objective), models.spec(objective, spec))
        rows = "".join(f'{{"step": {j}, "vae/means_rms": {j}}}\n' for j in range(8))
        (tmp_path / name / METRICS).write_text(rows)
    b = batch(objective, list(range(20)), dtype=torch.float32)
    picture, found = balls.sheet([tmp_path / name for name in forms], b, [str(i % 3) for i in range(20)])
    assert picture.pixels.shape[1] > 2.5 * picture.pixels.shape[0]
    assert found["balls_growth"] == [0.5, 2.5, 4.5, 6.5] and found["balls_strengths"] == [1.0, 2.0]
    means = [objectives.load(tmp_path / name).encode(b.views[0])[0] for name in ("soft", "stiff")]
    assert found["balls_rms"] == pytest.approx([float(mean.square().mean() ** 0.5) for mean in means])
    mean, deviation = torch.tensor([[0.0, 2.0], [0.0, -2.0]]), torch.tensor([[1.0, 0.5], [1.0, 0.5]])
    assert balls.second_moment(mean, deviation) == 4.25 and found["balls_moment"] > 0


def test_springs_alone_are_half_a_square(world):
    """Noise of width one: KL = mu^2 / 2; without a penalty the loss is the reconstruction's alone."""
    settings = VAE(latent=4, decoder=NARROW, variance="one", beta=0)
    free = objectives.build(settings, setup("vae", world)).double()
    b = batch(free, [3, 1, 7])
    step = free(b)
    mean, logvar = free.encode(b.views[0])
    assert mean.shape == (3, 4) and not logvar.any()
    torch.testing.assert_close(step.loss, step.scalars["vae/recon"])
    torch.testing.assert_close(step.scalars["vae/kl"], 0.5 * mean.square().sum(1).mean().detach())
    found = free.diagnostics(step, b)["vae/means_rms"]
    torch.testing.assert_close(found, mean.square().mean().sqrt().detach())
