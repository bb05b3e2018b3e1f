"""Configs, checkpoints and indexes changed at random: a line each, or as if nothing had happened; never anything else.

    python -m tests.fuzz [--configs 10000] [--checkpoints 1000] [--indexes 1000] [--seed 0]
"""

import argparse
import contextlib
import io
import random
import shutil
import tempfile
from collections import Counter
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from pipeline import config, plan
from pipeline.data.reader import BadSample, read
from pipeline.data.shards import Shards
from pipeline.errors import PipelineError
from pipeline.settings.stages import Pack
from pipeline.stages import pack
from pipeline.training import checkpoint
from pipeline.world import World
from tests import small
from tests.fuzz_shards import damaged

ODD: list[Any] = [
    None, True, -1, 0, 1, 10**30, 1e999, float("nan"), -0.5, "", " ", "nan", "../../../etc/passwd", "$(touch /tmp/x)",
    "`id`", "${oc.env:HOME}", "!!python/object/apply:os.system ['id']", "\u0000", "é" * 300, [], {}, [1, [2, [3]]],
    {"kind": "moco"}, {"kind": ["a"]}, {1: 2}, "shards", "moco", [None], "1e-3", "0x10", "2026-11-25", b"bytes",
]  # fmt: skip
TEXT = ["\t", "\n", ":", "- ", "{", "}", "[", "]", "&a ", "*a", "!!python/name:os.system ", "#", "'", '"', "\u2028"]


def places(node: Any, at: tuple = ()) -> list[tuple]:
    """Ways to every value in a document."""
    inner = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [way for key, value in inner for way in [(*at, key), *places(value, (*at, key))]]


def mutated(document: Any, draw: random.Random) -> str:
    """A config with one to three changes to its values, its keys or its text."""
    document = deepcopy(document)
    for _ in range(draw.randint(1, 3)):
        ways = places(document)
        if not ways:
            break
        *way, key = draw.choice(ways)
        node = document
        for step in way:
            node = node[step]
        match draw.choice(["value", "value", "drop", "rename", "swap"]):
            case "value":
                node[key] = deepcopy(draw.choice(ODD))
            case "drop":
                del node[key]
            case "rename" if isinstance(node, dict):
                name = str(key)
                at = draw.randrange(len(name)) if name else 0
                node[name[:at] + draw.choice("abcxyz_.-/ ") + name[at + draw.randint(0, 1) :]] = node.pop(key)
            case "swap":
                other = document
                for step in draw.choice(ways):
                    other = other[step] if isinstance(other, (dict, list)) and step in dict_or_list(other) else other
                node[key] = deepcopy(other)
    text = yaml.safe_dump(document, allow_unicode=True)
    if draw.random() < 0.3:
        at = draw.randrange(len(text) + 1)
        text = text[:at] + draw.choice(TEXT) + text[at + draw.randint(0, 3) :]
    return text


def dict_or_list(node: Any) -> Any:
    return node if isinstance(node, dict) else range(len(node))


def configs(count: int, draw: random.Random) -> Counter:
    """Each config is planned, or refused with the code of a user's mistake; nothing is written."""
    documents = [yaml.safe_load(p.read_text()) for p in sorted((small.ROOT / "configs").rglob("*.yaml"))]
    for stage in (stage for document in documents for stage in document["stages"].values()):
        if stage["kind"] == "pack":
            stage["source"] = "digits"  # else most would be refused for the want of their images
    found: Counter = Counter()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        path = Path(folder, "config.yaml")
        for _ in range(count):
            path.write_bytes(mutated(draw.choice(documents), draw).encode("utf-8", "surrogatepass"))
            try:
                plan.plan(config.load(str(path), []), here=True)
                found["planned"] += 1
            except PipelineError as error:
                assert error.code in (2, 65) and str(error).strip(), error
                found["refused"] += 1
            assert [p.name for p in Path(folder).iterdir()] == ["config.yaml"], path.read_text()
    return found


def checkpoints(count: int, draw: random.Random) -> Counter:
    """A damaged checkpoint is passed over for the one before, or holds what was written."""
    found: Counter = Counter()
    with tempfile.TemporaryDirectory() as place:
        kept = Path(place, "checkpoints")
        rest = {"seed": 1, "optimiser": {}}
        tensors = {"weight": torch.randn(7, 5), "queue": torch.arange(11), "step": torch.tensor(3.0)}
        for step in (1, 2):
            checkpoint.save(kept, step, {k: v + step for k, v in tensors.items()}, rest, keep=2)
        for _ in range(count):
            path = kept / "00000002" / draw.choice([checkpoint.TENSORS, checkpoint.STATE])
            whole = path.read_bytes()
            path.write_bytes(damaged(whole, draw))
            with contextlib.redirect_stdout(io.StringIO()):
                read = checkpoint.newest(kept)
            assert read is not None
            step = read[1]["step"]
            assert step in (1, 2) and read[1]["seed"] == 1
            assert all(torch.equal(read[0][k], v + step) for k, v in tensors.items())
            found["passed over" if step == 1 else "unhurt"] += 1
            path.write_bytes(whole)
    return found


def indexes(count: int, draw: random.Random) -> Counter:
    """Damaged manifests, tables of shards and indexes are refused with a line, or every image is what was packed."""
    found: Counter = Counter()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "shards")
        folder.mkdir()
        pack.run(Pack(shard_images=500), 0, {}, folder, World())
        shards = Shards.open(folder)
        some = np.linspace(0, shards.n - 1, 12).astype(int).tolist()
        truth = [(read(shards, i), int(shards.labels[i])) for i in some]
        names = sorted(p for p in folder.iterdir() if p.suffix in (".idx", ".npy") or p.name == "manifest.json")
        for _ in range(count):
            path = draw.choice(names)
            whole = path.read_bytes()
            path.write_bytes(damaged(whole, draw))
            try:
                shards = Shards.open(folder)
                assert [(read(shards, i), int(shards.labels[i])) for i in some] == truth, path.name
                found["unhurt"] += 1
            except (PipelineError, BadSample) as error:
                assert str(error).strip()
                found["refused"] += 1
            path.write_bytes(whole)
        shutil.rmtree(folder)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, count in (("configs", 10_000), ("checkpoints", 1000), ("indexes", 1000), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=count)
    options = parser.parse_args()
    for kind in (configs, checkpoints, indexes):
        count = getattr(options, kind.__name__)
        print(f"{kind.__name__}: {count} changed, {dict(kind(count, random.Random(options.seed)))}", flush=True)


if __name__ == "__main__":
    main()
