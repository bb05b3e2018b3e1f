"""The distributions p(x|z) of pixels that a decoder's outputs stand for."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid, softplus

from pipeline.objectives.energies import full

FLOOR = -6.0
"""Of the log of a deviation or scale: a 400th of a pixel's range."""
LEVELS = 255.0
"""Grey levels of a pixel, less one."""


class Bernoulli(nn.Module):
    """Binary pixels; outputs are log-odds. Of grey pixels it is a continuous relaxation and no likelihood."""

    def mean(self, outputs: Tensor) -> Tensor:
        return torch.sigmoid(outputs)

    def log_density(self, images: Tensor, outputs: Tensor) -> Tensor:
        """log p(x|z) of each pixel; the shapes are broadcast, the result is at least fp32."""
        images, outputs = torch.broadcast_tensors(full(images), full(outputs))
        return -binary_cross_entropy_with_logits(outputs, images, reduction="none")


class Located(nn.Module):
    """What has the outputs as its mean, and one learned scale for all pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(()))

    def mean(self, outputs: Tensor) -> Tensor:
        return outputs

    def log_deviation(self) -> Tensor:
        """The log of the scale, 0-d: above FLOOR, smoothly, so that its gradient is nowhere 0 (Rybkin et al. 2021,
        arXiv 2006.13202, whose code clips softly at the same floor)."""
        return FLOOR + softplus(self.log_scale - FLOOR)


class Gaussian(Located):
    """Pixels of any value, a density. Its best scale is the root of the mean squared error; without a floor a constant
    image would have no bound."""

    def log_density(self, images: Tensor, outputs: Tensor) -> Tensor:
        log_sigma = self.log_deviation()
        error = (full(images) - full(outputs)) * torch.exp(-log_sigma)
        return -0.5 * error.square() - log_sigma - 0.5 * math.log(2 * math.pi)


class Logistic(Located):
    """Pixels of 256 levels, a probability: the logistic distribution's mass from half a level below to half a level
    above, with open tails at black and white (Salimans et al. 2017, arXiv 1701.05517, eq. 2; one component)."""

    def log_density(self, images: Tensor, outputs: Tensor) -> Tensor:
        """With a > b the edges over the scale: sigma(a) - sigma(b) = sigma(a) sigma(-b) (1 - e^(b - a)), each factor
        of which has a logarithm that cannot overflow; at an end one edge is infinite and its factors are 1."""
        images, scale = full(images), torch.exp(-self.log_deviation())
        half = 0.5 / LEVELS
        error = (images - full(outputs)) * scale
        black, white = images < half, images > 1 - half
        below = logsigmoid(error + half * scale).masked_fill(white, 0)
        above = logsigmoid(half * scale - error).masked_fill(black, 0)
        inside = torch.log(-torch.expm1(-scale / LEVELS)).expand_as(error)
        return below + above + inside.masked_fill(black | white, 0)


Pixels = Bernoulli | Gaussian | Logistic
KINDS: dict[str, type[Pixels]] = {"bernoulli": Bernoulli, "gaussian": Gaussian, "logistic": Logistic}
