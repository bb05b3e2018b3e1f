"""Energies with a latent that is inferred: the free energy of an image is the least over codes."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from pipeline import keyed
from pipeline.nets.latent_energies import Inference, LatentEnergy
from pipeline.objectives import completions
from pipeline.objectives.base import PATIENCE_STEPS, Batch, Objective, Setup, Sign, Step
from pipeline.objectives.energies import full, full_precision
from pipeline.objectives.latents import reconstructions
from pipeline.objectives.memory import Queue
from pipeline.settings.latent_energies import Latent as Settings
from pipeline.sheets import Picture
from pipeline.sparse import solvers
from pipeline.tensors import send

KEPT = 1024
"""Codes of the last images that are kept, for the completion of others."""
FEW, MANY = 8, 64
"""Codes whose completions are shown, and those over whose completions a mean is taken."""
SHOWN, COMPLETED, SWEPT = 32, 10, 256
"""Images that are shown decoded and completed, and those whose energies are drawn along the penalty."""
LOST = 0.1
"""Size of codes over that of their noise, below which they say nothing."""
PENALTIES = (0, 0.03, 0.1, 0.3, 1, 3, 10, 30)
"""Of inference, times the training's."""


class Latent(Objective):
    """E(x, y, z) = C(y, Dec(Pred(x), z)) + penalty R(z), F(x, y) = min over z of it, loss F (LeCun et al. 2006, sec.
    4.1): dF/dw = dE/dw at the minimum, where z needs no gradient of its own (the envelope theorem).

    With ``prediction`` E has 1/2 ||z - Enc(x, y)||^2 times it, too (Kavukcuoglu, Ranzato & LeCun 2008, arXiv
    1010.3467, eq. 3). Nothing is pushed up: R limits the volume of low energies.
    """

    Settings = Settings
    settings: Settings
    normalised = False
    encoder_fields = tuple(name for name in Settings.model_fields if name != "kind")

    def __init__(self, settings: Settings, setup: Setup):
        super().__init__()
        self.settings, self.world = settings, setup.world
        self.net = LatentEnergy(settings, setup.net, setup.image, setup.world, setup.seed)
        self.codes = None
        if settings.condition != "none":
            self.codes, self.commit_changes = Queue(KEPT, self.net.units, setup.seed), ("codes.",)

    def hidden(self, batch: Batch) -> Tensor:
        """Which pixels are y, bool [B or 1, 1, H, W]."""
        if self.settings.condition == "random":
            return batch.uniform("mask", 1, *batch.views[0].shape[2:]) < 0.5
        return self.net.hidden(batch.views[0])

    def infer(self, batch: Batch, penalty: float | None = None) -> Inference:
        """``penalty``: another than the settings'."""
        images, noise = full(batch.views[0]), None
        if self.settings.regulariser == "noise":
            noise = self.settings.width * batch.normal("noise", self.net.units)
        with full_precision(images):
            return self.net.infer(images, self.hidden(batch), noise, penalty)

    def embed(self, batch: Batch) -> tuple[Tensor, ...]:
        """-> energies [B], codes [B, k], costs [B] and the encoder's codes [B, k]."""
        at = self.infer(batch)
        return at.low, at.z, at.cost, at.start

    def score(self, embedded: tuple[Tensor, ...], batch: Batch) -> Step:
        low, z, cost, start = embedded
        scalars = {
            "latent/cost": cost.detach().mean(),
            "latent/nonzero": (z != 0).to(low.dtype).mean(),
            "latent/size": z.square().mean().sqrt(),
            "energy/volume": self.net.regulariser(z).mean(),
        }
        if self.settings.prediction:
            error = (z - start.detach()).square().sum()
            scalars["latent/unpredicted"] = error / z.square().sum().clamp(min=torch.finfo(z.dtype).tiny)
        pending = {}
        if self.codes is not None:
            pending = {"codes": self.world.gather(z), "ids": self.world.gather(batch.ids)}
        return Step(low.mean(), low, low.new_empty(len(low), 0), scalars, pending)

    @torch.no_grad()
    def commit(self, pending: dict[str, Tensor], batch_step: int, progress: float = 0.0) -> None:
        if self.codes is not None:
            self.codes.write(pending["codes"], pending["ids"], batch_step)

    @torch.no_grad()
    def diagnostics(self, step: Step, batch: Batch) -> dict[str, Tensor]:
        """How far the energies may be from the least, where that can be told."""
        lasso = self.net.lasso(full(batch.views[0]))
        if lasso is None:
            return {}
        z = self.infer(batch).z
        gap, _ = solvers.certify(*lasso, z, self.settings.penalty)
        return {"latent/gap": (gap.mean() / lasso[0].double().square().sum(1).mean()).to(z.dtype)}

    def collapse_signs(self, scalars: dict[str, float]) -> dict[str, Sign]:
        """A latent that says nothing."""
        signs, size = {}, scalars["latent/size"]
        if size == 0:
            signs["zero"] = Sign("all codes are zero: the penalty is too large", 4 * PATIENCE_STEPS)
        elif self.settings.regulariser == "noise" and size < LOST * self.settings.width:
            text = f"codes of size {size:.2g} are lost in their noise: the penalty is too large"
            signs["lost"] = Sign(text, 4 * PATIENCE_STEPS)
        return signs

    @property
    def encoder(self) -> nn.Module:
        return self.net

    # ------------------------------------------------------------------------------------------------ of a trained one
    def batch(self, images: Tensor, seed: int) -> Batch:
        """Of images [n, C, H, W] that no loader gave."""
        return Batch((images,), torch.arange(len(images), device=images.device), seed=seed, dtype=images.dtype)

    def others(self, images: Tensor, seed: int) -> dict[str, Tensor]:
        """What is no image, made of images [n, C, H, W]: each pixel of another one, and halves of two; where y is
        always the same part of an image, that part of another."""
        part = self.net.hidden(images)
        if self.settings.condition in ("none", "random"):
            part = torch.arange(images.shape[-1], device=images.device) >= images.shape[-1] // 2
        rows = keyed.uniform(len(images), seed, "noise", np.arange(images[0, 0].numel())).argsort(1).T.copy()
        index = send(rows, images.device)[:, None].expand(-1, images.shape[1], -1)
        noise = images.flatten(2).gather(0, index).view_as(images)
        return {"noise": noise, "halves": torch.where(part, images.roll(1, 0), images)}

    def draw_codes(self, count: int, *key: int | str) -> Tensor:
        """Codes of training images, [count, k], of those that are kept."""
        assert self.codes is not None
        written = torch.nonzero(self.codes.steps >= 0)[:, 0]
        drawn = keyed.uniform(count, *key) * max(1, len(written))
        places = send(drawn.astype(np.int64), written.device)
        return self.codes.keys[written[places] if len(written) else places]

    def complete(self, batch: Batch, codes: Tensor) -> Tensor:
        """The batch's images, their hidden part as each of the codes [K, k] has it: [K, n, C, H, W]."""
        images, hidden = batch.views[0], self.hidden(batch)
        features = self.net.context(images, hidden)
        filled = [self.net.decode(z.expand(len(images), -1), features) for z in codes]
        return torch.stack([torch.where(hidden, decoded, images) for decoded in filled])

    def completions(self, batch: Batch) -> tuple[Tensor, Tensor, dict[str, float]]:
        """The mean of `MANY` completions of the batch's images [n, C, H, W], and `FEW` other ones [K, n, C, H, W]; for
        which share of the images one of the few is nearer than the mean, and the squared distance of the nearest over
        that of the mean: where codes say nothing, the first is chance, and the second 1."""
        mean = self.complete(batch, self.draw_codes(MANY, batch.seed, "mean")).mean(0)
        few = self.complete(batch, self.draw_codes(FEW, batch.seed, "few"))
        of_mean, of_few = ((x - batch.views[0]).square().flatten(-3).sum(-1) for x in (mean, few))
        nearest = of_few.amin(0)
        share, ratio = (nearest < of_mean).double().mean(), nearest.mean() / of_mean.mean()
        return mean, few, {"latent/nearer": float(share), "latent/nearest": float(ratio)}

    @torch.no_grad()
    def measures(self, images: Tensor, seed: int) -> dict[str, float]:
        """How well free energies tell images from what is none; how near some completion is to the image."""
        batch = self.batch(images, seed)
        low = self.infer(batch).low
        found = {
            f"latent/auroc_{name}": auroc(low, self.infer(replace(batch, views=(other,))).low)
            for name, other in self.others(images, seed).items()
        }
        if self.codes is not None:
            found |= self.completions(batch)[2]
        return found

    @torch.no_grad()
    def figures(self, images: Tensor, classes: list[str], seed: int) -> dict[str, Picture]:
        """Images as they are decoded, and their energies along the penalty; completions, and atoms of a dictionary."""
        batch = self.batch(images, seed)
        hidden = self.hidden(batch)
        decoded = self.net.decode(self.infer(batch).z, self.net.context(images, hidden))
        whole = torch.where(hidden, decoded, images)
        errors = ((whole - images).square() * hidden).flatten(1).sum(1) / hidden.expand_as(images).flatten(1).sum(1)
        figures = {
            "reconstructions": reconstructions(images[:SHOWN], whole[:SHOWN], errors),
            "latent/penalties": self.along_penalty(self.batch(images[:SWEPT], seed)),
        }
        if self.codes is not None:
            mean, few, found = self.completions(batch)
            some = (images[:COMPLETED], hidden[:COMPLETED], mean[:COMPLETED], few[:, :COMPLETED])
            share, ratio = found.values()
            figures["latent/completions"] = completions.completions(*some, share, ratio, len(images))
        if (weight := self.net.atoms()) is not None:
            figures["latent/atoms"] = completions.atoms(weight)
        return figures

    def along_penalty(self, batch: Batch) -> Picture:
        """Free energies of images and of what is none, by the penalty of inference."""
        sets = {"test images": batch.views[0]} | self.others(batch.views[0], batch.seed)
        penalties = [factor * (self.settings.penalty or 0.1) for factor in PENALTIES]
        energies = {
            name: [self.infer(replace(batch, views=(x,)), penalty).low for penalty in penalties]
            for name, x in sets.items()
        }
        test = energies["test images"]
        told = {
            name: [auroc(low, high) for low, high in zip(test, values, strict=True)]
            for name, values in energies.items() if name != "test images"
        }  # fmt: skip
        means = {name: [float(low.mean()) for low in values] for name, values in energies.items()}
        return completions.along_penalty(penalties, means, told, self.settings.penalty)


def auroc(low: Tensor, high: Tensor) -> float:
    """The share of pairs of an energy of ``low`` [n] and one of ``high`` [m] in which the latter is higher; ties are
    half."""
    difference = high[None] - low[:, None]
    return float(((difference > 0).double() + 0.5 * (difference == 0)).mean())
