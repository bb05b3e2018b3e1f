"""LISTA: a few steps of ISTA as a network, trained to predict the sparse code (Gregor & LeCun, ICML 2010)."""

import torch
from torch import Tensor, nn

from pipeline.sparse.solvers import energy, soft_threshold


class LISTA(nn.Module):
    """Layers z <- soft_threshold(We y + S z, theta) from z = 0, initialised as ISTA on 1/2 ||y - D z||^2 +
    penalty ||z||_1.

    That is We = D'/L, S = I - D'D/L, theta = penalty/L, with L the largest eigenvalue of D'D. ``dictionary``: [p, k],
    atoms as columns. ``tied``: all layers share We, S and theta. theta is a softplus, so that it stays positive. The
    first layer has no S, since z is 0 there. ``learned``: the dictionary is a parameter, too, of which `atoms` are the
    columns scaled to norm 1.
    """

    dictionary: Tensor

    def __init__(
        self, dictionary: Tensor, penalty: float, layers: int = 3, tied: bool = False, learned: bool = False
    ):
        super().__init__()
        self.learned = learned
        self.penalty, self.layers, self.features = penalty, layers, dictionary.shape[1]
        own = 1 if tied else layers
        gram = dictionary.double().T @ dictionary.double()
        bound = torch.linalg.eigvalsh(gram)[-1]
        encode = (dictionary.double().T / bound).to(dictionary)
        inhibit = (torch.eye(len(gram), device=gram.device) - gram / bound).to(dictionary)
        theta = torch.log(torch.expm1(penalty / bound)).to(dictionary)
        if learned:
            self.dictionary = nn.Parameter(dictionary.detach().clone())
        else:
            self.register_buffer("dictionary", dictionary.detach().clone())
        self.encode = nn.ParameterList(encode.clone() for _ in range(own))
        self.inhibit = nn.ParameterList(inhibit.clone() for _ in range(min(own, layers - 1) if tied else layers - 1))
        self.theta = nn.ParameterList(theta.expand(len(gram)).clone() for _ in range(own))

    def forward(self, signals: Tensor) -> Tensor:
        """Signals [B, p] -> codes [B, k]."""
        z = None
        for i in range(self.layers):
            at = i % len(self.encode)
            drive = signals @ self.encode[at].T
            if z is not None:
                drive = drive + z @ self.inhibit[(i - 1) % len(self.inhibit)].T
            z = soft_threshold(drive, nn.functional.softplus(self.theta[at]))
        assert z is not None
        return z

    def atoms(self) -> Tensor:
        """The dictionary [p, k], with unit columns."""
        return nn.functional.normalize(self.dictionary, dim=0) if self.learned else self.dictionary

    def energy(self, signals: Tensor, codes: Tensor) -> Tensor:
        """The energy 1/2 ||y - D z||^2 + penalty ||z||_1 of each signal [B, p] and code [B, k] -> [B]."""
        return energy(signals, self.atoms(), codes, self.penalty)
