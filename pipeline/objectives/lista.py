"""Networks that predict the sparse code of a signal (Gregor & LeCun, ICML 2010), of a dictionary that is given or of
one that is trained with them."""

from typing import Any

import torch
from torch import Tensor, nn

from pipeline.objectives.base import Batch, Objective, Setup, Sign, Step
from pipeline.objectives.energies import full, full_precision
from pipeline.settings import objectives as kinds
from pipeline.sparse import lista, proximal
from pipeline.sparse.solvers import soft_threshold


class Predictor(Objective):
    """What both have: the network, the lasso's energy of its codes, and the sign that it has given up."""

    normalised = False

    def __init__(self, settings: Any, setup: Setup):
        super().__init__()
        if setup.lasso is None:
            raise TypeError(f"{type(self).__name__} needs the lasso whose codes it predicts")
        self.settings = settings
        self.net = lista.build(settings, *setup.lasso)

    def scalars(self, energy: Tensor, codes: Tensor) -> dict[str, Tensor]:
        """Of codes [B, k] that the network predicts, and their energies [B]."""
        return {
            "codes/energy": energy.detach().mean(),
            "codes/nonzero": (codes.detach() != 0).to(codes.dtype).sum(1).mean(),
            "energy/volume": codes.detach().abs().sum(1).mean(),
        }

    def collapse_signs(self, scalars: dict[str, float]) -> dict[str, Sign]:
        return {"zero": Sign("all codes are zero")} if scalars["codes/nonzero"] == 0 else {}

    @property
    def encoder(self) -> nn.Module:
        return self.net


class LISTA(Predictor):
    """E(y, z) = 1/2 ||y - D z||^2 + penalty ||z||_1 at z = LISTA(y), or the squared distance to the exact code.

    Gregor & LeCun's eq. 1, with the exact code as target (their eq. 11) or without targets, on the energy itself.
    Views: signals [B, p]; for the code loss also their codes [B, k]. What limits the volume of low energy is the
    penalty on z.
    """

    Settings = kinds.LISTA

    def embed(self, batch: Batch) -> tuple[Tensor, ...]:
        """-> energies [B], codes [B, k] and what is minimised [B]: of the last layer or the mean of all of them, the
        energy, or the squared distance to the exact codes."""
        outputs = [full(z) for z in self.net.outputs(batch.views[0])]
        with full_precision(outputs[-1]):
            low = self.net.energy(full(batch.views[0]), outputs[-1])
            losses = [self.loss(z, batch) for z in outputs[-1 if self.settings.supervision == "last" else 0 :]]
            return low, outputs[-1], torch.stack(losses).mean(0)

    def loss(self, codes: Tensor, batch: Batch) -> Tensor:
        """Of a layer's codes [B, k] -> [B]."""
        if self.settings.loss == "energy":
            return self.net.energy(full(batch.views[0]), codes)
        return (codes - batch.views[1]).square().sum(1)

    def score(self, embedded: tuple[Tensor, ...], batch: Batch) -> Step:
        low, codes, losses = embedded
        return Step(losses.mean(), low, low.new_empty(len(low), 0), self.scalars(low, codes))


class PSD(Predictor):
    """F(y) = min over z of E(y, z) = 1/2 ||y - D z||^2 + penalty ||z||_1 + prediction / 2 ||z - LISTA(y)||^2, of which
    D and the network are trained (Kavukcuoglu, Ranzato & LeCun 2008, arXiv 1010.3467, eq. 3, with their encoder's
    place taken by LISTA's layers). Views: signals [B, p]."""

    Settings = kinds.PSD
    settings: kinds.PSD

    def infer(self, signals: Tensor, start: Tensor) -> Tensor:
        """The codes [B, k] of signals [B, p] that minimise E, from those that the network predicts."""
        atoms, start = self.net.atoms().detach(), start.detach()

        def smooth(z: Tensor) -> Tensor:
            error, away = signals - z @ atoms.T, z - start
            return (error.square().sum(1) + self.settings.prediction * away.square().sum(1)) / 2

        def threshold(z: Tensor, step: Tensor) -> Tensor:
            return soft_threshold(z, step * self.net.penalty)

        return proximal.minimise(smooth, threshold, start, self.settings.steps)

    def embed(self, batch: Batch) -> tuple[Tensor, ...]:
        """-> energies [B], the network's codes [B, k] and the lasso's energies of these [B]."""
        signals, start = full(batch.views[0]), full(self.net(batch.views[0]))
        with full_precision(signals):
            z = self.infer(signals, start)
            low = self.net.energy(signals, z) + self.settings.prediction / 2 * (z - start).square().sum(1)
            return low, start, self.net.energy(signals, start).detach()

    def score(self, embedded: tuple[Tensor, ...], batch: Batch) -> Step:
        low, start, energy = embedded
        return Step(low.mean(), low, low.new_empty(len(low), 0), self.scalars(energy, start))
