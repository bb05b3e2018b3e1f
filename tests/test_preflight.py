"""What does not fit between processes is named, with what to do, before anything runs."""

import subprocess
import sys

import pytest

from pipeline import preflight
from tests import small
from tests.raylets import free_port


@pytest.fixture
def pair(tmp_path):
    one = preflight.facts(tmp_path / "runs")
    return [one | {"who": "rank 0 on a"}, one | {"who": "rank 1 on b"}]


def test_two_alike_fit(pair):
    assert preflight.faults(pair) == [] and preflight.faults(pair[:1]) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"code": "0" * 12}, "rank 1 on b has other code than rank 0 on a"),
        ({"versions": {"torch": "1.0"}}, "rank 1 on b has torch 1.0 (not "),
        ({"clock": 0.0}, "s off that of rank 0 on a: set it by NTP"),
        ({"sees": False}, "rank 1 on b does not see what rank 0 on a wrote"),
        ({"writes": False}, "rank 1 on b cannot write to"),
        ({"free": 2**29}, "rank 1 on b has 0.5 GB free"),
    ],
)
def test_what_does_not_fit_is_named(pair, change, words):
    (said,) = preflight.faults([pair[0], pair[1] | change])
    assert words in said


def test_a_token_that_is_not_there_is_not_seen(tmp_path):
    assert not preflight.facts(tmp_path, "token")["sees"]
    (tmp_path / "token").touch()
    assert preflight.facts(tmp_path, "token")["sees"]


@pytest.mark.cluster
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_whose_others_do_not_come_ends_with_69(rank, tmp_path):
    env = small.alone() | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "PIPELINE_JOIN_S": "1"}
    env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    words = [sys.executable, "-m", "pipeline", "run", str(small.write(tmp_path / "runs"))]
    done = subprocess.run(words, env=env, cwd=small.ROOT, capture_output=True, text=True)
    assert done.returncode == 69, done.stderr
    assert f"rank {rank} of 2 did not meet the others" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.cluster
def test_a_run_folder_that_cannot_be_made_is_told_on_every_rank(tmp_path):
    """Not that the others are gone, which would be tried again for ever."""
    config = small.write(tmp_path / "runs")
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    words = [sys.executable, "-m", "pipeline", "run", str(config), "root=/proc/none", "--here"]
    ranks = [
        subprocess.Popen(words, env=small.alone() | world | {"RANK": str(r), "LOCAL_RANK": str(r)}, cwd=small.ROOT,
                         stderr=subprocess.PIPE, text=True) for r in range(2)
    ]  # fmt: skip
    told = [rank.communicate(timeout=300)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [65, 65], told
    assert all("/proc/none: no such file or directory" in text and "Traceback" not in text for text in told)
