"""The published recipes, value by value: what each file says, and where the authors say it."""

from functools import cache, reduce
from pathlib import Path

import pytest

from pipeline import config

FOLDER = Path(__file__).parents[1] / "configs/published"
MOCO, MOCO_V3 = "facebookresearch/moco main_moco.py", "facebookresearch/moco-v3 main_moco.py, CONFIG.md"
SIMCLR, SIMCLR_V2 = "google-research/simclr run.py, README.md, resnet.py, model_util.py", "arXiv 2006.10029, sec. 3.1"
VISSL = "facebookresearch/vissl configs/config/pretrain/pirl"
COLAB = "facebookresearch/moco colab/moco_cifar10_demo.ipynb"
BYOL, SIMSIAM = "google-deepmind/deepmind-research byol/configs/byol.py, arXiv 2006.07733 tables 6 and 8", (
    "facebookresearch/simsiam main_simsiam.py, simsiam/builder.py, README.md")
SIMSIAM_CIFAR, DINO = "arXiv 2011.10566, appendix D", "facebookresearch/dino main_dino.py, README.md"
SOLO = "vturrisi/solo-learn scripts/pretrain/cifar"
VICREG, BARLOW = "facebookresearch/vicreg main_vicreg.py, augmentations.py", "facebookresearch/barlowtwins main.py"
LEJEPA = "rbalestr-lab/lejepa README.md, MINIMAL.md"
SGD = {
    "optimiser.lr": 0.03, "optimiser.reference_batch": 256, "optimiser.momentum": 0.9, "optimiser.weight_decay": 1e-4,
}  # fmt: skip
ASYMMETRIC = {
    "views.jitter": (0.4, 0.4, 0.2, 0.1), "views.jitter_p": 0.8, "views.grey_p": 0.2, "views.0.blur_p": 1.0,
    "views.0.solarise_p": 0.0, "views.1.blur_p": 0.1, "views.1.solarise_p": 0.2,
}  # fmt: skip
UNBLURRED = {"views.0.blur_p": 0.0, "views.1.blur_p": 0.0, "views.scale": (0.08, 1.0)}
TWINS = ASYMMETRIC | {
    "epochs": 1000, "batch": 2048, "warmup_epochs": 10, "min_lr_ratio": 1e-3, "optimiser.kind": "lars",
    "optimiser.lr": 0.2, "optimiser.reference_batch": 256, "optimiser.weight_decay": 1e-6, "optimiser.momentum": 0.9,
    "optimiser.trust_coefficient": 1e-3, "net.zero_init": True, "objective.head.hidden": 8192,
    "objective.head.dim": 8192, "objective.head.layers": 3, "objective.head.norm": "hidden",
    "views.scale": (0.08, 1.0),
}  # fmt: skip
SOLO_LARS = {
    "epochs": 1000, "batch": 256, "warmup_epochs": 10, "optimiser.kind": "lars", "optimiser.lr": 0.3,
    "optimiser.weight_decay": 1e-4, "optimiser.trust_coefficient": 0.02, "objective.head.hidden": 2048,
    "objective.head.dim": 2048, "objective.head.layers": 3, "objective.head.norm": "hidden", "views.blur_p": 0.0,
    "views.jitter": (0.4, 0.4, 0.2, 0.1), "views.jitter_p": 0.8, "views.grey_p": 0.2,
}  # fmt: skip
RECIPES = {
    "moco_v1": (MOCO, SGD | {
        "epochs": 200, "batch": 256, "schedule": "steps", "lr_drops": (0.6, 0.8), "objective.queue": 65536,
        "objective.momentum": 0.999, "objective.temperature": 0.07, "objective.head.hidden": 0,
        "objective.head.dim": 128, "views.scale": (0.2, 1.0), "views.jitter": (0.4, 0.4, 0.4, 0.4),
        "views.jitter_p": 1.0, "views.grey_p": 0.2, "views.grey_first": True, "views.blur_p": 0.0,
        "optimiser.decay_norms": True,
        "net.norm.splits": 8, "net.zero_init": False,
    }),
    "moco_v2": (MOCO, SGD | {
        "epochs": 200, "batch": 256, "schedule": "cosine", "objective.queue": 65536, "objective.momentum": 0.999,
        "objective.temperature": 0.2, "objective.head.hidden": 2048, "views.jitter": (0.4, 0.4, 0.4, 0.1),
        "views.jitter_p": 0.8, "views.blur": (0.1, 2.0), "views.blur_p": 0.5, "net.norm.splits": 8,
    }),
    "moco_cifar10_symmetric": (COLAB, {
        "epochs": 200, "batch": 512, "optimiser.lr": 0.06, "optimiser.reference_batch": 512,
        "optimiser.weight_decay": 5e-4,
        "objective.queue": 4096, "objective.momentum": 0.99, "objective.temperature": 0.1, "objective.symmetric": True,
        "objective.reduction": "sum", "objective.head.hidden": 0, "objective.head.dim": 128, "views.blur_p": 0.0,
        "views.jitter": (0.4, 0.4, 0.4, 0.1), "net.norm.splits": 8, "net.zero_init": False,
    }),
    "moco_v3_resnet50": (MOCO_V3, {
        "epochs": 100, "batch": 4096, "warmup_epochs": 10, "optimiser.kind": "lars", "optimiser.lr": 0.6,
        "optimiser.reference_batch": 256, "optimiser.weight_decay": 1e-6, "optimiser.momentum": 0.9,
        "optimiser.trust_coefficient": 1e-3,
        "objective.momentum": 0.99, "objective.momentum_schedule": "cosine", "objective.temperature": 1.0,
        "objective.head.layers": 2, "objective.head.norm": "all", "objective.head.hidden": 4096,
        "objective.head.dim": 256, "objective.predictor.norm": "hidden", "objective.predictor.layers": 2,
        "net.zero_init": True, "views.scale": (0.2, 1.0), "views.jitter": (0.4, 0.4, 0.2, 0.1), "views.grey_p": 0.2,
        "views.0.blur_p": 1.0, "views.0.solarise_p": 0.0, "views.1.blur_p": 0.1, "views.1.solarise_p": 0.2,
    }),
    "moco_v3_vit_s": (MOCO_V3, {
        "epochs": 300, "batch": 4096, "warmup_epochs": 40, "optimiser.kind": "adam", "optimiser.lr": 1.5e-4,
        "optimiser.reference_batch": 256, "optimiser.weight_decay": 0.1, "optimiser.decay_norms": True,
        "objective.temperature": 0.2, "objective.momentum": 0.99, "objective.momentum_schedule": "cosine",
        "objective.head.layers": 3, "objective.head.norm": "all", "objective.predictor.norm": "all",
        "objective.predictor.layers": 2, "net.width": 384, "net.depth": 12, "net.heads": 12, "net.patch": 16,
        "net.frozen_patches": True, "views.scale": (0.08, 1.0),
        "views.0.blur_p": 1.0, "views.0.solarise_p": 0.0, "views.1.blur_p": 0.1, "views.1.solarise_p": 0.2,
    }),
    "simclr": (SIMCLR, {
        "epochs": 1000, "batch": 4096, "warmup_epochs": 10, "optimiser.lr": 0.075, "optimiser.lr_scaling": "sqrt",
        "optimiser.weight_decay": 1e-6, "objective.temperature": 0.1, "objective.head.layers": 2,
        "objective.head.norm": "scaled", "objective.head.dim": 128, "net.zero_init": True, "views.scale": (0.08, 1.0),
        "views.jitter": (0.8, 0.8, 0.8, 0.2), "views.jitter_p": 0.8, "views.grey_p": 0.2, "views.blur_p": 0.5,
        "views.blur_kernel": 0.1,
    }),
    "simclr_v2": (SIMCLR_V2, {
        "epochs": 800, "batch": 4096, "warmup_epochs": 0.05 * 800, "optimiser.lr": 0.1, "optimiser.lr_scaling": "sqrt",
        "optimiser.weight_decay": 1e-4, "objective.temperature": 0.1, "objective.head.layers": 3,
        "objective.head.norm": "scaled", "net.zero_init": True,
    }),
    "simclr_cifar10": (SIMCLR, {
        "epochs": 1000, "batch": 512, "warmup_epochs": 10, "optimiser.lr": 1.0, "optimiser.reference_batch": 256,
        "optimiser.weight_decay": 1e-4, "objective.temperature": 0.5, "objective.head.layers": 3,
        "objective.head.hidden": 512, "objective.head.norm": "scaled", "net.zero_init": True, "views.blur_p": 0.0,
        "views.jitter": (0.4, 0.4, 0.4, 0.1),
    }),
    "pirl": (VISSL, SGD | {
        "epochs": 800, "batch": 32 * 32, "min_lr_ratio": 1e-3, "optimiser.decay_norms": False,
        "net.norm.kind": "split", "net.norm.splits": 32, "net.zero_init": False,
        "objective.temperature": 0.07, "objective.negatives": 32000,
        "objective.weight": 0.5, "objective.momentum": 0.5, "objective.head.hidden": 0, "objective.head.dim": 128,
        "views.scale": (0.08, 1.0), "views.jitter": (0.4, 0.4, 0.4, 0.2), "views.jitter_p": 1.0, "views.grey_p": 0.2,
        "views.blur_p": 0.0, "views.photometric_p": 0.66, "objective.jigsaw.scale": (0.6, 1.0),
    }),
    "pirl_mlp": (VISSL, SGD | {
        "batch": 32 * 32, "min_lr_ratio": 1e-3, "optimiser.decay_norms": False, "net.norm.splits": 32,
        "objective.loss": "infonce", "objective.temperature": 0.1, "objective.head.hidden": 2048,
        "objective.head.norm": "none", "views.jitter": (0.8, 0.8, 0.8, 0.2), "views.jitter_p": 0.8,
        "views.grey_p": 0.2, "views.blur": (0.1, 2.0), "views.blur_p": 0.5,
    }),
    "byol": (BYOL, ASYMMETRIC | {
        "epochs": 1000, "batch": 4096, "warmup_epochs": 10, "optimiser.lr": 0.2, "optimiser.reference_batch": 256,
        "optimiser.weight_decay": 1.5e-6, "optimiser.momentum": 0.9, "objective.momentum": 0.996,
        "objective.momentum_schedule": "cosine", "objective.head.hidden": 4096, "objective.head.dim": 256,
        "objective.head.layers": 2, "objective.head.norm": "hidden", "objective.predictor.hidden": 4096,
        "objective.predictor.dim": 256, "objective.predictor.norm": "hidden", "views.scale": (0.08, 1.0),
    }),
    "byol_cifar10": (SOLO, ASYMMETRIC | UNBLURRED | {
        "epochs": 1000, "batch": 256, "warmup_epochs": 10, "optimiser.lr": 1.0, "optimiser.weight_decay": 1e-5,
        "optimiser.trust_coefficient": 0.02, "objective.momentum": 0.99, "objective.head.hidden": 4096,
        "objective.predictor.hidden": 4096, "objective.head.dim": 256,
    }),
    "simsiam": (SIMSIAM, {
        "epochs": 100, "batch": 512, "warmup_epochs": 0.0, "optimiser.lr": 0.05, "optimiser.reference_batch": 256,
        "optimiser.momentum": 0.9, "optimiser.weight_decay": 1e-4, "schedule": "cosine", "net.zero_init": True,
        "objective.head.layers": 3, "objective.head.hidden": 2048, "objective.head.dim": 2048,
        "objective.head.norm": "all", "objective.predictor.layers": 2, "objective.predictor.hidden": 512,
        "objective.predictor.norm": "hidden", "objective.predictor_lr": "constant", "objective.stop_gradient": True,
        "views.scale": (0.2, 1.0), "views.jitter": (0.4, 0.4, 0.4, 0.1), "views.jitter_p": 0.8, "views.grey_p": 0.2,
        "views.blur": (0.1, 2.0), "views.blur_p": 0.5,
    }),
    "simsiam_cifar10": (SIMSIAM_CIFAR, {
        "epochs": 800, "batch": 512, "optimiser.lr": 0.03, "optimiser.reference_batch": 256,
        "optimiser.weight_decay": 5e-4, "optimiser.momentum": 0.9, "objective.head.layers": 2,
        "objective.head.dim": 2048, "objective.predictor.hidden": 512, "views.blur_p": 0.0,
    }),
    "dino_resnet50": (DINO, ASYMMETRIC | {
        "epochs": 100, "batch": 8 * 64, "warmup_epochs": 10, "optimiser.lr": 0.03, "optimiser.reference_batch": 256,
        "optimiser.weight_decay": 1e-4, "optimiser.momentum": 0.9, "optimiser.decay_norms": False, "clip": 3.0,
        "objective.momentum": 0.996, "objective.momentum_schedule": "cosine", "objective.temperature": 0.1,
        "objective.teacher_temperature": 0.04, "objective.centre_momentum": 0.9, "objective.prototypes": 65536,
        "objective.frozen_steps": 1281167 // 512, "objective.head.layers": 3, "objective.head.hidden": 2048,
        "objective.head.dim": 256, "objective.head.norm": "none", "objective.head.activation": "gelu",
        "views.scale": (0.14, 1.0), "views.0.small.count": 8, "views.0.small.size": 96,
        "views.0.small.scale": (0.05, 0.14), "views.0.small.blur_p": 0.5,
    }),
    "dino_vit_s": (DINO, ASYMMETRIC | {
        "epochs": 300, "batch": 1024, "warmup_epochs": 10, "optimiser.lr": 5e-4, "optimiser.reference_batch": 256,
        "optimiser.weight_decay": 0.04, "optimiser.decay_norms": False, "clip": 3.0, "objective.momentum": 0.996,
        "objective.teacher_temperature": 0.07, "objective.first_teacher_temperature": 0.04,
        "objective.teacher_warmup": 30 / 300, "objective.prototypes": 65536, "objective.frozen_steps": 1281167 // 1024,
        "net.width": 384, "net.depth": 12, "net.heads": 6, "net.patch": 16, "net.frozen_patches": False,
        "views.scale": (0.14, 1.0),
    }),
    "dino_cifar10": (SOLO, ASYMMETRIC | UNBLURRED | {
        "epochs": 1000, "batch": 256, "warmup_epochs": 10, "optimiser.lr": 0.3, "optimiser.weight_decay": 1e-6,
        "optimiser.trust_coefficient": 0.02, "objective.momentum": 0.9995, "objective.prototypes": 4096,
        "objective.head.hidden": 2048, "objective.head.dim": 256, "objective.temperature": 0.1,
        "objective.teacher_temperature": 0.07, "objective.teacher_warmup": 0.0, "clip": 0.0,
        "objective.frozen_steps": 50000 // 256,
    }),
    "vicreg": (VICREG, TWINS | {"objective.invariance": 25, "objective.variance": 25 / 2, "objective.covariance": 1}),
    "barlow_twins": (BARLOW, TWINS | {"objective.redundancy": 0.0051, "optimiser.bias_lr_scale": 0.024}),
    "lejepa": (LEJEPA, {
        "optimiser.kind": "adam", "optimiser.lr": 5e-4, "optimiser.weight_decay": 5e-4, "min_lr_ratio": 1e-3,
        "precision": "bf16", "objective.weight": 0.02, "objective.slices": 1024, "objective.points": 17,
        "objective.bound": 5.0, "objective.head.hidden": 2048, "objective.head.dim": 128, "objective.head.layers": 3,
        "objective.head.norm": "hidden", "views.size": 224, "views.scale": (0.3, 1.0),
        "views.jitter": (0.4, 0.4, 0.2, 0.1), "views.jitter_p": 0.8, "views.grey_p": 0.2, "views.blur_p": 0.5,
        "views.solarise_p": 0.2,
    }),
    "vicreg_cifar10": (SOLO, SOLO_LARS | {
        "objective.invariance": 25, "objective.variance": 25, "objective.covariance": 1, "views.scale": (0.2, 1.0),
        "views.solarise_p": 0.1,
    }),
    "barlow_twins_cifar10": (SOLO, SOLO_LARS | {
        "objective.redundancy": 0.0051, "optimiser.bias_lr_scale": 0.1, "views.scale": (0.08, 1.0),
        "views.0.solarise_p": 0.0, "views.1.solarise_p": 0.2,
    }),
    "lejepa_cifar10": (LEJEPA, {
        "epochs": 800, "batch": 256, "warmup_epochs": 1, "optimiser.kind": "adam", "optimiser.lr": 2e-3,
        "optimiser.weight_decay": 5e-4, "min_lr_ratio": 1e-3, "precision": "bf16", "objective.weight": 0.02,
        "objective.slices": 256, "objective.head.hidden": 2048, "objective.head.dim": 16, "views.3.kind": "simclr",
        "views.scale": (0.08, 1.0), "views.jitter": (0.8, 0.8, 0.8, 0.2), "views.jitter_p": 0.8, "views.grey_p": 0.2,
        "views.solarise_p": 0.2,
    }),
}  # fmt: skip


