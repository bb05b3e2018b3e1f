"""What every test stands on: one thread, no network, and one small set of real images packed once."""

import os

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # else each of some hundred processes compiles all it imports again
os.environ.pop("COLUMNS", None)  # of a worker of pytest-xdist, which has no terminal
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("PIPELINE_REPORT", "no")  # a second or two for each of some hundred runs; tests/test_report.py
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")

import sys
from pathlib import Path

import pytest
from hypothesis import settings

sys.dont_write_bytecode = False
settings.register_profile("untimed", deadline=None)  # no test asserts a time: beside others one takes longer
settings.load_profile("untimed")


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def world():
    from pipeline.world import World

    return World(threads=1)


@pytest.fixture(scope="session")
def digits(tmp_path_factory, world) -> Path:
    """A folder of packed digits: 1,438 training and 359 test images of 8x8 grey pixels."""
    from pipeline.settings.stages import Pack
    from pipeline.stages import pack

    out = tmp_path_factory.mktemp("digits")
    pack.run(Pack(), 0, {}, out, world)
    return out


def pytest_addoption(parser):
    parser.addoption("--kills", type=int, default=3, help="SIGKILLs of the quick start (more than 3: all of it)")


def pytest_collection_modifyitems(items):
    """The file that takes longest first, so that one worker does not wait for the other's at the end."""
    items.sort(key=lambda item: item.path.name != "test_slurm.py")
