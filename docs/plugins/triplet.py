"""An objective of one's own: the soft-margin triplet loss (Hermans, Beyer & Leibe 2017, arXiv 1703.07737, eq. 5)."""

import torch
from torch import nn
from torch.nn.functional import softplus

import pipeline
from pipeline.nets import seeded, trunks
from pipeline.objectives.energies import full_precision, unit


class Settings(pipeline.ObjectiveSettings):
    """What a config can say of it; `pipeline settings docs/plugins/triplet.py` prints this."""

    dim: int = 64
    """Dimensions of an embedding."""
    temperature: float = 0.2
    """Divides the squared distances, 0 to 4."""


class Triplet(pipeline.Objective):
    """E(x, y) = |f(x) - f(y)|^2 / T on unit vectors: low for two views of an image, high for views of two images.

    L = mean over images i and others j of log(1 + exp(E(x_i, y_i) - E(x_i, y_j))), over the whole global batch.
    """

    Settings = Settings
    coupled = True

    def __init__(self, settings: Settings, setup):
        super().__init__()
        self.settings, self.world = settings, setup.world
        self.trunk = trunks.build(setup.net, setup.image, setup.world, setup.seed)
        with seeded(setup.seed, "init", "head"):  # the same first weights whatever was drawn before
            self.head = nn.Linear(self.trunk.features, settings.dim)

    def embed(self, batch: pipeline.Batch):
        """-> the unit rows of each view, [B, dim] twice."""
        return tuple(unit(self.head(self.trunk(view))) for view in batch.views)

    def score(self, embedded, batch: pipeline.Batch) -> pipeline.Step:
        """low [B], high [B, global B]: infinite for the image itself, which is no negative."""
        x, y = embedded
        with full_precision(x):  # under bf16 energies and the loss stay in float32
            everyone = self.world.gather(y)
            own = batch.ids[:, None] == self.negative_ids(batch)
            low = (2 - 2 * (x * y).sum(1)) / self.settings.temperature
            high = ((2 - 2 * x @ everyone.T) / self.settings.temperature).masked_fill(own, torch.inf)
            loss = (softplus(low[:, None] - high).sum(1) / (~own).sum(1).clamp_min(1)).mean()
            return pipeline.Step(loss, low, high)

    def negative_ids(self, batch: pipeline.Batch):
        """The images of the columns of ``high``."""
        return self.world.gather(batch.ids)

    @property
    def encoder(self) -> nn.Module:
        return self.trunk