@cache
def recipe(name: str):
    stages = config.load(str(FOLDER / f"{name}.yaml"), [f"shards.source=folder:{FOLDER}"]).stages
    (stage,) = (s for s in stages.values() if s.kind == "pretrain")
    return stage


def below(settings, key: str):
    """What a key names; of views, where it gives no index, what all of them have."""
    if not isinstance(settings, tuple):
        return getattr(settings, key)
    if key.isdigit():
        return settings[int(key)]
    (value,) = {getattr(view, key) for view in settings}
    return value


@pytest.mark.parametrize("name", RECIPES)
def test_every_value_is_the_authors(name):
    source, values = RECIPES[name]
    found = {path: reduce(below, path.split("."), recipe(name)) for path in values}
    assert found == values, source


def test_every_recipe_is_here():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(RECIPES)


def test_the_blur_of_patches_is_not_cut():
    """Of deviations up to 2 on patches of 64 pixels and views of 224: Pillow's, which vissl uses, has no end."""
    from pipeline.views import photometrics

    (views,) = recipe("pirl_mlp").views
    for side in (64, 224):
        assert photometrics.radius(views, side) >= 3 * views.blur[1]


def test_learning_rates_are_those_of_the_papers():
    peaks = {"moco_v2": 0.03, "moco_v3_resnet50": 0.6 * 16, "moco_v3_vit_s": 1.5e-4 * 16, "simclr": 4.8,
             "simclr_v2": 6.4, "simclr_cifar10": 2.0, "pirl": 0.12, "moco_cifar10_symmetric": 0.06,
             "byol": 3.2, "simsiam": 0.1, "simsiam_cifar10": 0.06, "dino_resnet50": 0.06,
             "dino_vit_s": 2e-3, "vicreg": 1.6, "barlow_twins": 1.6, "lejepa": 5e-4,
             "vicreg_cifar10": 0.3}  # fmt: skip
    assert {name: recipe(name).peak_lr() for name in peaks} == pytest.approx(peaks)
