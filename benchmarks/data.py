"""The images that figures measure on: `python -m benchmarks.data [NAME ...]` brings those that are not there."""

import subprocess
import sys
from pathlib import Path

from pipeline.errors import DataError

HOME = Path("data")
PHOTOGRAPHS = "https://github.com/EliSchwartz/imagenet-sample-images"
"""One photograph of each ImageNet class, of about 500 x 375 pixels."""


def need(name: str) -> Path:
    """The folder of a set. Raises DataError, with the command that brings it, where it is not there."""
    folder = HOME / name
    if not folder.is_dir():
        raise DataError(f"no {folder} here; `python -m benchmarks.data {name.partition('/')[0]}` brings it")
    return folder


def class_folders(name: str, made: type, form: str) -> None:
    """A set of torchvision's as files: data/NAME/SPLIT/CLASS/NUMBER.FORM."""
    for split in ("train", "test"):
        images = made(HOME / ".torchvision", train=split == "train", download=True)
        for i, (image, label) in enumerate(images):
            path = HOME / name / split / images.classes[label].partition(" ")[0] / f"{i:05d}.{form}"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)


def bring(name: str) -> None:
    """Downloads a set."""
    from torchvision import datasets

    if name == "imagenet-sample":
        subprocess.run(["git", "clone", "--quiet", "--depth", "1", PHOTOGRAPHS, HOME / name], check=True)
    elif name == "cifar10":
        class_folders(name, datasets.CIFAR10, "jpg")
    else:
        class_folders(name, datasets.MNIST, "png")


NAMES = ("cifar10", "mnist", "imagenet-sample")


def main(names: list[str]) -> int:
    if unknown := [name for name in names if name not in NAMES]:
        print(f"no set {', '.join(unknown)}; expected some of {', '.join(NAMES)}", file=sys.stderr)
        return 2
    for name in names or NAMES:
        if (HOME / name).is_dir():
            print(f"{HOME / name}: there")
            continue
        bring(name)
        print(f"{HOME / name}: downloaded")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
