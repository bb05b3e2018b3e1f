"""TensorBoard's event files, written without torch. Every value has the description of its tag (`tags.describe`).

Values are tensors: TensorBoard's fast reader drops the descriptions of other kinds.
"""

import io
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import files, tags

VERSION = "brain.Event:2"
FILES = "events.out.tfevents.*"


class Events:
    """A folder's event file. Those of earlier starts are taken over into a new one until step ``last``, and removed:
    to hide what comes after it by a mark in the file works in some of TensorBoard's readers only."""

    def __init__(self, folder: Path, last: int):
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        before = sorted(folder.glob(FILES))
        self.file = EventFileWriter(str(folder))
        for path in before:
            for event in read(path):
                if event.HasField("summary") and event.step <= last:
                    self.file.add_event(event)
        self.file.flush()
        for path in before:
            path.unlink()

    def add(self, summary: Any, step: int = 0) -> None:
        from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[attr-defined]

        self.file.add_event(Event(wall_time=time.time(), step=step, summary=summary))

    def flush(self) -> None:
        self.file.flush()

    def close(self) -> None:
        self.file.close()


def read(path: Path) -> Iterator[Any]:
    """The events of a file until its end, or until the first that is not whole."""
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[attr-defined]

    return (Event.FromString(data) for data in RawEventFileLoader(str(path)).Load())


def write(path: Path, summaries: Iterable[tuple[int, Any]], now: float) -> None:
    """A whole event file of summaries and their steps. ``now``: seconds, by which TensorBoard sorts and colours runs,
    seven colours in turn."""
    from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[attr-defined]
    from tensorboard.summary.writer.record_writer import RecordWriter

    data = io.BytesIO()
    records = RecordWriter(data)
    for event in (Event(file_version=VERSION), *(Event(step=step, summary=s) for step, s in summaries)):
        event.wall_time = now
        records.write(event.SerializeToString())
    files.write(path, data.getvalue(), durable=False)


def scalar(tag: str, value: float) -> Any:
    from tensorboard.plugins.scalar.summary_v2 import scalar_pb

    return scalar_pb(tag, value, tags.describe(tag))


def histogram(tag: str, values: np.ndarray) -> Any:
    from tensorboard.plugins.histogram.summary_v2 import histogram_pb

    return histogram_pb(tag, values, description=tags.describe(tag))


def text(tag: str, markdown: str) -> Any:
    from tensorboard.plugins.text.summary_v2 import text_pb

    return text_pb(tag, markdown, tags.describe(tag))


def image(tag: str, png: bytes, width: int, height: int) -> Any:
    from tensorboard.plugins.image.metadata import create_summary_metadata

    return summary(tag, create_summary_metadata(None, tags.describe(tag)), [f"{width}", f"{height}", png])


def layout(categories: Any) -> Any:
    """The page of custom scalars. ``categories``: its protobuf's."""
    from tensorboard.plugins.custom_scalar import metadata
    from tensorboard.plugins.custom_scalar.layout_pb2 import Layout  # type: ignore[attr-defined]

    body = Layout(category=categories).SerializeToString()
    return summary(metadata.CONFIG_SUMMARY_TAG, metadata.create_summary_metadata(), [body])


def summary(tag: str, metadata: Any, values: list[Any]) -> Any:
    """A summary of strings."""
    from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[attr-defined]
    from tensorboard.util.tensor_util import make_tensor_proto

    tensor = make_tensor_proto(np.array(values, dtype=object))
    return Summary(value=[Summary.Value(tag=tag, metadata=metadata, tensor=tensor)])


def hparams(name: str, values: Mapping[str, Any]) -> Any:
    """A row of the HParams page, which is that of the run it is written to."""
    from tensorboard.plugins.hparams.summary_v2 import hparams_pb

    return hparams_pb(dict(values), trial_id=name)


def hparams_columns(values: list[str], metrics: list[str]) -> Any:
    """The columns of the HParams page: settings, and tags of scalars whose last points are the results."""
    from tensorboard.plugins.hparams.summary_v2 import HParam, Metric, hparams_config_pb

    return hparams_config_pb([HParam(v) for v in values], [Metric(m, description=tags.describe(m)) for m in metrics])
