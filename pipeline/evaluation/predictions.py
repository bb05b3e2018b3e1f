"""Which class each test image was taken for by a finished encoder, as a probe keeps it."""

from pathlib import Path

import numpy as np


def path(probe: Path, row: str) -> Path:
    return probe / f"predicted/{row}.safetensors"


def read(probe: Path, row: str) -> dict[str, np.ndarray]:
    """Classes by accuracy, int32 [m], of few labels [draws, m]; and the images' own as ``labels``, [m]."""
    from safetensors.numpy import load_file

    return load_file(path(probe, row))


def right(probe: Path, row: str, accuracy: str) -> np.ndarray | None:
    """Whether each test image was taken for what it is, bool [draws, m]; None for what is no accuracy of single
    images."""
    classes = read(probe, row)
    return np.atleast_2d(classes[accuracy] == classes["labels"]) if accuracy in classes else None
