"""What of a run folder must be equal, byte for byte, between two runs of the same config."""

import hashlib
import json
import shutil
from pathlib import Path

from pipeline.settings.stages import Pretrain
from pipeline.stages import pretrain
from pipeline.world import World

WALL = {"config", "started", "finished", "seconds", "host", "cpu", "pid", "placed", "versions", "git"}


def content(root: Path) -> dict[str, str]:
    """Digest of every file of the finished stages, but for wall times: event files, timings, host fields."""
    found = {}
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        name = str(path.relative_to(root))
        if name.startswith("pages/") or "tfevents" in name or name.endswith(("timings.jsonl", ".log", ".lock")):
            continue
        data = path.read_bytes()
        if path.name == "artifact.json":
            body = json.loads(data)
            data = json.dumps({k: v for k, v in body.items() if k not in WALL}, sort_keys=True).encode()
        found[name] = hashlib.sha256(data).hexdigest()
    return found


def differences(a: Path, b: Path) -> list[str]:
    """Files that are missing from one or differ."""
    one, two = content(a), content(b)
    return [name for name in sorted(one.keys() | two.keys()) if one.get(name) != two.get(name)]


def whole_and_resumed(settings: Pretrain, step: int, shards: Path, folder: Path, world: World) -> tuple[bytes, bytes]:
    """The files of the model of a training, ``folder``/one, and of one that goes on from its checkpoint of a step."""
    one, two = folder / "one", folder / "two"
    one.mkdir()
    pretrain.run(settings, 0, {"shards": shards}, one, world)
    shutil.copytree(one / f"checkpoints/{step:08d}", two / f"checkpoints/{step:08d}")
    pretrain.run(settings, 0, {"shards": shards}, two, world)
    return (one / "model.safetensors").read_bytes(), (two / "model.safetensors").read_bytes()
