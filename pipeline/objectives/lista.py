"""LISTA as an objective: a network that predicts the sparse code of a signal (Gregor & LeCun, ICML 2010)."""

from torch import Tensor, nn

from pipeline.objectives.base import Batch, Objective, Setup, Sign, Step
from pipeline.objectives.energies import full, full_precision
from pipeline.settings.objectives import LISTA as Settings
from pipeline.sparse import lista


class LISTA(Objective):
    """E(y, z) = 1/2 ||y - D z||^2 + penalty ||z||_1 at z = LISTA(y), or the squared distance to the exact code.

    Gregor & LeCun's eq. 1, with the exact code as target (their eq. 11) or without targets, on the energy itself.
    Views: signals [B, p]; for the code loss also their codes [B, k]. What limits the volume of low energy is the
    penalty on z.
    """

    Settings = Settings
    normalised = False

    def __init__(self, settings: Settings, setup: Setup):
        super().__init__()
        if setup.lasso is None:
            raise TypeError("LISTA needs the lasso whose codes it predicts")
        self.settings = settings
        self.net = lista.LISTA(*setup.lasso, settings.layers, settings.tied)

    def embed(self, batch: Batch) -> tuple[Tensor, ...]:
        """-> energies [B], codes [B, k] and, for the code loss, their squared distance to the exact ones [B]."""
        codes = full(self.net(batch.views[0]))
        with full_precision(codes):
            low = self.net.energy(full(batch.views[0]), codes)
            if self.settings.loss == "energy":
                return low, codes
            return low, codes, (codes - batch.views[1]).square().sum(1)

    def score(self, embedded: tuple[Tensor, ...], batch: Batch) -> Step:
        low, codes, *distance = embedded
        detached = codes.detach()
        scalars = {
            "codes/energy": low.detach().mean(),
            "codes/nonzero": (detached != 0).to(low.dtype).sum(1).mean(),
            "energy/volume": detached.abs().sum(1).mean(),
        }
        loss = distance[0].mean() if distance else low.mean()
        return Step(loss, low, low.new_empty(len(low), 0), scalars)

    def collapse_signs(self, scalars: dict[str, float]) -> dict[str, Sign]:
        return {"zero": Sign("all codes are zero")} if scalars["codes/nonzero"] == 0 else {}

    @property
    def encoder(self) -> nn.Module:
        return self.net
