"""torchvision:NAME: a classification set that torchvision downloads."""

from pipeline.data.sources.base import Item, Listing, Source, png
from pipeline.errors import DataError
from pipeline.hints import nearest

SETS = ("MNIST", "FashionMNIST", "KMNIST", "QMNIST", "USPS", "CIFAR10", "CIFAR100")


class Torchvision(Source):
    """A dataset by its class name in torchvision, read from ``settings.root`` or downloaded there."""

    def problem(self) -> str:
        return "" if self.where in SETS else f'no set "{self.where}"{nearest(self.where, SETS)}'

    def listing(self) -> Listing:
        import numpy as np
        from torchvision import datasets

        make = getattr(datasets, self.where, None)
        if make is None:
            raise DataError(f"torchvision:{self.where}: torchvision.datasets has no {self.where}")
        items: list[Item] = []
        classes: list[str] | None = None
        root = self.settings.root or "data"
        for split, train in (("train", True), ("test", False)):
            try:
                data = make(root, train=train, download=True)
            except (TypeError, RuntimeError, OSError) as error:
                raise DataError(f"torchvision:{self.where}: {str(error).splitlines()[0]} (root: {root})") from error
            classes = [str(c) for c in getattr(data, "classes", [])] or None
            for i in range(len(data)):
                items.append(
                    Item(f"{split} {i}", split, int(data.targets[i]), lambda d=data, i=i: png(np.asarray(d[i][0])))
                )
        return Listing(items, classes, fixed=True)
