"""Imports point one way, and the core runs where Ray and webdataset are not installed."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = [  # each may import what stands before it, and itself
    {"bottleneck", "errors", "files", "hints", "image", "jit", "keyed", "launcher", "lines", "page", "process"},
    {"tags"},
    {"charts", "events", "progress", "signals", "tensors"},
    {"settings"},
    {"world", "board", "sheets"},
    {"samplers"},
    {"sparse", "nets", "views"},
    {"data"},
    {"objectives"},
    {"training", "evaluation"},
    {"stages"},
    {"advice", "document", "estimate", "diagnosis"},
    {"artifact", "config"},
    {"plan"},
    {"display", "logs", "runner", "runs", "show", "preflight", "report"},
    {"placement"},
    {"commands"},
    {"api", "cli"},
    {"testing"},
]
ORDER = {name: i for i, layer in enumerate(LAYERS) for name in layer}
# The runner starts the placements it is told to; that one arrow goes up, and only inside functions.
LATE = {("runner", "placement"), ("objectives", "data"), ("data", "objectives")}


def imports(path: Path, top_only: bool = False):
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_only else ast.walk(tree)
    package = path.relative_to(ROOT).parent.parts
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            stem = ".".join(p for p in (base, node.module) if p)
            yield from (f"{stem}.{alias.name}" for alias in node.names)


FILES = sorted((ROOT / "pipeline").rglob("*.py"))


def layer(path: Path) -> str:
    parts = path.relative_to(ROOT / "pipeline").with_suffix("").parts
    return parts[0]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path):
    mine = layer(path)
    if mine not in ORDER:
        assert mine in ("__init__", "__main__"), f"{path} belongs to no layer"
        return
    for name in imports(path):
        parts = name.split(".")
        if parts[0] != "pipeline" or len(parts) < 2 or parts[1] not in ORDER:
            continue
        assert ORDER[parts[1]] <= ORDER[mine] or (mine, parts[1]) in LATE, f"{path.name} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_ray_and_webdataset_stay_at_the_edge(path):
    name = str(path.relative_to(ROOT / "pipeline"))
    found = {n.split(".")[0] for n in imports(path)}
    if name not in ("placement/ray.py", "placement/jobs.py", "data/interop.py"):
        assert "ray" not in found
    if name != "data/interop.py":
        assert "webdataset" not in found
    late = {"torchvision", "sklearn", "tensorboard", "matplotlib", "scipy"}
    assert not late & {n.split(".")[0] for n in imports(path, top_only=True)}


def test_objectives_know_no_data_and_no_process_group():
    for path in FILES:
        if layer(path) in ("objectives", "nets", "samplers", "sparse"):
            found = set(imports(path))
            assert not any(n.startswith(("pipeline.data", "accelerate", "torch.distributed")) for n in found), path


BLOCKED = """
import sys
for absent in ("ray", "webdataset", "torch._dynamo"):  # not installed; the last takes as long to import as torch
    sys.modules[absent] = None
from pipeline.cli import main
raise SystemExit(main(sys.argv[1:]))
"""


def test_trains_without_ray_webdataset_and_the_compiler(tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text(
        "root: " + str(tmp_path / "runs") + "\nstages:\n"
        "  shards: {kind: pack}\n"
        "  moco: {kind: pretrain, data: shards, views: {kind: characters}, steps: 2, batch: 64,"
        " objective: {kind: moco, queue: 64}}\n"
        "  probe: {kind: probe, data: shards, encoders: [moco], draws: 2, train_examples: 400}\n"
    )
    done = subprocess.run([sys.executable, "-c", BLOCKED, "run", str(config)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "linear" in done.stdout
