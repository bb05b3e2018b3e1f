"""Energies as classifiers: what tells images from noise is the density itself."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pipeline.nets.energies import chances
from pipeline.objectives.base import PATIENCE_STEPS, Batch, Setup, Sign, Step
from pipeline.objectives.densities import Density
from pipeline.objectives.energies import full
from pipeline.objectives.proposals import Generated, IndependentPixels
from pipeline.settings import densities as kinds
from pipeline.settings import scores as continuous

ESTIMATE = 1000
"""Noise samples by which log Z is guessed at the start."""
EASY = 0.95
"""Accuracy above which noise is too easily told from data: what is left to be learned has hardly a gradient."""


class Noise(Density, ABC):
    """An objective of the energies of images and of noise that is drawn for each."""

    @abstractmethod
    def noise(self, x: Tensor, batch: Batch) -> Tensor:
        """Noise for states [B, D] -> [B, n, D]."""

    @abstractmethod
    def losses(self, low: Tensor, high: Tensor, *odds: Tensor) -> Tensor:
        """Of energies [B] and of their noise's [B, n] -> [B]; then come the ``odds``."""

    def odds(self, x: Tensor, noise: Tensor, batch: Batch) -> tuple[Tensor, ...]:
        """What else ``losses`` needs of states [B, D] and their noise [B, n, D]."""
        return ()

    def embed(self, batch: Batch) -> tuple[Tensor, ...]:
        """-> also the energies of the states' noise, [B, n], and their ``odds``."""
        x, *rows = super().embed(batch)
        noise = self.noise(x, batch)
        high = self.energy(noise.flatten(0, 1)).view(noise.shape[:2])
        return x, *rows, high, *self.odds(x, noise, batch)

    def score(self, embedded: tuple[Tensor, ...], batch: Batch) -> Step:
        """low [B], high [B, n]."""
        _, low, hidden, high, *odds = embedded
        loss = self.losses(low, high, *odds).mean() + self.penalty(low, high)
        scalars = self.scalars(low.detach(), high.detach(), *odds)
        return Step(loss, low, high, scalars, self.statistics(hidden))

    def scalars(self, low: Tensor, high: Tensor, *odds: Tensor) -> dict[str, Tensor]:
        """The share of images that are told from their noise."""
        return {"density/accuracy": (high > low[:, None]).to(low.dtype).mean()}

    def collapse_signs(self, scalars: dict[str, float]) -> dict[str, Sign]:
        accuracy = scalars["density/accuracy"]
        text = f"the noise is too easily told from data ({100 * accuracy:.1f} %): little is left to learn from it"
        return super().collapse_signs(scalars) | ({"easy": Sign(text, 4 * PATIENCE_STEPS)} if accuracy > EASY else {})

    def energy_count(self, share: int, batch: int) -> int:
        return share * self.settings.noise


class NCE(Noise):
    """Noise-contrastive estimation (Gutmann & Hyvarinen, JMLR 13, 2012, eq. 8): L = - log sigmoid(G(x)) - sum_n log
    sigmoid(-G(y_n)), with G = - E(x) - c - log q(x) - log n, c for log Z, and q independent pixels with the means of
    the training images, or a trained autoencoder.
    """

    Settings = kinds.NCE
    settings: kinds.NCE
    training_state = ("proposal.",)

    def __init__(self, settings: kinds.NCE, setup: Setup):
        super().__init__(settings, setup)
        if setup.noise is None:  # as it is where a finished model is read
            self.proposal = IndependentPixels(chances(self.net.visible, setup.pixel_means))
        else:
            self.proposal = Generated(setup.noise, settings.samples, setup.image.shape)
        with torch.no_grad():
            y, log_density = self.proposal.first(ESTIMATE, setup.seed)
            weights = -self.net.energy(y) - log_density
            self.log_partition = nn.Parameter(weights.logsumexp(0) - math.log(ESTIMATE))

    def noise(self, x: Tensor, batch: Batch) -> Tensor:
        return self.proposal.samples(batch, self.settings.noise).to(x.dtype)

    def odds(self, x: Tensor, noise: Tensor, batch: Batch) -> tuple[Tensor, ...]:
        """log q of states, [B], and of noise, [B, n]."""
        return self.proposal.log_density(x, batch), self.proposal.log_density(noise, batch)

    def logits(self, energies: Tensor, log_noise: Tensor) -> Tensor:
        """G of what has these energies and log q, of any shape."""
        return -energies - self.log_partition - log_noise - math.log(self.settings.noise)

    def losses(self, low: Tensor, high: Tensor, *odds: Tensor) -> Tensor:
        of_data, of_noise = odds
        return softplus(-self.logits(low, of_data)) + softplus(self.logits(high, of_noise)).sum(1)

    def scalars(self, low: Tensor, high: Tensor, *odds: Tensor) -> dict[str, Tensor]:
        """The share of images taken for images, and of noise for noise, in the mean of both; and c."""
        of_data, of_noise = odds
        of_data, of_noise = self.logits(low, of_data) > 0, self.logits(high, of_noise) < 0
        accuracy = (of_data.to(low.dtype).mean() + of_noise.to(low.dtype).mean()) / 2
        return {"density/accuracy": accuracy, "density/log_partition": self.log_partition.detach()}


class ConditionalNCE(Noise):
    """Conditional noise-contrastive estimation (Ceylan & Gutmann 2018, arXiv 1806.03664, eq. 12): L = 2 log(1 +
    exp(E(x) - E(y))), y the image with some pixels flipped, as likely from x as x from y. No partition function."""

    Settings = kinds.ConditionalNCE
    settings: kinds.ConditionalNCE

    def noise(self, x: Tensor, batch: Batch) -> Tensor:
        numbers = batch.uniform("noise", self.settings.noise, self.net.visible)
        return (x[:, None] - (numbers < self.settings.flips).to(x.dtype)).abs()

    def losses(self, low: Tensor, high: Tensor, *odds: Tensor) -> Tensor:
        return 2 * softplus(low[:, None] - high).mean(1)


class GreyConditionalNCE(ConditionalNCE):
    """Conditional NCE (Ceylan & Gutmann 2018, arXiv 1806.03664, eq. 12) of continuous images: L = 2 log(1 + exp(E(x) -
    E(y))), y = x + sigma e with Gaussian e."""

    Settings = continuous.GreyConditionalNCE
    settings: continuous.GreyConditionalNCE  # type: ignore[assignment]

    def states(self, batch: Batch) -> Tensor:
        """The batch's images themselves, [B, D]."""
        return full(batch.views[0]).flatten(1)

    def noise(self, x: Tensor, batch: Batch) -> Tensor:
        return x[:, None] + self.settings.deviation * batch.normal("noise", self.settings.noise, self.net.visible)
