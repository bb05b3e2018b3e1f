"""Latent-variable energies of images, E(x, y, z) = C(y, Dec(Pred(x), z)) + penalty R(z): x a part of an image, y the
rest, z a code of what x does not tell of y."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, softplus
from torch.nn.utils import parametrize

from pipeline.image import Image
from pipeline.nets import decoders, seeded, trunks
from pipeline.settings.latent_energies import Filters, Latent, Linear
from pipeline.settings.nets import Net
from pipeline.sparse import proximal
from pipeline.sparse.solvers import soft_threshold
from pipeline.world import World

UNSEEN = -1.0
"""What the predictor is shown of a pixel that it is not given: less than any pixel."""
THRESHOLD = 0.05
"""Of the encoder's soft threshold, at first."""


class Bounded(nn.Module):
    """A weight whose columns, each of one input, have a norm of 1 at most: longer ones are scaled to 1."""

    def forward(self, weight: Tensor) -> Tensor:
        others = [dim for dim in range(weight.ndim) if dim != 1]
        return weight / torch.linalg.vector_norm(weight, dim=others, keepdim=True).clamp(min=1)


def bound(module: nn.Module) -> None:
    """Bounds the columns of all weights of a module from now on."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            with torch.no_grad():
                part.weight.copy_(Bounded()(part.weight))
            parametrize.register_parametrization(part, "weight", Bounded())


class Decoder(nn.Module):
    """A code [B, k], and the predictor's features [B, c] where there is one, -> images or their logits [B, C, H, W].

    The features come in beside the code, by a weight of their own that has no bound.
    """

    def __init__(self, settings: Any, latent: int, context: int, image: Image):
        super().__init__()
        shape = torch.Size(image.shape)
        self.inner, rest = shape, []
        if isinstance(settings, Linear):
            first: Any = nn.Sequential(nn.Linear(latent, shape.numel()), nn.Unflatten(1, shape))
        elif isinstance(settings, Filters):
            convolution = nn.Conv2d(settings.filters, image.channels, settings.side, padding=settings.side // 2)
            maps = torch.Size((settings.filters, *shape[1:]))
            first = nn.Sequential(nn.Unflatten(1, maps), convolution)
        else:
            first, *rest = decoders.build(settings, latent, image)
            self.inner = torch.Size((first.out_features,))
        if not rest:  # a dictionary: atoms of norm 1, and no pixel that is on without a code
            for weight in first.parameters():
                nn.init.normal_(weight) if weight.ndim > 1 else nn.init.zeros_(weight)
        self.first, self.rest = first, nn.Sequential(*rest)
        bound(self)
        self.context = nn.Linear(context, self.inner.numel(), bias=False) if context else None

    def forward(self, z: Tensor, features: Tensor | None = None) -> Tensor:
        out = self.first(z)
        if self.context is not None:
            out = out + self.context(features).unflatten(1, self.inner)
        return self.rest(out)


class Encoder(nn.Module):
    """Predicts codes [B, k] from ``inputs``, features [B, c] or images [B, C, H, W], with a soft threshold at the end
    where codes are sparse."""

    def __init__(self, layer: nn.Module, units: int, sparse: bool):
        super().__init__()
        self.layer = layer
        raw = torch.full((units, 1, 1) if isinstance(layer, nn.Conv2d) else (units,), THRESHOLD).expm1().log()
        self.threshold = nn.Parameter(raw) if sparse else None

    def forward(self, inputs: Tensor) -> Tensor:
        z = self.layer(inputs)
        return (z if self.threshold is None else soft_threshold(z, softplus(self.threshold))).flatten(1)


class Inference(NamedTuple):
    """Of a batch: codes ``z`` without a graph and the encoder's prediction ``start`` of them [B, k], their ``cost`` C
    and their energy ``low`` [B]."""

    z: Tensor
    start: Tensor
    cost: Tensor
    low: Tensor


class LatentEnergy(nn.Module):
    """The networks of the energy, and the inference of codes. ``units``: of a code; ``features``: width of what
    `forward` makes of images."""

    def __init__(self, settings: Latent, net: Net, image: Image, world: World, seed: int):
        super().__init__()
        self.settings, self.image = settings, image
        conditional, maps = settings.condition != "none", settings.decoder.kind == "filters"
        self.units = settings.latent
        if isinstance(settings.decoder, Filters):
            self.units = settings.decoder.filters * image.side**2
        self.trunk: Any = None
        if conditional or (settings.prediction and not maps):
            self.trunk = trunks.build(net, image, world, seed)
        width = self.trunk.features if conditional else 0
        with seeded(seed, "init", "latent"):
            self.decoder = Decoder(settings.decoder, self.units, width, image)
            self.encoder = self.build_encoder() if settings.prediction else None
        self.features = width + (0 if settings.condition == "random" else self.units)

    def build_encoder(self) -> Encoder:
        decoder, sparse = self.settings.decoder, self.settings.regulariser == "l1"
        if isinstance(decoder, Filters):
            layer = nn.Conv2d(self.image.channels, decoder.filters, decoder.side, padding=decoder.side // 2)
            return Encoder(layer, decoder.filters, sparse)
        return Encoder(nn.Linear(self.trunk.features, self.units), self.units, sparse)

    def hidden(self, like: Tensor) -> Tensor:
        """Which pixels are y, bool [1, 1, H, W]: all of them, or those that are not the part that x always is."""
        side, condition = self.image.side, self.settings.condition
        hidden = torch.full((1, 1, side, side), condition != "random", device=like.device)
        if condition in ("half", "quarter"):
            hidden[..., : side if condition == "half" else side // 2, : side // 2] = False
        return hidden

    def context(self, images: Tensor, hidden: Tensor) -> Tensor | None:
        """Pred's features of x, [B, c]."""
        return self.trunk(torch.where(hidden, UNSEEN, images)) if self.decoder.context is not None else None

    def predict(self, images: Tensor) -> Tensor:
        """The encoder's codes of images, [B, k]; zeros where there is none."""
        if self.encoder is None:
            return images.new_zeros(len(images), self.units)
        return self.encoder(images if isinstance(self.settings.decoder, Filters) else self.trunk(images))

    def decode(self, z: Tensor, features: Tensor | None) -> Tensor:
        """Images [B, C, H, W], in [0, 1] but for what a decoder without bounds overshoots."""
        out = self.decoder(z, features)
        return out.sigmoid() if self.settings.cost == "bernoulli" else out

    def cost(self, images: Tensor, hidden: Tensor, z: Tensor, features: Tensor | None) -> Tensor:
        """C of the hidden pixels, summed -> [B]."""
        out = self.decoder(z, features)
        if self.settings.cost == "bernoulli":
            cost = binary_cross_entropy_with_logits(out, images, reduction="none")
        else:
            cost = (images - out).square() / 2
        return (cost * hidden).flatten(1).sum(1)

    def noisy_cost(
        self, images: Tensor, hidden: Tensor, z: Tensor, features: Tensor | None, noise: Tensor | None
    ) -> Tensor:
        """C at z or, with noise, its mean over z + noise and z - noise, which no z can take back -> [B]."""
        if noise is None:
            return self.cost(images, hidden, z, features)
        above, below = (self.cost(images, hidden, z + part, features) for part in (noise, -noise))
        return (above + below) / 2

    def regulariser(self, z: Tensor) -> Tensor:
        """R of codes [B, k] -> [B]."""
        if self.settings.regulariser == "l1":
            return z.abs().sum(1)
        return z.square().sum(1) / 2 * (self.settings.regulariser != "none")

    def infer(
        self, images: Tensor, hidden: Tensor, noise: Tensor | None = None, penalty: float | None = None
    ) -> Inference:
        """Minimises the energy over codes, and evaluates it there with a graph to all weights.

        ``penalty``: another than the settings'.
        """
        s, features, start = self.settings, self.context(images, hidden), self.predict(images)
        penalty = s.penalty if penalty is None else penalty
        held = None if features is None else features.detach()

        def rest(z: Tensor, start: Tensor) -> Tensor:
            """What the energy has besides C and an l1 norm."""
            pull = s.prediction / 2 * (z - start).square().sum(1)
            return pull if s.regulariser == "l1" else pull + penalty * self.regulariser(z)

        def smooth(z: Tensor) -> Tensor:
            return self.noisy_cost(images, hidden, z, held, noise) + rest(z, start.detach())

        def proximal_step(z: Tensor, step: Tensor) -> Tensor:
            return soft_threshold(z, step * penalty) if s.regulariser == "l1" else z

        with parametrize.cached():
            z = proximal.minimise(smooth, proximal_step, start, s.steps)
        cost = self.noisy_cost(images, hidden, z, features, noise)
        low = cost + rest(z, start) + (penalty * self.regulariser(z) if s.regulariser == "l1" else 0)
        return Inference(z, start, cost, low)

    def atoms(self) -> Tensor | None:
        """What each unit of a dictionary adds to an image, or each filter, [n, C, h, w]; None of another decoder."""
        if isinstance(self.settings.decoder, Linear):
            return self.decoder.first[0].weight.T.unflatten(1, self.image.shape)
        if isinstance(self.settings.decoder, Filters):
            return self.decoder.first[1].weight.transpose(0, 1)
        return None

    @torch.no_grad()
    def lasso(self, images: Tensor) -> tuple[Tensor, Tensor] | None:
        """Signals [B, p] and a dictionary [p, k] whose lasso's code is the images' (B of [B, C, H, W]); None where
        there is none, or not one of all images.

        The encoder's pull 1/2 a ||z - z'||^2 is more rows of both: sqrt(a) z' and sqrt(a) I.
        """
        s = self.settings
        if (s.regulariser, s.cost, s.decoder.kind) != ("l1", "squared", "linear") or s.condition == "random":
            return None
        hidden = self.hidden(images)
        zero = images.new_zeros(len(images), self.units)
        signals = ((images - self.decoder(zero, self.context(images, hidden))) * hidden).flatten(1)
        atoms = (self.decoder.first[0].weight.T.unflatten(1, self.image.shape) * hidden).flatten(1).T
        if self.encoder is not None:
            pull = s.prediction**0.5
            signals = torch.cat([signals, pull * self.predict(images)], 1)
            atoms = torch.cat([atoms, pull * torch.eye(self.units).to(atoms)])
        return signals, atoms

    def forward(self, images: Tensor) -> Tensor:
        """Images in [0, 1], [B, C, H, W] -> Pred's features of x, if there is one, and the code of y: as the encoder
        predicts it or, where there is none, as it is inferred."""
        hidden = self.hidden(images)
        features = self.context(images, hidden)
        parts = [] if features is None else [features]
        if self.settings.condition != "random":
            parts += [self.predict(images) if self.encoder is not None else self.infer(images, hidden).z]
        return torch.cat(parts, 1)
