"""Disks that are full and folders that nobody can write to: one line with the documented code, nothing half-written,
and the same command goes on once there is room."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_outside import shell
from tests.test_pack import picture, tree
from tests.test_tar import archive


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A config of one stage, in the working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text("stages:\n  shards: {kind: pack, source: digits}\n")
    return tmp_path


def read_only(folder: Path, command: str) -> subprocess.CompletedProcess:
    """A command beside a folder that nobody can write to; proves that nobody can."""
    if os.geteuid():
        folder.chmod(0o555)
        return shell(f"! touch {folder}/x 2>/dev/null || exit 99; {command}")
    apart = f"mount --bind {folder} {folder} && mount -o remount,ro,bind {folder} {folder}"
    inside = f'! touch {folder}/x 2>/dev/null || exit 99; exec "{sys.executable}" -m {command}'
    return shell(f"exec unshare -m bash -c '{apart} && {inside}'")


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("pipeline run c.yaml root=closed/runs --here", 70),
        ("pipeline run c.yaml root=c.yaml/runs --here", 65),  # below what is a file
        ("pipeline index closed/x.tar", 70),
    ],
)
def test_a_folder_that_cannot_be_written_to_is_one_line(place, command, code):
    (place / "closed").mkdir()
    (place / "closed/x.tar").write_bytes(archive([("a.jpg", picture(0, 16, 16)), ("a.cls", b"0")]))
    told = read_only(place / "closed", command)
    assert told.returncode == code, told
    assert told.stderr.count("\n") == 1 and not list(place.glob("closed/[!x]*"))


PHOTOS = """\
root: full
stages:
  shards: {kind: pack, source: "folder:photos"}
"""


def left(root: Path) -> list[str]:
    """Files of shards, whole or begun."""
    return [p.name for pattern in ("*/*.tar*", "*/*.idx*", "*/*.npy*", "*/manifest*") for p in root.glob(pattern)]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["disk", "largest file"])
def test_a_disk_that_fills_while_packing_and_then_has_room(place, how):
    """300 kB of photographs; 100 kB of room, or of the largest file that the user may write."""
    tree(place / "photos", [f"{c}/{i}.png" for c in "ab" for i in range(300)])
    assert sum(p.stat().st_size for p in place.glob("photos/*/*")) > 200_000
    (place / "c.yaml").write_text(PHOTOS)
    (place / "full").mkdir()
    if how == "disk":
        if os.geteuid():
            pytest.skip("mounts a disk: run as root")
        ours = f'"{sys.executable}" -m pipeline run c.yaml --here'
        listed = "ls full/*/*.tar* full/*/*.idx full/*/manifest* 2>/dev/null"
        steps = f"mount -t tmpfs -o size=100k tmpfs full; {ours}; echo code $?; {listed}; " \
                f"mount -o remount,size=50m full; {ours}; echo code $?"  # fmt: skip
        told = shell(f"exec unshare -m bash -c '{steps}'")
        assert "no space left on device: free some, then run the same command again" in told.stderr
        assert [line for line in told.stdout.splitlines() if ".tar" in line or line.startswith("code")] == [
            "code 70", "code 0"]  # fmt: skip
    else:
        told = shell("ulimit -f 100; pipeline run c.yaml --here")
        assert told.returncode == 70 and "file too large: raise the largest size of a file (ulimit -f)" in told.stderr
        assert left(place / "full") == []
        assert shell("pipeline run c.yaml --here").returncode == 0 and "train-000000.tar" in left(place / "full")
    assert told.stderr.count("\n") == 1
