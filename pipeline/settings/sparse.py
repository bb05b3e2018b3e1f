"""How signals become sparse codes, and codes features: all that rebuilds the encoder beside its tensors."""

from typing import Annotated, Literal

from pydantic import Field

from .base import Count, Positive, Settings
from .objectives import LISTA, PSD


class Coding(Settings):
    """Codes of contrast-normalised, whitened patches (or of an encoder's features), pooled into features."""

    patch: Annotated[int, Field(ge=2)] = 5
    """Side of a patch in pixels."""
    pad: Annotated[int, Field(ge=0)] = 2
    """Zeros around the image in pixels: characters touch their border, and half a patch of it is worth a point of
    accuracy on digits. Coates & Ng: 0."""
    contrast: Positive = 10.0
    """Added to a patch's variance before the patch is divided by its root, for pixels of 0 to 255 (Coates & Ng 2011:
    10)."""
    atoms: Count = 128
    """Columns of the dictionary, each of norm 1."""
    penalty: Positive = 0.15
    """Lambda of 1/2 ||y - D z||^2 + lambda ||z||_1 at ||y|| = 1; half of the lecture's, whose energy has no 1/2."""
    tolerance: Positive = 1e-4
    """Duality gap at which a code counts as solved (||y|| = 1)."""
    features: Literal["threshold", "lasso", "lista"] = "threshold"
    """What is pooled into features: soft threshold of D'x (Coates & Ng 2011), the lasso's code, or LISTA's."""
    threshold: Annotated[float, Field(ge=0)] = 0.25
    """Of the soft threshold."""
    pool: Count = 2
    """Cells on a side over which the codes are summed; not for an encoder's features."""
    lista: Annotated[LISTA | PSD, Field(discriminator="kind")] = LISTA()
    """The network that predicts codes, if lista_steps are given it: of the dictionary as it is learned online, or psd:
    of one that is trained on with the network."""
