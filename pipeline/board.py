"""What is shown: scalars in metrics.jsonl (what a seed decides) and timings.jsonl (the rest), both in TensorBoard.

The two files are the truth: event files drop the tail of a killed run, and lose all after a damaged byte. One board a
folder at a time.
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from pipeline import events, files
from pipeline.events import Events
from pipeline.sheets import Picture, captioned, colours

POINTS = 5000  # of a projector: it reads text, about 20 bytes a number, in the browser
METRICS = "metrics.jsonl"
SMALL, SPRITE = 32, 48  # pixels on a side of a point's picture, in its frame: of small images, and of others


def cut(path: Path, step: int) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """Drops the rows after ``step``, and a last one that was not written completely. Returns the rows until ``step``
    and those dropped."""
    if not path.exists():
        return [], []
    rows, dropped = [], []
    for line in path.read_text().splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            break
        (rows if row["step"] <= step else dropped).append(row)
    files.write_json_lines(path, rows)
    return rows, dropped


def last_step(folder: Path) -> int | None:
    """The last step of a folder's scalars, None where it has none."""
    path = folder / METRICS
    rows = path.read_text().splitlines() if path.exists() else []
    return json.loads(rows[-1])["step"] if rows else None


class Board:
    """Writes one folder's scalars, pictures and texts. ``folder`` None: says nothing (ranks other than 0).

    ``step``: the step restored; what was logged after it is dropped. -1: of an earlier start nothing is kept.
    """

    def __init__(self, folder: Path | None, step: int = 0):
        self.folder = folder
        self.last: dict[str, float] = {}
        self.before: tuple[list[dict[str, float]], list[dict[str, float]]] = [], []
        """Of earlier starts' timings, the rows kept and those dropped."""
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        rows, _ = cut(folder / METRICS, step)
        self.before = cut(folder / "timings.jsonl", step)
        self.events = Events(folder, step)
        self.last = {k: v for k, v in rows[-1].items() if k != "step"} if rows else {}

    def _write(self, name: str, step: int, values: Mapping[str, float]) -> None:
        if self.folder is None:
            return
        row = {"step": step} | {k: float(values[k]) for k in sorted(values)}
        with (self.folder / name).open("a") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        for tag, value in values.items():
            self.events.add(events.scalar(tag, float(value)), step)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """What the seed decides: the same bytes whenever it is run."""
        self.last = {k: float(v) for k, v in values.items()}
        self._write(METRICS, step, values)

    def timings(self, step: int, values: Mapping[str, float]) -> None:
        """What the machine decides."""
        self._write("timings.jsonl", step, values)

    def image(self, tag: str, step: int, picture: Picture) -> None:
        """A picture under its caption and step: in TensorBoard, and as sheets/<tag>.png (the latest)."""
        if self.folder is None:
            return
        page, path = captioned(picture, step), self.folder / "sheets" / f"{flat(tag)}.png"
        store(path, page, picture.caption)
        self.events.add(events.image(tag, path.read_bytes(), page.shape[1], page.shape[0]), step)

    def histogram(self, tag: str, step: int, values: np.ndarray) -> None:
        if self.folder is not None:
            self.events.add(events.histogram(tag, values), step)

    def text(self, tag: str, text: str) -> None:
        """Markdown."""
        if self.folder is not None:
            self.events.add(events.text(tag, text))

    def embedding(self, tag: str, points: Tensor, labels: list[str], pictures: Tensor) -> None:
        """The projector: points [n, D], a label each, and their pictures uint8 [n, C, H, W]; the first POINTS of them.

        A second start keeps the embeddings that an earlier one listed.
        """
        if self.folder is None:
            return
        folder = self.folder / "projector" / flat(tag)
        folder.mkdir(parents=True, exist_ok=True)
        rows = ("\t".join(f"{v:.6g}" for v in point) for point in points[:POINTS].tolist())
        (folder / "points.tsv").write_text("\n".join(rows) + "\n")
        (folder / "labels.tsv").write_text("\n".join(" ".join(label.split()) for label in labels[:POINTS]) + "\n")
        sheet, side = mosaic(pictures[:POINTS], labels[:POINTS])
        store(folder / "sprite.png", sheet, f"Pictures of the points of {tag}.")
        list_embedding(self.folder / "projector_config.pbtxt", tag, list(points[:POINTS].shape), side)

    def flush(self) -> None:
        if self.folder is not None:
            self.events.flush()

    def close(self) -> None:
        if self.folder is not None:
            self.events.close()


def list_embedding(path: Path, tag: str, shape: list[int], side: int) -> None:
    """Adds an embedding of [n, D] points, with sprites of ``side`` pixels, to the projector's list in ``path``."""
    from google.protobuf import text_format
    from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig  # type: ignore[attr-defined]

    before = ProjectorConfig()
    if path.exists():
        text_format.Parse(path.read_text(), before)
    config = ProjectorConfig(embeddings=[e for e in before.embeddings if e.tensor_name != tag])
    new = config.embeddings.add(tensor_name=tag, tensor_shape=shape)
    new.tensor_path, new.metadata_path = (f"projector/{flat(tag)}/{n}.tsv" for n in ("points", "labels"))
    new.sprite.image_path = f"projector/{flat(tag)}/sprite.png"
    new.sprite.single_image_dim.extend([side, side])
    files.write(path, text_format.MessageToString(config))


def flat(tag: str) -> str:
    """A tag as a file name."""
    return tag.replace("/", "-")


def store(path: Path, pixels: np.ndarray, caption: str) -> None:
    """uint8 [H, W, 3] as PNG; its caption, the alternative text on a page, is the file's "Description"."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    path.parent.mkdir(parents=True, exist_ok=True)
    told = PngInfo()
    told.add_itxt("Description", caption)
    Image.fromarray(pixels).save(path, pnginfo=told)


def mosaic(pictures: Tensor, labels: list[str]) -> tuple[np.ndarray, int]:
    """Pictures uint8 [n, C, H, W] as the projector's sprite: a square of squares in reading order, the rest white ->
    uint8 [S, S, 3] and the side of one in pixels. Each is in a frame of its label's colour: the projector colours
    points at a click, but no setting makes it do so at once."""
    side = SMALL if max(pictures.shape[-2:]) <= SMALL else SPRITE
    edge, width = math.ceil(math.sqrt(len(pictures))), side // 8
    small = interpolate(pictures.float(), (side - 2 * width, side - 2 * width), mode="area")
    names = sorted(set(labels))
    palette = 255 * torch.from_numpy(colours(len(names))).to(small)
    sheet = small.new_full((edge * edge, 3, side, side), 255)
    sheet[: len(small)] = palette[[names.index(label) for label in labels]][..., None, None]
    sheet[: len(small), :, width : side - width, width : side - width] = small
    grid = sheet.view(edge, edge, 3, side, side).permute(0, 3, 1, 4, 2).reshape(edge * side, edge * side, 3)
    return grid.round().byte().numpy(), side
