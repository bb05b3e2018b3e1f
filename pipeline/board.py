"""What is shown: scalars in metrics.jsonl (what a seed decides) and timings.jsonl (the rest), both in TensorBoard.

The two files are the truth, the event files follow from them. One board a folder at a time.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

LAYOUT = {
    "is it learning": {
        "loss": ["Multiline", ["train/loss"]],
        "energies": ["Multiline", ["energy/low", "energy/high"]],
        "gap": ["Multiline", ["energy/gap"]],
        "learning rate": ["Multiline", ["train/lr"]],
    },
    "is it fed": {
        "images a second": ["Multiline", ["feed/images_per_s"]],
        "seconds a step": ["Multiline", ["feed/read", "feed/decode", "feed/crop", "feed/augment", "feed/wait"]],
        "unreadable": ["Multiline", ["feed/bad"]],
    },
    "did it collapse": {
        "standard deviation": ["Multiline", ["learn/std"]],
        "alignment and uniformity": ["Multiline", ["learn/alignment", "learn/uniformity"]],
        "rank": ["Multiline", ["learn/rankme"]],
        "accuracy among negatives": ["Multiline", ["learn/accuracy"]],
        "age of the memory": ["Multiline", ["learn/queue_age"]],
    },
    "how good is it": {
        "linear probe, all labels": ["Multiline", ["probe/linear_top1"]],
        "linear probe, few labels": ["Multiline", ["probe/linear_10_per_class"]],
        "nearest neighbours": ["Multiline", ["probe/knn_top1"]],
    },
}


def cut(path: Path, step: int) -> None:
    """Drops the rows after ``step``, and a last one that was not written whole."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            break
        if row["step"] <= step:
            kept.append(line + "\n")
    part = path.with_suffix(".part")
    part.write_text("".join(kept))
    part.replace(path)


class Board:
    """Writes one folder's scalars, pictures and texts. ``folder`` None: says nothing (ranks other than 0).
    ``step``: the step restored; what was logged after it is dropped from files and hidden in TensorBoard."""

    def __init__(self, folder: Path | None, step: int = 0):
        self.folder = folder
        self.last: dict[str, float] = {}
        if folder is None:
            return
        from torch.utils.tensorboard import SummaryWriter

        folder.mkdir(parents=True, exist_ok=True)
        for name in ("metrics.jsonl", "timings.jsonl"):
            cut(folder / name, step)
        # A run that starts over has step 0 to hide, too; a first one has nothing.
        again = any(folder.glob("events.out.tfevents.*"))
        self.events = SummaryWriter(str(folder), purge_step=step + 1 if again else None)
        self.events.add_custom_scalars(LAYOUT)
        rows = (folder / "metrics.jsonl").read_text().splitlines() if (folder / "metrics.jsonl").exists() else []
        self.last = {k: v for k, v in json.loads(rows[-1]).items() if k != "step"} if rows else {}

    def _write(self, name: str, step: int, values: Mapping[str, float]) -> None:
        if self.folder is None:
            return
        row = {"step": step} | {k: float(values[k]) for k in sorted(values)}
        with (self.folder / name).open("a") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        for tag, value in values.items():
            self.events.add_scalar(tag, float(value), step)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """What the seed decides: the same bytes whenever it is run."""
        self.last = {k: float(v) for k, v in values.items()}
        self._write("metrics.jsonl", step, values)

    def timings(self, step: int, values: Mapping[str, float]) -> None:
        """What the machine decides."""
        self._write("timings.jsonl", step, values)

    def image(self, tag: str, step: int, picture: np.ndarray) -> None:
        """A sheet, uint8 [H, W] or [H, W, 3]: in TensorBoard, and as sheets/<tag>.png (the latest)."""
        if self.folder is None:
            return
        from PIL import Image as Picture

        if picture.ndim == 2:
            picture = np.repeat(picture[..., None], 3, -1)
        self.events.add_image(tag, picture, step, dataformats="HWC")
        path = self.folder / "sheets" / (tag.replace("/", "-") + ".png")
        path.parent.mkdir(exist_ok=True)
        Picture.fromarray(picture).save(path)

    def histogram(self, tag: str, step: int, values: np.ndarray) -> None:
        if self.folder is not None:
            self.events.add_histogram(tag, values, step)

    def text(self, tag: str, text: str) -> None:
        """Markdown."""
        if self.folder is not None:
            self.events.add_text(tag, text)

    def hparams(self, values: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        if self.folder is not None:
            self.events.add_hparams(dict(values), dict(metrics), run_name=".")

    def embedding(self, tag: str, features: Tensor, labels: list[str], pictures: Tensor) -> None:
        """Points of the projector: features [n, D], a label each, and their pictures uint8 [n, C, H, W] as sprites."""
        if self.folder is not None:
            sprites = pictures.float().expand(-1, 3, -1, -1) / 255
            self.events.add_embedding(features, metadata=labels, label_img=sprites, tag=tag)

    def flush(self) -> None:
        if self.folder is not None:
            self.events.flush()

    def close(self) -> None:
        if self.folder is not None:
            self.events.close()
