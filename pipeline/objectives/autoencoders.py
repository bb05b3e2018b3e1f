"""Autoencoders: the energy of an image is what its way through a narrow latent loses."""

from typing import Any

import torch
from torch import Tensor, nn

from pipeline.nets import decoders, seeded, trunks
from pipeline.objectives.base import PATIENCE_STEPS, Batch, Objective, Setup, Sign, Step
from pipeline.objectives.energies import directions, full
from pipeline.objectives.latents import interpolations, reconstructions
from pipeline.settings import objectives as kinds
from pipeline.sheets import Picture
from pipeline.tags import NARROW

SHOWN, PATHS, PATH_STEPS = 32, 8, 10  # images reconstructed; paths between images, and images of a path


class Mean(nn.Module):
    """The first ``latent`` outputs of an encoder: what is probed and exported of an autoencoder."""

    def __init__(self, trunk: Any, outputs: int, latent: int):
        super().__init__()
        self.trunk, self.projection, self.features = trunk, nn.Linear(trunk.features, outputs), latent

    def outputs(self, images: Tensor) -> Tensor:
        """Images in [0, 1], [B, C, H, W] -> [B, outputs]."""
        return self.projection(self.trunk(images))

    def forward(self, images: Tensor) -> Tensor:
        """Images in [0, 1], [B, C, H, W] -> [B, latent]."""
        return self.outputs(images)[:, : self.features]


class AE(Objective):
    """Autoencoder (Rumelhart, Hinton & Williams 1986): E(y) = || y - Dec(Enc(y)) ||^2, summed over pixels.

    Nothing is pushed up: the volume of low energy is limited by the width of the latent.
    """

    Settings = kinds.AE
    normalised = False
    encoder_fields = ("latent",)
    parts = 1
    """Numbers the encoder gives for each latent unit."""

    def __init__(self, settings: Any, setup: Setup):
        super().__init__()
        self.settings, self.world, self.latent = settings, setup.world, settings.latent
        trunk = trunks.build(setup.net, setup.image, setup.world, setup.seed)
        with seeded(setup.seed, "init", "autoencoder"):
            self.mean = Mean(trunk, self.parts * self.latent, self.latent)
            self.decoder = decoders.build(settings.decoder, self.latent, setup.image)

    def code(self, images: Tensor) -> Tensor:
        """Images in [0, 1], [B, C, H, W] -> latent [B, latent]."""
        return self.mean(images)

    def decode(self, z: Tensor) -> Tensor:
        """Latent [B, latent] -> images [B, C, H, W], in [0, 1] but for what an unbounded decoder overshoots."""
        return self.decoder(z)

    def reconstruct(self, images: Tensor) -> Tensor:
        return self.decode(self.code(images))

    def corrupt(self, batch: Batch) -> Tensor:
        """What the encoder is shown of the batch's images."""
        return batch.views[0]

    def embed(self, batch: Batch) -> tuple[Tensor, ...]:
        """-> energies [B] and codes [B, latent]."""
        z = self.code(self.corrupt(batch))
        error = full(batch.views[0]) - full(self.decode(z))
        return error.square().flatten(1).sum(1), full(z)

    def score(self, embedded: tuple[Tensor, ...], batch: Batch) -> Step:
        low, z = embedded
        scalars = {"ae/error": low.detach().mean()}
        return Step(low.mean(), low, low.new_empty(len(low), 0), scalars, per_sample={"codes": z.detach()})

    def diagnostics(self, step: Step, batch: Batch) -> dict[str, Tensor]:
        return {"energy/volume": directions(self.world.gather(step.per_sample["codes"]))}

    def collapse_signs(self, scalars: dict[str, float]) -> dict[str, Sign]:
        """Codes that are one point or, of several units, one line."""
        count, least = scalars["energy/volume"], min(NARROW, self.latent)
        text = f"the codes fill {count:.2g} directions of {self.latent}"
        return {"narrow": Sign(text, 4 * PATIENCE_STEPS)} if count < 0.99 * least else {}

    @torch.no_grad()
    def figures(self, images: Tensor, classes: list[str], seed: int) -> dict[str, Picture]:
        """Images over their reconstructions, and straight paths in latent space between some of them."""
        decoded = self.reconstruct(images)
        errors = (images - decoded).square().flatten(1).mean(1)
        shown = images[: 2 * PATHS]
        first, last = self.code(shown)[: 2 * (len(shown) // 2)].chunk(2)
        share = torch.linspace(0, 1, PATH_STEPS, device=images.device).view(1, -1, 1)
        paths = self.decode((first[:, None] * (1 - share) + last[:, None] * share).flatten(0, 1))
        return {
            "reconstructions": reconstructions(images[:SHOWN], decoded[:SHOWN], errors),
            "interpolations": interpolations(shown, paths, classes),
        }

    @property
    def encoder(self) -> nn.Module:
        return self.mean


class DAE(AE):
    """Denoising autoencoder (Vincent et al. 2008): E = || y - Dec(Enc(y + noise)) ||^2, noise drawn afresh.

    Pulled back from everywhere around the data, whatever the width of the latent.
    """

    Settings = kinds.DAE
    settings: kinds.DAE

    def corrupt(self, batch: Batch) -> Tensor:
        images = batch.views[0]
        return images + self.settings.noise * batch.normal("noise", *images.shape[1:])
