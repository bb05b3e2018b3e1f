"""log p(x) of a variational autoencoder by importance sampling, beside pythae's `get_nll` on the same networks."""

import time
from typing import Any

import numpy as np
import torch

from benchmarks.rounds import compare, rounds
from pipeline import keyed, objectives
from pipeline.evaluation import importance
from pipeline.image import Image
from pipeline.objectives.base import Setup
from pipeline.objectives.variational import VAE
from pipeline.settings import objectives as kinds
from pipeline.settings.nets import MLP
from pipeline.world import World

IMAGES, DRAWS, TOGETHER = 20, 1000, 100
"""Images, draws of each, and how many of these pythae decodes at once, as is its default."""
CLOSE = 0.1
"""Nats an image by which two estimates of so few draws may differ."""


def model(device: str) -> VAE:
    """Untrained, of MNIST's size: 784-500-500-50 and back."""
    settings = kinds.VAE(latent=50, binarisation="threshold", decoder=kinds.Decoder(width=500))
    setup = Setup(Image(1, 28, (0.1,), (0.3,)), IMAGES, MLP(width=500), World.single(device=device), 0)
    made: Any = objectives.build(settings, setup)
    return made.to(device).eval().requires_grad_(False)


def theirs(ours: VAE) -> Any:
    """pythae's model around the same networks."""
    from pythae.models import VAE as Peer
    from pythae.models import VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    class Encoder(BaseEncoder):
        def forward(self, x):
            mean, logvar = ours.encode(x)
            return ModelOutput(embedding=mean, log_covariance=logvar)

    class Decoder(BaseDecoder):
        def forward(self, z):
            return ModelOutput(reconstruction=ours.decode(z))

    config = VAEConfig(input_dim=(1, 28, 28), latent_dim=50, reconstruction_loss="bce")
    return Peer(config, Encoder(), Decoder())


@torch.no_grad()
def importance_sampling() -> dict:
    """The figure, on a GPU where there is one. Raises AssertionError where both do not come to the same."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    ours = model(device)
    peer = theirs(ours)
    ids = np.arange(IMAGES)
    numbers = torch.from_numpy(keyed.uniform(784, "likelihood", ids)).view(IMAGES, 1, 28, 28)
    images = (numbers < 0.13).float().to(device)

    def at_once() -> float:
        return float(importance.estimate(ours, images, ids, DRAWS, 0).log_likelihood.mean())

    def get_nll() -> float:
        return float(peer.get_nll(images, DRAWS, TOGETHER))

    assert abs(at_once() - get_nll()) < CLOSE, (at_once(), get_nll())
    print(f"\nlog p(x) of {IMAGES} images, {DRAWS} draws each, on {device}: {at_once():.3f} and {get_nll():.3f}")
    clock = time.perf_counter if device == "cuda" else time.process_time
    seconds = rounds({f.__name__: f for f in (at_once, get_nll)}, 5, clock)
    return compare(seconds, IMAGES * DRAWS, "draws/s", "at_once", "get_nll")
