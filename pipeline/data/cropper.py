"""Reads, decodes and crops samples; another takes the place of one that cannot be read."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline import bottleneck
from pipeline.data.faults import ATTEMPTS, Fault, fault
from pipeline.data.images import DecodedImages, pixels
from pipeline.data.order import Sampler
from pipeline.data.reader import BadSample, read, read_many
from pipeline.data.shards import Shards
from pipeline.errors import DataError
from pipeline.views.decode import Scratch
from pipeline.views.transforms import ViewTransform

STAGES: tuple[str, ...] = (*bottleneck.STAGES, "wait")


class Report(NamedTuple):
    """What a task reports: the samples that it could not read, and the seconds of each of its stages."""

    faults: list[Fault]
    seconds: dict[str, float]

    @classmethod
    def empty(cls) -> "Report":
        return cls([], dict.fromkeys(STAGES, 0.0))

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        """Adds the duration of the block to a stage's seconds."""
        begun = time.perf_counter()
        yield
        self.seconds[stage] += time.perf_counter() - begun


class Cropper:
    """Writes the crops of samples, for one thread or process at a time. ``sampler``: names replacements; ``decoded``:
    images that are kept in memory, which `decode` fills, a part by each of those that share it."""

    def __init__(self, shards: Shards, transform: ViewTransform, sampler: Sampler, decoded: DecodedImages | None):
        self.shards, self.transform, self.sampler, self.decoded = shards, transform, sampler, decoded
        self.scratch, self.crops = Scratch(), tuple[Tensor, ...]()

    def __reduce__(self) -> tuple:
        return Cropper, (self.shards, self.transform, self.sampler, self.decoded)

    def room(self, count: int) -> tuple[Tensor, ...]:
        """Tensors for the crops of ``count`` samples, uint8 [count, ...], the same memory at every call."""
        if not self.crops or len(self.crops[0]) < count:
            self.crops = tuple(torch.empty(count, *shape, dtype=torch.uint8) for shape in self.transform.crop_shapes)
        return tuple(c[:count] for c in self.crops)

    def decode(self, ids: range) -> None:
        """Decodes images into `decoded`; one that cannot be read is marked as broken."""
        assert self.decoded is not None
        for sample in ids:
            try:
                self.decoded.images[sample] = self._decode(read(self.shards, sample)).permute(1, 2, 0)
            except BadSample:
                self.decoded.broken[sample] = True

    def crop(self, step: int, epoch: int, positions: np.ndarray, ids: np.ndarray, out: tuple[Tensor, ...]) -> Report:
        """Writes the crops of the samples at ``positions`` of the epoch, int64 [B], to ``out``, uint8 [B, ...]. The
        entries of ``ids``, int64 [B], that cannot be read are overwritten with those of their replacements. Raises
        DataError where no replacement can be read."""
        report, params = Report.empty(), self.transform.params(epoch, ids)
        if self.decoded is not None and not self.decoded.broken[ids].any():
            with report.time("crop"):
                self.transform.crop_rows(self.decoded.images, ids, params, out)
            return report
        with report.time("read"):
            files = read_many(self.shards, ids) if self.decoded is None else [None] * len(ids)
        for i, position in enumerate(positions.tolist()):
            due, room = int(ids[i]), tuple(o[i] for o in out)
            ids[i], image = self._readable(step, epoch, position, due, files[i], report)
            with report.time("crop"):
                if ids[i] == due:
                    self.transform.crop(image, params, i, room)
                else:
                    self.transform.crop(image, self.transform.params(epoch, ids[i : i + 1]), 0, room)
        return report

    def fill(self, step: int, epoch: int, positions: np.ndarray, ids: np.ndarray, out: tuple[Tensor, ...]) -> Report:
        """Writes the views of the samples, float32 [B, ...], otherwise as `crop`."""
        crops = self.room(len(ids))
        report = self.crop(step, epoch, positions, ids, crops)
        with report.time("augment"):
            self.transform.views(crops, epoch, ids, out)
        return report

    def _readable(
        self, step: int, epoch: int, position: int, sample: int, file: bytes | BadSample | None, report: Report
    ) -> tuple[int, Tensor]:
        """The id and image of ``sample``, or of its first replacement that can be read. ``file``: the sample's bytes,
        if they were read already. Raises DataError where no replacement can be read."""
        for attempt in range(1, ATTEMPTS + 2):
            try:
                return sample, self._image(sample, report, file)
            except BadSample as error:
                other = self.sampler.replacement(epoch, position, attempt)
                report.faults.append(
                    fault(self.shards, sample, error, step=step, epoch=epoch, position=position, replacement=other)
                )
                sample, file = other, None
        where = f"position {position} of epoch {epoch}"
        raise DataError(f"{where}: {ATTEMPTS} replacements unreadable too; check the shards")

    def _image(self, sample: int, report: Report, file: bytes | BadSample | None) -> Tensor:
        """One decoded image, uint8 [C, H, W], which the next call overwrites. Raises BadSample."""
        if self.decoded is not None and not self.decoded.broken[sample]:
            return self.decoded.images[sample].permute(2, 0, 1)
        if isinstance(file, BadSample):
            raise file
        with report.time("read"):
            data = read(self.shards, sample) if file is None else file
        with report.time("decode"):
            return self._decode(data)

    def _decode(self, data: bytes) -> Tensor:
        about = self.transform.image
        return pixels(data, about.channels, about.exif_orientation, self.scratch)
