"""LISTA: a few steps of ISTA as a network, trained to predict the sparse code (Gregor & LeCun, ICML 2010), and its kin
with fewer weights."""

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pipeline.settings.objectives import LISTA as Settings
from pipeline.settings.objectives import PSD
from pipeline.sparse.solvers import energy, soft_threshold


class Layers(nn.Module, ABC):
    """A network whose layers predict the codes of a dictionary [p, k] with unit columns better and better."""

    dictionary: Tensor
    penalty: float

    @abstractmethod
    def outputs(self, signals: Tensor) -> Iterator[Tensor]:
        """Signals [B, p] -> the codes [B, k] after each layer."""

    def forward(self, signals: Tensor) -> Tensor:
        """Signals [B, p] -> codes [B, k]."""
        return list(self.outputs(signals))[-1]

    def atoms(self) -> Tensor:
        """The dictionary [p, k]."""
        return self.dictionary

    def energy(self, signals: Tensor, codes: Tensor) -> Tensor:
        """The energy 1/2 ||y - D z||^2 + penalty ||z||_1 of each signal [B, p] and code [B, k] -> [B]."""
        return energy(signals, self.atoms(), codes, self.penalty)


class LISTA(Layers):
    """Layers z <- soft_threshold(We y + S z, theta) from z = 0, initialised as ISTA on 1/2 ||y - D z||^2 +
    penalty ||z||_1.

    That is We = D'/L, S = I - D'D/L, theta = penalty/L, with L the largest eigenvalue of D'D. ``dictionary``: [p, k],
    atoms as columns. ``tied``: all layers share We, S and theta. theta is a softplus, so that it stays positive. The
    first layer has no S, since z is 0 there. ``learned``: the dictionary is a parameter, too, of which `atoms` are the
    columns scaled to norm 1.
    """

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
        theta = inverse_softplus(penalty / bound).to(dictionary)
        if learned:
            self.dictionary = nn.Parameter(dictionary.detach().clone())
        else:
            self.register_buffer("dictionary", dictionary.detach().clone())
        self.encode = nn.ParameterList(encode.clone() for _ in range(own))
        self.inhibit = nn.ParameterList(inhibit.clone() for _ in range(min(own, layers - 1) if tied else layers - 1))
        self.theta = nn.ParameterList(theta.expand(len(gram)).clone() for _ in range(own))

    def outputs(self, signals: Tensor) -> Iterator[Tensor]:
        z = None
        for i in range(self.layers):
            at = i % len(self.encode)
            drive = signals @ self.encode[at].T
            if z is not None:
                drive = drive + z @ self.inhibit[(i - 1) % len(self.inhibit)].T
            z = soft_threshold(drive, softplus(self.theta[at]))
            yield z

    def atoms(self) -> Tensor:
        return nn.functional.normalize(self.dictionary, dim=0) if self.learned else self.dictionary


class Coupled(Layers):
    """Layers z <- soft_threshold(z + step W'(y - D z), threshold) from z = 0: what encodes y and what inhibits z have
    the same weight W [p, k], without which layers do not come to the code (Chen, Liu, Wang & Yin 2018, arXiv
    1808.10038, theorem 1). Initialised as ISTA, or with the analytic W in the place of D.

    ``form``. coupled: W, step and threshold of each layer are learned (LISTA-CP, their eq. 15); analytic: W is that of
    least coherence with D, and the steps and thresholds are learned (ALISTA: Liu, Chen, Wang & Yin 2019, sec. 2.2);
    steps: W = D, the steps are learned, and a threshold is the penalty times its step (Ablin, Moreau, Massias &
    Gramfort 2019, arXiv 1905.11071, sec. 4).
    """

    weight: Tensor

    def __init__(self, dictionary: Tensor, penalty: float, layers: int, form: str):
        super().__init__()
        self.penalty, self.layers, self.form, self.features = penalty, layers, form, dictionary.shape[1]
        d = dictionary.detach().double()
        weight = least_coherent(d) if form == "analytic" else d
        bound = torch.linalg.matrix_norm(weight.T @ d, 2)
        self.register_buffer("dictionary", dictionary.detach().clone())
        self.register_buffer("weight", weight.to(dictionary))
        self.change = nn.ParameterList(
            torch.zeros_like(dictionary) for _ in range(layers if form == "coupled" else 0)
        )
        self.step = nn.Parameter(inverse_softplus(1 / bound).to(dictionary).repeat(layers))
        if form != "steps":
            self.theta = nn.Parameter(inverse_softplus(penalty / bound).to(dictionary).repeat(layers))

    def outputs(self, signals: Tensor) -> Iterator[Tensor]:
        z, steps = signals.new_zeros(len(signals), self.features), softplus(self.step)
        thresholds = self.penalty * steps if self.form == "steps" else softplus(self.theta)
        for i in range(self.layers):
            weight = self.weight + self.change[i] if self.form == "coupled" else self.weight
            z = soft_threshold(z + steps[i] * (signals - z @ self.dictionary.T) @ weight, thresholds[i])
            yield z


def build(settings: Settings | PSD, dictionary: Tensor, penalty: float) -> Layers:
    """The network that the settings name, for the lasso of a dictionary [p, k]."""
    if isinstance(settings, PSD) or settings.form == "lista":
        return LISTA(dictionary, penalty, settings.layers, settings.tied, isinstance(settings, PSD))
    return Coupled(dictionary, penalty, settings.layers, settings.form)


def inverse_softplus(x: Tensor) -> Tensor:
    return torch.log(torch.expm1(x))


def least_coherent(dictionary: Tensor) -> Tensor:
    """The W [p, k] of least ||W'D||_F with w_j'd_j = 1 for each atom d_j of D [p, k] (ALISTA's eq. 16), in closed
    form: w_j is (D D')^-1 d_j, scaled."""
    weight = torch.linalg.pinv(dictionary @ dictionary.T) @ dictionary
    return weight / (weight * dictionary).sum(0).clamp(min=torch.finfo(dictionary.dtype).tiny)
