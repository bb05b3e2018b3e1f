"""Energies of images against those of their neighbours, which differ in one pixel: no partition function, no chain.

D_i(x) = E(x with pixel i flipped) - E(x), so that p(x_i | all others) = sigmoid(D_i).
"""

from abc import ABC, abstractmethod

from torch import Tensor
from torch.nn.functional import softplus

from pipeline.objectives.base import Batch, Step
from pipeline.objectives.densities import Density
from pipeline.objectives.energies import full, full_precision
from pipeline.settings import densities as kinds


class Neighbours(Density, ABC):
    """An objective of the energies of images and of all their neighbours: ``losses``."""

    def embed(self, batch: Batch) -> tuple[Tensor, ...]:
        """-> also what flips add to energies, [B, D]."""
        x, *rows = super().embed(batch)
        with full_precision(x):
            return x, *rows, self.net.flips(full(x))

    @abstractmethod
    def losses(self, low: Tensor, high: Tensor) -> Tensor:
        """Of energies [B] and of their neighbours' [B, D] -> [B]."""

    def score(self, embedded: tuple[Tensor, ...], batch: Batch) -> Step:
        """low [B], high [B, D]."""
        _, energy, hidden, flips = embedded
        # Only differences count, and theirs is the gradient: that of two energies is larger, and nearly cancels.
        low = energy.detach().requires_grad_()
        high = low.detach()[:, None] + flips
        loss = self.losses(low, high).mean() + self.penalty(energy, energy[:, None] + flips)
        return Step(loss, low, high, self.scalars(low.detach(), high.detach()), self.statistics(hidden))

    def scalars(self, low: Tensor, high: Tensor) -> dict[str, Tensor]:
        """The share of pixels whose flip would lower the energy."""
        return {"density/unlikely": (high < low[:, None]).to(low.dtype).mean()}

    def energy_count(self, share: int, batch: int) -> int:
        return share * self.net.visible


class PseudoLikelihood(Neighbours):
    """Pseudo-likelihood (Besag 1975): L = - sum_i log p(x_i | all others) = sum_i softplus(-D_i), with E(x) and E of
    its neighbours. No bound of the likelihood."""

    Settings = kinds.PseudoLikelihood

    def losses(self, low: Tensor, high: Tensor) -> Tensor:
        return softplus(low[:, None] - high).sum(1)


class RatioMatching(Neighbours):
    """Ratio matching (Hyvarinen 2007, "Some extensions of score matching", eq. 17): L = sum_i sigmoid(-D_i)^2, the
    squared distance of each p(x_i | all others) from one. Its gradient vanishes for pixels that are hopelessly wrong.
    """

    Settings = kinds.RatioMatching

    def losses(self, low: Tensor, high: Tensor) -> Tensor:
        return (low[:, None] - high).sigmoid().square().sum(1)


class MPF(Neighbours):
    """Minimum probability flow (Sohl-Dickstein, Battaglino & DeWeese 2011, arXiv 0906.4779, eq. 10): L = sum_i
    exp(-D_i / 2), what flows from an image to its neighbours.

    Neighbours that are data themselves count as others do. The paper leaves them out, which is the same where no two
    images are neighbours; where data come from few states, their flows cancel at the truth only if they are there.
    """

    Settings = kinds.MPF
    settings: kinds.MPF

    def losses(self, low: Tensor, high: Tensor) -> Tensor:
        half, most = (low[:, None] - high) / 2, self.settings.clamp
        return (half.clamp(max=most).exp() * (1 + (half - most).clamp(min=0))).sum(1)

    def scalars(self, low: Tensor, high: Tensor) -> dict[str, Tensor]:
        beyond = (low[:, None] - high) / 2 > self.settings.clamp
        return super().scalars(low, high) | {"density/clamped": beyond.to(low.dtype).mean()}
