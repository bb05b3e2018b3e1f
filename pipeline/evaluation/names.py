"""What a probe's rows and accuracies are called where people read them."""

from typing import Any

PIXELS, FEW = "raw_pixels", "linear_few"


def accuracy(key: str, protocol: dict[str, Any]) -> str:
    """An accuracy of a row, by its key there and the probe's protocol."""
    known = {
        "linear_top1": "linear, all labels",
        FEW: f"linear, {protocol.get('per_class')} labels a class",
        "knn_top1": "nearest neighbours",
    }
    return known.get(key, key.replace("_", " "))


def row(name: str, untrained: dict[str, list[str]]) -> str:
    """A row of a probe; ``untrained``: the encoders whose network each untrained row is."""
    if name in untrained:
        return f"untrained network of {', '.join(untrained[name])}"
    return "raw pixels" if name == PIXELS else name
