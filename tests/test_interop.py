"""The streaming used alone: torch, Ray Data and webdataset over the same shards, and shards at a URL."""

import hashlib
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch

import pipeline.data
from pipeline.data import Shards, Stream, datasource, read, read_many
from pipeline.data.order import Sampler
from pipeline.data.reader import BadSample
from pipeline.errors import DataError
from pipeline.settings.stages import Pack
from tests.test_faults import damage, packed  # noqa: F401


def test_a_stream_is_the_order(packed):  # noqa: F811
    shards = Shards.open(packed)
    for window in (None, 2):
        expected = Sampler(shards.counts, 3, window).ids(5, np.arange(shards.n)).tolist()
        rows = list(Stream(packed, seed=3, epoch=5, window=window))
        assert [r["id"] for r in rows] == expected
        assert all(r["image"] == read(shards, r["id"]) and r["key"] == shards.key(r["id"]) for r in rows)
        assert [r["label"] for r in rows] == shards.labels[expected].tolist()
        assert [r["id"] for r in Stream(packed, seed=3, epoch=5, window=window, start=40)] == expected[40:]
        ranks = [list(Stream(packed, seed=3, epoch=5, window=window, start=7, rank=r, size=4)) for r in range(4)]
        joined = sorted((7 + (r - 7) % 4 + 4 * i, row["id"]) for r in range(4) for i, row in enumerate(ranks[r]))
        assert [sample for _, sample in joined] == expected[7:]


def test_a_data_loader_takes_it(packed):  # noqa: F811
    stream = Stream(packed, seed=1)
    loaded = list(torch.utils.data.DataLoader(stream, batch_size=10, collate_fn=list))
    assert [r["id"] for batch in loaded for r in batch] == [r["id"] for r in stream] and len(stream) == 97


def test_a_bad_sample_is_said(packed, tmp_path):  # noqa: F811
    import shutil

    shutil.copytree(packed, tmp_path / "set")
    damage(tmp_path / "set", 30)
    with pytest.raises(DataError, match=r"train-000001.tar: 000000030.jpg at byte \d+: its bytes are not those"):
        list(Stream(tmp_path / "set"))


def test_ray_data_reads_it(packed, monkeypatch):  # noqa: F811
    """The read tasks as Ray runs them."""
    shards = Shards.open(packed)
    monkeypatch.chdir(packed.parent)
    tasks = datasource(packed.name).get_read_tasks(3)
    monkeypatch.chdir("/")  # workers stand elsewhere
    rows = [row for task in tasks for block in task() for row in block.to_pylist()]
    assert [t.metadata.num_rows for t in tasks] == [32, 32, 33]
    assert [r["id"] for r in rows] == list(range(97))
    assert [r["image"] for r in rows] == [read(shards, i) for i in range(97)]


@pytest.mark.slow
@pytest.mark.cluster
def test_ray_data_in_a_cluster(packed, tmp_path):  # noqa: F811
    """Our source, and Ray's own reader of the same tars, in a local Ray."""
    import os
    import subprocess
    import sys

    code = """
import sys, ray
from pipeline.data import datasource
ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)  # whatever else runs on this machine
ours = {r["key"]: bytes(r["image"]) for r in ray.data.read_datasource(datasource(sys.argv[1])).take_all()}
ray_own = ray.data.read_webdataset(sys.argv[1] + "/train-000000.tar", decoder=None).take_all()
assert len(ours) == 97 and len(ray_own) == 25
assert all(ours[r["__key__"]] == bytes(r["jpg"]) for r in ray_own)
"""
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code, str(packed)], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_example_of_the_package_runs(packed, monkeypatch):  # noqa: F811
    text = pipeline.data.__doc__ or ""
    lines = [line[4:] for line in text.splitlines() if line.startswith("    ") and "ray.data" not in line]
    exec("\n".join(lines).replace("runs/shards-1234abcd", str(packed)).replace("start=1000", "start=90"), {})


@pytest.fixture
def remote(packed):  # noqa: F811
    """The packed set in a file system that is no folder."""
    files = fsspec.filesystem("memory")
    files.put(str(packed), "/bucket/set", recursive=True)
    yield "memory://bucket/set"
    files.rm("/bucket", recursive=True)


def test_shards_at_a_url_are_the_same(packed, remote):  # noqa: F811
    here, there = Shards.open(packed), Shards.open(remote)
    assert here.fingerprint == there.fingerprint and here.n == there.n
    ids = np.random.default_rng(0).permutation(here.n)
    assert read_many(there, ids) == [read(here, i) for i in ids.tolist()] == read_many(here, ids)
    assert [r["id"] for r in Stream(remote, window=2)] == [r["id"] for r in Stream(packed, window=2)]


def test_shards_at_a_url_are_checked(remote, tmp_path, world):
    files = fsspec.filesystem("memory")
    body = bytearray(files.cat_file("/bucket/set/train-000000.tar"))
    k, row = Shards.open(remote).row(3)
    body[int(row["offset"]) + 50] ^= 255
    files.pipe_file("/bucket/set/train-000000.tar", bytes(body))
    shards = Shards.open(remote)
    bad = [isinstance(d, BadSample) for d in read_many(shards, np.array([2, 3, 4]))]
    assert k == 0 and bad == [False, True, False]
    files.pipe_file("/bucket/set/train-000001.tar", bytes(100))
    with pytest.raises(DataError, match=r"memory://bucket/set/train-000001.tar: 100 bytes, \d+ were written"):
        Shards.open(remote)
    files.rm("/bucket/set/train-000001.tar")
    with pytest.raises(DataError, match=r"train-000001.tar: this shard is missing"):
        Shards.open(remote)


def test_a_stage_uses_shards_at_a_url(packed, remote, tmp_path, world):  # noqa: F811
    from pipeline.stages import pack

    metrics = pack.run(Pack(source=f"shards:{remote}"), 0, {}, tmp_path, world)
    shards, first = Shards.open(tmp_path), Shards.open(packed)
    assert metrics["train_images"] == 97 and not list(tmp_path.glob("*.tar"))
    digests = [hashlib.sha256(read(s, 96)).hexdigest() for s in (shards, first)]
    assert digests[0] == digests[1]
