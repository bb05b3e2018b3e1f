"""Barlow Twins (Zbontar et al. 2021, arXiv 2103.03230): what two views' dimensions have in common is the identity."""

from torch import Tensor
from torch.nn.functional import normalize

from pipeline.objectives.base import Batch, Step
from pipeline.objectives.energies import full_precision
from pipeline.objectives.regularised import Regularised, covariances
from pipeline.settings.joint_embeddings import BarlowTwins as Settings


class BarlowTwins(Regularised):
    """Eq. 1: L = sum_i (1 - C_ii)^2 + lambda sum_i sum_{j != i} C_ij^2.

    C_ij (eq. 2) is the correlation, over the global batch, of dimension i of the first view's embeddings and dimension
    j of the second's. The energy of an image is half the mean squared difference of its two embeddings in standard
    units: its mean over the batch is the mean of 1 - C_ii.
    """

    Settings = Settings

    def score(self, embedded: tuple[Tensor, ...], batch: Batch) -> Step:
        (rows,) = embedded
        with full_precision(rows):
            everyone = self.world.gather(rows)
            standard = normalize(everyone - everyone.mean(0), dim=0)  # columns of length 1
            own, others = covariances(*standard.unbind(1))
            redundancy = others.square().sum()
            volume = self.settings.redundancy * redundancy
            mine = standard[self.world.rank * len(rows) :][: len(rows)]
            low = (mine[:, 0] - mine[:, 1]).square().mean(1) * len(everyone) / 2
            unlimited = redundancy / max(1, self.dim * (self.dim - 1))
            scalars = {"learn/redundancy_loss": redundancy, "collapse/unlimited": unlimited}
            return self.step(rows, (1 - own).square().sum() + volume, low, volume, scalars)
