"""The contract on CUDA, `uv run pytest -m gpu`: loss and gradient as on the CPU, bf16 in bounds, bitwise resume."""

import json
import os
from dataclasses import replace

import pytest
import torch

from pipeline.settings.nets import Norm
from tests.cases import CASES, JOINT, batch, make, warm

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what torch's deterministic algorithms ask for
pytestmark = pytest.mark.gpu
IDS = [3, 1, 12, 25, 9, 30, 17, 6]
NETS = [n for n in CASES if not n.startswith("lista")]


def moved(b, device):
    return replace(b, views=tuple(v.to(device) for v in b.views), ids=b.ids.to(device))


@pytest.mark.parametrize("name", NETS)
def test_loss_gradient_and_memory_are_the_cpus(name, world):
    found = []
    for device in ("cpu", "cuda"):
        objective = warm(make(name, world)).to(device)
        result = objective(moved(batch(objective, IDS, 3), device))
        result.loss.backward()
        objective.commit(result.pending, 3)
        grads = {k: p.grad.cpu() for k, p in objective.named_parameters() if p.grad is not None}
        found.append((result.loss.detach().cpu(), grads, {k: v.cpu() for k, v in objective.state_dict().items()}))
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-11, equal_nan=True)


@pytest.mark.parametrize("name", JOINT)
def test_bf16_stays_near(name, world):
    losses = []
    for enabled in (False, True):
        objective = warm(make(name, world, dtype=torch.float32), dtype=torch.float32).cuda()
        with torch.autocast("cuda", torch.bfloat16, enabled=enabled):
            result = objective(moved(batch(objective, IDS, 3, torch.float32), "cuda"))
        assert result.loss.dtype == torch.float32
        losses.append(float(result.loss))
    assert losses[1] == pytest.approx(losses[0], rel=0.05, abs=0.05)


@pytest.mark.parametrize(
    "name",
    ["moco", "moco_symmetric", "pirl", "pirl_infonce", "simclr", "moco_v3", "vicreg", "barlow_twins", "lejepa"],
)
def test_the_step_waits_for_nothing(name, world):
    """No synchronisation with the device between the batch and the commit."""
    objective = warm(make(name, world, norm=Norm(), dtype=torch.float32), dtype=torch.float32).cuda()
    b = moved(batch(objective, IDS, 3, torch.float32), "cuda")
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        result = objective(b)
        result.loss.backward()
        objective.commit(result.pending, 3)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("how", [True, "graphs"])
@pytest.mark.parametrize("name", ["moco", "moco_symmetric", "pirl_infonce", "simclr"])
def test_compiled_it_learns_the_same(name, how, digits, tmp_path):
    from tests.test_training import train

    changes = {"log_steps": 1, "snapshots": 0, "save_epochs": 3}
    losses = []
    for compiled in (False, how):
        torch.compiler.reset()
        train(name, digits, tmp_path / str(compiled), compile=compiled, **changes)
        rows = (tmp_path / str(compiled) / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(row)["learn/loss"] for row in rows])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


@pytest.mark.parametrize("name", ["moco", "pirl_infonce", "simclr"])
def test_resume_is_bitwise(name, digits, tmp_path, world):
    from pipeline.errors import Stopped
    from tests.test_training import train

    torch.use_deterministic_algorithms(True)
    try:
        whole = train(name, digits, tmp_path / "whole")
        with pytest.raises(Stopped):
            train(name, digits, tmp_path / "cut", stop_at=5)
        parts = train(name, digits, tmp_path / "cut")
    finally:
        torch.use_deterministic_algorithms(False)
    assert [k for k in whole if not torch.equal(whole[k], parts[k])] == []
