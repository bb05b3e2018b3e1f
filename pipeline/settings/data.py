"""Which folders are splits; how a view is drawn from an image: the published augmentations, and one for characters.

Sources: MoCo v1/v2 (arXiv 1911.05722, 2003.04297), SimCLR (arXiv 2002.05709), PIRL (arXiv 1912.01991), BYOL (arXiv
2006.07733).
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WrapValidator

from .base import Count, Fraction, Range, Settings, over
from .imports import AS_IT_IS, of_file


class Splits(Settings):
    """Folders that are splits, below the source."""

    train: str
    """The folder whose images are trained on."""
    test: str | None = None
    """null: a share of the training images is held out."""


class SmallCrops(Settings):
    """Crops beside the views, small in area and in pixels (multi-crop, arXiv 2006.09882, sec. 3.3)."""

    count: Count = 4
    """Small crops an image."""
    size: Count
    """Side in pixels: 96 beside views of 224."""
    scale: Range = (0.05, 0.14)
    """Area of the crop, as a fraction of the image (scripts/swav_800ep_pretrain.sh of facebookresearch/swav)."""
    blur_p: Fraction | None = None
    """Probability of blur: 0.5 in DINO; null: the first view's."""


class Crops(Settings):
    """Random resized crop, flip, colour jitter, grey, blur: the family of all views of natural images."""

    size: Count | None = None
    """Side of a view in pixels; null: the side of the packed images (which must then be square and equal)."""
    scale: Range = (0.2, 1.0)
    """Area of the crop, as a fraction of the image."""
    ratio: Range = (3 / 4, 4 / 3)
    """Width over height of the crop."""
    flip: Fraction = 0.5
    """Probability of a horizontal flip."""
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    """Strengths of brightness, contrast, saturation (factor 1 ± s) and hue (turn ± s)."""
    jitter_p: Fraction = 0.8
    """Probability of colour jitter."""
    photometric_p: Fraction = 0.0
    """Probability of posterising to 4 to 8 bits, sharpness by 0.1 to 1.9, inversion from a value on and autocontrast,
    one after another between jitter and grey (ImgPilRandomPhotometric of facebookresearch/vissl)."""
    grey_p: Fraction = 0.2
    """Probability that the view is grey: 0.2 in the papers; public recipes of CIFAR-10 that take 0.1 report a point
    more."""
    grey_first: bool = False
    """Grey before jitter, which then finds no colour to change (MoCo v1)."""
    blur: Range = (0.1, 2.0)
    """Standard deviation of the Gaussian blur in pixels."""
    blur_kernel: Fraction = 0.1
    """Width of the blur's kernel as a fraction of the view's side (made odd, at least 3)."""
    blur_p: Fraction = 0.5
    """Probability of blur."""
    solarise_p: Fraction = 0.0
    """Probability of inverting the values above one half (BYOL, MoCo v3)."""
    small: SmallCrops | None = None
    """More views, in the colours of the first, whose mapping names them (multi-crop)."""


class MoCoV1(Crops):
    """MoCo v1: grey first, jitter on every view, no blur (main_moco.py of facebookresearch/moco)."""

    kind: Literal["moco_v1"] = "moco_v1"
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.4)
    jitter_p: Fraction = 1.0
    grey_first: bool = True
    blur_p: Fraction = 0.0


class MoCoV2(Crops):
    """MoCo v2: weaker hue, jitter with p 0.8, blur with p 0.5."""

    kind: Literal["moco_v2"] = "moco_v2"


class SimCLRViews(Crops):
    """SimCLR at colour strength s = 1: crops down to 8 % of the area, strong jitter."""

    kind: Literal["simclr"] = "simclr"
    scale: Range = (0.08, 1.0)
    jitter: tuple[float, float, float, float] = (0.8, 0.8, 0.8, 0.2)


class ByolFirst(Crops):
    """BYOL's first view, always blurred (table 6); MoCo v3's, DINO's and VICReg's too."""

    kind: Literal["byol_first"] = "byol_first"
    scale: Range = (0.08, 1.0)
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    blur_p: Fraction = 1.0


