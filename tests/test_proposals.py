"""What an autoencoder draws as the noise of noise-contrastive estimation, and how likely it finds an image."""

from typing import Any

import pytest
import torch

from pipeline import config, objectives
from pipeline.errors import ConfigError
from pipeline.image import Image
from pipeline.nets.energies import every_state
from pipeline.objectives import models
from pipeline.objectives.base import Batch, Setup
from pipeline.objectives.proposals import Generated
from pipeline.settings.densities import NCE
from pipeline.settings.nets import MLP, RBM
from pipeline.settings.objectives import VAE, Decoder
from pipeline.world import World

IMAGE = Image(1, 3, (0.5,), (0.5,))
WORLD = World.single(device="cpu")


@pytest.fixture
def model() -> Any:
    """An autoencoder of 3 x 3 binary pixels and one latent unit that matters."""
    settings = VAE(latent=1, decoder=Decoder(width=8), binarisation="dynamic")
    made: Any = objectives.build(settings, Setup(IMAGE, 9, MLP(width=8), WORLD, 0)).double()
    with torch.no_grad():
        for parameter in made.decoder.parameters():
            parameter.mul_(3)
    return made


def exact(model: Any) -> torch.Tensor:
    """log p(x) of all 2^9 images by a sum over a grid of the latent: [512]."""
    states = torch.cat(list(every_state(9, torch.zeros(1).double()))).view(512, 1, 3, 3)
    z = torch.linspace(-8, 8, 2001).double()
    log_prior = (-z.square() / 2).log_softmax(0)
    with torch.no_grad():
        likely = -model.negative_log_likelihood(states, z.view(1, -1, 1).expand(512, -1, -1))
    return (likely + log_prior).logsumexp(1)


def test_its_density_and_its_samples_are_the_models(model):
    log_p, proposal = exact(model), Generated(model, 1000, IMAGE.shape)
    assert float(log_p.exp().sum()) == pytest.approx(1, abs=1e-6)
    states = torch.cat(list(every_state(9, log_p)))
    found = proposal.log_density(states, Batch((), torch.arange(512), dtype=torch.float64))
    assert float((log_p.exp() * (found - log_p).abs()).sum()) < 0.05
    drawn = proposal.samples(Batch((), torch.arange(500), dtype=torch.float64), 40)
    numbers = (drawn.view(-1, 9).long() << torch.arange(9)).sum(1)
    wanted, often = 20_000 * log_p.exp(), log_p.exp() > 5 / 20_000
    squares = ((torch.bincount(numbers, minlength=512) - wanted)[often].square() / wanted[often]).sum()
    assert often.sum() > 50 and abs(squares - often.sum()) < 3.5 * (2 * often.sum()) ** 0.5


def test_a_finished_model_is_read_without_its_noise(model, tmp_path):
    setup = Setup(IMAGE, 9, RBM(hidden=4), WORLD, 0, noise=model.float())
    made: Any = objectives.build(NCE(model="vae"), setup)
    models.write(tmp_path, models.state(made), models.spec(made, setup))
    again: Any = models.load(tmp_path)
    assert torch.equal(again.net.weight, made.net.weight) and torch.equal(again.log_partition, made.log_partition)
    assert not any(name.startswith("proposal.") for name in models.state(made))


STAGES = """
stages:
  shards: {kind: pack}
  vae: {kind: pretrain, data: shards, net: {kind: mlp}, objective: {kind: vae, binarisation: BINARISATION}}
  nce: {kind: pretrain, data: shards, objective: {kind: nce, model: vae}}
"""


def test_its_binarisation_is_that_of_what_is_trained(tmp_path):
    place = tmp_path / "c.yaml"
    place.write_text(STAGES.replace("BINARISATION", "dynamic"))
    assert config.needs(config.load(str(place)).stages["nce"]) == ["shards", "vae"]
    place.write_text(STAGES.replace("BINARISATION", "static"))
    with pytest.raises(ConfigError, match=r"by vae, binarisation static; expected a vae or an iwae of bin"):
        config.load(str(place))
    place.write_text(STAGES.replace("model: vae", "model: vea").replace("BINARISATION", "dynamic"))
    with pytest.raises(ConfigError, match=r"nce\.objective\.model: no stage \"vea\""):
        config.load(str(place))


@pytest.mark.parametrize(
    ("objective", "text"),
    [
        ("grey_pcd", "trained at temperature 0.0001: -E is not the log of its density"),
        ("grey_cd, sampler: {kind: short_run}", "trained at temperature 1.25e-06"),
        ("score_matching", "trained by score_matching: its partition function is not estimated here"),
    ],
)
def test_no_likelihood_of_energies_of_another_temperature(objective, text, tmp_path):
    place = tmp_path / "c.yaml"
    place.write_text(
        "stages:\n  shards: {kind: pack}\n"
        f"  energy: {{kind: pretrain, data: shards, objective: {{kind: {objective}}}}}\n"
        "  drawn: {kind: generate, data: shards, model: energy, likelihood: {chains: 10}}\n"
    )
    with pytest.raises(ConfigError, match=text):
        config.load(str(place))
    place.write_text(place.read_text().replace(", likelihood: {chains: 10}", ""))
    config.load(str(place))