class ByolSecond(Crops):
    """BYOL's second view, seldom blurred and sometimes solarised (table 6)."""

    kind: Literal["byol_second"] = "byol_second"
    scale: Range = (0.08, 1.0)
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    blur_p: Fraction = 0.1
    solarise_p: Fraction = 0.2


class CifarViews(Crops):
    """MoCo's views of CIFAR: crops down to 8 % of the area, no blur."""

    kind: Literal["cifar"] = "cifar"
    scale: Range = (0.08, 1.0)
    blur_p: Fraction = 0.0


class PirlViews(Crops):
    """PIRL's image view: crops down to 8 % of the area, jitter always, vissl's photometric set, no blur."""

    kind: Literal["pirl"] = "pirl"
    scale: Range = (0.08, 1.0)
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.2)
    jitter_p: Fraction = 1.0
    photometric_p: Fraction = 0.66
    blur_p: Fraction = 0.0


class Characters(Settings):
    """For digits and letters, where a crop or a flip makes another character: affine, elastic, strokes, contrast."""

    kind: Literal["characters"] = "characters"
    size: Count | None = None
    """Side of a view in pixels; null: the side of the packed images."""
    rotation: Annotated[float, Field(ge=0, le=180)] = 20.0
    """Degrees, drawn from ± this."""
    shear: Annotated[float, Field(ge=0, le=60)] = 15.0
    """Degrees, drawn from ± this."""
    scale: Range = (0.8, 1.2)
    """Factor on the size of the character."""
    shift: Fraction = 0.125
    """Of the side, drawn from ± this, on each axis."""
    contrast: Range = (0.6, 1.4)
    """Factor on the distance of a pixel from black."""
    elastic: Annotated[float, Field(ge=0)] = 0.0
    """Root mean square displacement in pixels along each axis, √2 times as much in all, of a smooth random field; 0:
    none."""
    elastic_sigma: Annotated[float, Field(gt=0)] = 4.0
    """Smoothness of that field in pixels (standard deviation of its Gaussian)."""
    stroke: Fraction = 0.0
    """Strokes widened or narrowed by up to this many pixels on each side, drawn from ± this; 0: as they are."""


class View(Settings):
    """What a view of a user's own file can be told, beside what its own settings say."""

    size: Count | None = None
    """Side of a view in pixels, that of the packed images; null: as they are."""


Views = Annotated[
    MoCoV1 | MoCoV2 | SimCLRViews | ByolFirst | ByolSecond | CifarViews | PirlViews | Characters,
    Field(discriminator="kind"),
    AS_IT_IS,
    WrapValidator(of_file("views")),
]
"""Ours by name, or "mine:Noisy", a class of a file that the config imports."""


def listed(body: Any) -> Any:
    """One mapping is a list of one; a mapping without a kind is of the default kind."""
    entries = body if isinstance(body, list | tuple) else (body,)
    return tuple(over(MoCoV2(), entry) for entry in entries)


def agreeing(views: tuple[Views, ...]) -> tuple[Views, ...]:
    """Raises ValueError where the views of one image cannot be made side by side."""
    if not views:
        raise ValueError("found an empty list; expected one mapping for all views, or a list with one for each")
    first, *rest = views
    for other in rest:
        if any(isinstance(first, family) != isinstance(other, family) for family in (Characters, View)):
            raise ValueError(
                f"found kinds {first.kind} and {other.kind}; expected characters for all views, or none, and views of "
                f"your own for all, or none"
            )
        if first.size != other.size:
            raise ValueError(f"found sizes {first.size} and {other.size}; expected one size for all views")
        if getattr(other, "small", None):
            raise ValueError("found small crops in a later view's mapping; expected them in the first's")
    return views


EachView = Annotated[tuple[Views, ...], BeforeValidator(listed), AfterValidator(agreeing)]
"""What each view is drawn from: a list with a mapping for each, or one mapping that is two views'."""
