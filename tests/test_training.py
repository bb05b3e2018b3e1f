"""The loop: the same weights after any interruption, the same gradient for any cutting of the batch."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.errors import ConfigError, NoProgressError, Stopped
from pipeline.objectives.base import Objective, ParameterGroup
from pipeline.settings.nets import CNN, Norm, ResNet
from pipeline.settings.objectives import AE, DAE, PIRL, VAE, Head, MoCo, SimCLR
from pipeline.settings.stages import Pretrain
from pipeline.settings.training import LARS, SGD, Adam
from pipeline.stages import pretrain
from pipeline.training import checkpoint, optim
from pipeline.world import World

HEAD = Head(hidden=16, dim=8)
OBJECTIVES = {
    "simclr": SimCLR(head=HEAD),
    "moco": MoCo(queue=100, momentum=0.9, head=HEAD),
    "moco_symmetric": MoCo(queue=100, momentum=0.9, symmetric=True, head=HEAD),
    "pirl": PIRL(head=HEAD, negatives=64),
    "pirl_infonce": PIRL(head=HEAD, loss="infonce", negatives=0, temperature=0.2),
    "ae": AE(),
    "dae": DAE(),
    "vae": VAE(warmup=0.5),
}


def stage(name: str, **changes):
    common = {
        "data": "shards", "batch": 32, "train_examples": 128, "epochs": 3, "save_epochs": 1, "log_steps": 2,
        "snapshots": 1, "objective": OBJECTIVES[name],
    }  # fmt: skip
    if OBJECTIVES[name].inputs.views:
        common |= {"views": {"kind": "characters"}, "net": CNN(width=8), "optimiser": Adam()}
    return Pretrain(**{**common, **changes})


def train(name: str, digits: Path, out: Path, stop_at: int | None = None, **changes) -> dict[str, torch.Tensor]:
    """Runs a stage (stopping before step ``stop_at`` of this start) -> its last checkpoint's tensors."""
    settings = stage(name, **changes)
    asked = iter(range(10**6))
    world = World(stop=None if stop_at is None else lambda: next(asked) == stop_at)
    out.mkdir(exist_ok=True)
    pretrain.run(settings, 0, {"shards": digits}, out, world)
    return checkpoint.newest(out / "checkpoints")[0]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_stopped_run_goes_on_bit_for_bit(name, digits, tmp_path):
    whole = train(name, digits, tmp_path / "whole")
    with pytest.raises(Stopped, match="step 5 of 12"):
        train(name, digits, tmp_path / "cut", stop_at=5)
    assert checkpoint.steps(tmp_path / "cut/checkpoints") == [4, 5]
    parts = train(name, digits, tmp_path / "cut")
    assert set(whole) == set(parts)
    assert [k for k in whole if not torch.equal(whole[k], parts[k])] == []
    for file in ("metrics.jsonl", "model.safetensors", "snapshots/00000006/model.safetensors"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "cut" / file).read_bytes(), file


def test_it_goes_on_bit_for_bit_with_other_housekeeping(digits, tmp_path):
    whole = train("moco", digits, tmp_path / "whole")
    with pytest.raises(Stopped, match="step 5 of 12"):
        train("moco", digits, tmp_path / "cut", stop_at=5)
    changes = {"log_steps": 3, "save_epochs": 7, "save_steps": 4, "keep": 1, "snapshots": 3, "check_steps": 2}
    parts = train("moco", digits, tmp_path / "cut", **changes)
    assert set(whole) == set(parts)
    assert [k for k in whole if not torch.equal(whole[k], parts[k])] == []
    assert checkpoint.steps(tmp_path / "cut/checkpoints") == [12]
    model = "model.safetensors"
    assert (tmp_path / "whole" / model).read_bytes() == (tmp_path / "cut" / model).read_bytes()


@pytest.mark.slow
def test_channels_last_and_lars_go_on_bit_for_bit(digits, tmp_path):
    changes = {"channels_last": True, "optimiser": LARS(lr=0.5, reference_batch=0), "train_examples": 64}
    changes |= {"net": ResNet(norm=Norm(kind="none")), "log_steps": 1}
    whole = train("moco", digits, tmp_path / "whole", **changes)
    with pytest.raises(Stopped):
        train("moco", digits, tmp_path / "cut", stop_at=3, **changes)
    parts = train("moco", digits, tmp_path / "cut", **changes)
    assert [k for k in whole if not torch.equal(whole[k], parts[k])] == []


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_it_learns_the_same_and_goes_on_bit_for_bit(digits, tmp_path, monkeypatch):
    changes = {"net": CNN(width=4, depth=1), "log_steps": 1, "snapshots": 0}
    train("moco", digits, tmp_path / "eager", **changes)
    whole = train("moco", digits, tmp_path / "whole", compile=True, **changes)
    with pytest.raises(Stopped):
        train("moco", digits, tmp_path / "cut", stop_at=5, compile=True, **changes)
    parts = train("moco", digits, tmp_path / "cut", compile="graphs", **changes)  # on a CPU the same machine code
    assert [k for k in whole if not torch.equal(whole[k], parts[k])] == []
    assert not any("_orig_mod" in k for k in whole)  # names as without it
    eager, made = ([json.loads(line)["learn/loss"] for line in (tmp_path / n / "metrics.jsonl").open()]
                   for n in ("eager", "whole"))  # fmt: skip
    assert made == pytest.approx(eager, rel=1e-4)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match="needs a C\\+\\+ compiler"):
        train("moco", digits, tmp_path / "none", compile=True, **changes)


def objective_of(module: torch.nn.Module) -> Objective:
    """One that trains the module's parameters alike."""
    objective = Objective()
    objective.net = module
    return objective


def test_lars_by_hand():
    """One matrix and one bias, two steps, as in MoCo v3's code."""
    torch.manual_seed(0)
    module = torch.nn.Linear(3, 2).double()
    settings = stage("moco", optimiser=LARS(lr=0.5, reference_batch=0, weight_decay=0.1))
    optimiser = optim.build(objective_of(module), settings)
    w, b = module.weight.detach().clone(), module.bias.detach().clone()
    v, u = torch.zeros_like(w), torch.zeros_like(b)
    for _ in range(2):
        module.weight.grad, module.bias.grad = torch.ones_like(w), 2 * torch.ones_like(b)
        optimiser.step()
        d = torch.ones_like(w) + 0.1 * w
        v = 0.9 * v + 1e-3 * w.norm() / d.norm() * d
        u = 0.9 * u + 2
        w, b = w - 0.5 * v, b - 0.5 * u
        torch.testing.assert_close((module.weight, module.bias), (w, b), rtol=1e-12, atol=0, check_dtype=False)


def test_biases_under_lars_have_a_rate_of_their_own():
    settings = stage("moco", optimiser=LARS(lr=0.5, reference_batch=0, bias_lr_scale=0.024), schedule="constant")
    optimiser = optim.build(objective_of(torch.nn.Linear(3, 2)), settings)
    assert optim.set_rate(optimiser, settings, 0, 10, 5) == 0.5
    assert [group["lr"] for group in optimiser.param_groups] == [0.5, 0.012]


@pytest.mark.parametrize(
    ("chosen", "peer"),
    [
        (
            SGD(lr=0.1, reference_batch=0, nesterov=True),
            {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-4},
        ),
        (Adam(lr=0.1, weight_decay=0.1, decay_norms=True), {"lr": 0.1, "weight_decay": 0.1}),
    ],
)
def test_optimisers_are_torchs(chosen, peer):
    """To the bit, also after their state was stored and read."""
    ours, theirs = (torch.nn.Linear(3, 2) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    settings = stage("moco", optimiser=chosen)
    one = optim.build(objective_of(ours), settings)
    other = (torch.optim.SGD if chosen.kind == "sgd" else torch.optim.AdamW)(theirs.parameters(), **peer)
    for step in range(4):
        for module, optimiser in ((ours, one), (theirs, other)):
            module(torch.full((5, 3), step + 1.0)).square().sum().backward()
            optimiser.step()
            optimiser.zero_grad()
        if step == 1:
            again = optim.build(objective_of(ours), settings)
            checkpoint.unpack_optimiser(again, *checkpoint.pack_optimiser(one))
            one = again
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_schedules_and_scalings():
    settings = stage("moco", optimiser=SGD(lr=0.03), batch=256, train_examples=None, schedule="steps")
    rates = [optim.rate(settings, s, 200, 10) for s in (0, 119, 120, 159, 160, 199)]
    assert rates == pytest.approx([0.03, 0.03, 0.003, 0.003, 0.0003, 0.0003])
    settings = stage("moco", optimiser=SGD(lr=0.12, reference_batch=0), min_lr_ratio=1e-3)
    assert optim.rate(settings, 100, 100, 10) == pytest.approx(1.2e-4)
    settings = stage("moco", optimiser=SGD(lr=0.3, reference_batch=0), schedule="linear", hold=0.3, warmup_epochs=1)
    rates = [optim.rate(settings, s, 1000, 10) for s in (0, 9, 10, 300, 650, 999)]
    assert rates == pytest.approx([0.03, 0.3, 0.3, 0.3, 0.15, 0.3 / 700])
    settings = stage("moco", optimiser=LARS(lr=0.075, reference_batch=1, lr_scaling="sqrt"), batch=64)
    assert settings.peak_lr() == pytest.approx(0.6)


def test_a_damaged_newest_checkpoint_costs_only_time(digits, tmp_path):
    whole = train("moco", digits, tmp_path / "whole")
    with pytest.raises(Stopped):
        train("moco", digits, tmp_path / "cut", stop_at=9)
    (tmp_path / "cut/checkpoints/00000009/tensors.safetensors").write_bytes(b"torn")
    parts = train("moco", digits, tmp_path / "cut")
    assert all(torch.equal(whole[k], parts[k]) for k in whole)


@pytest.mark.parametrize("name", ["simclr", "moco", "pirl_infonce", "vae"])
def test_accumulation_equals_the_big_batch(name, digits, tmp_path):
    """Without batch norm, in float64: the first steps' weights agree to rounding."""
    changes = {"steps": 3, "precision": "fp64", "optimiser": SGD(lr=0.1, reference_batch=0)}
    if name != "vae":
        changes["net"] = CNN(width=8, norm=Norm(kind="none"))
    one = train(name, digits, tmp_path / "one", **changes)
    four = train(name, digits, tmp_path / "four", accumulate=4, **changes)
    for key, value in one.items():
        if value.is_floating_point():
            torch.testing.assert_close(four[key], value, rtol=1e-9, atol=1e-12)
    assert any(not torch.equal(one[k], v) for k, v in train(name, digits, tmp_path / "other", **{
        **changes, "steps": 2}).items())  # fmt: skip


def test_with_batch_norm_the_difference_to_the_big_batch_is_said(digits, tmp_path, capsys):
    train("simclr", digits, tmp_path / "a", steps=1, accumulate=4)
    assert "statistics from micro-batches of 8 images, not from the batch of 32" in capsys.readouterr().out
    train("simclr", digits, tmp_path / "b", steps=1)
    train("simclr", digits, tmp_path / "c", steps=1, accumulate=4, net=CNN(width=8, norm=Norm(kind="none")))
    assert "micro-batches" not in capsys.readouterr().out


def test_running_statistics_move_once_a_step_however_it_is_cut(digits, tmp_path):
    changes = {"steps": 2, "optimiser": SGD(lr=1e-9, reference_batch=0)}
    tensors = train("simclr", digits, tmp_path / "a", accumulate=2, **changes)
    counts = [v for k, v in tensors.items() if k.endswith("num_batches_tracked")]
    assert all(int(c) == 4 for c in counts)  # two micro-batches a step, each once


def test_a_loss_that_is_not_finite_names_itself(digits, tmp_path):
    changes = {"optimiser": SGD(lr=1e30, reference_batch=0), "epochs": 20}
    with pytest.raises(NoProgressError, match=r"VAE: the (loss|gradient) is not finite at step \d+"):
        train("vae", digits, tmp_path / "a", **changes)


def test_bf16_trains(digits, tmp_path):
    train("moco", digits, tmp_path / "a", precision="bf16", steps=4)
    rows = [json.loads(line) for line in (tmp_path / "a/metrics.jsonl").read_text().splitlines()]
    assert rows and all(torch.isfinite(torch.tensor(r["learn/loss"])) for r in rows if "learn/loss" in r)


@pytest.mark.parametrize(("name", "parts"), [("moco", {"trunk", "head"}), ("vae", {"mean", "decoder"})])
def test_moving_average_is_what_is_exported(name, parts, digits, tmp_path):
    """Of all that trains in the model: an averaged encoder is of no use to another decoder. Running statistics are the
    last ones."""
    tensors = train(name, digits, tmp_path / "a", ema=0.5, steps=4)
    exported = load_file(tmp_path / "a/model.safetensors")
    assert {k.partition(".")[0] for k in exported} == parts
    for k, value in exported.items():
        statistic = k.endswith(("running_mean", "running_var", "num_batches_tracked"))
        assert torch.equal(value, tensors[f"{'objective' if statistic else 'average'}.{k}"])
        assert not (k.endswith("weight") and torch.equal(value, tensors[f"objective.{k}"]))
    assert {k.split(".")[1] for k in tensors if k.startswith("average.")} == parts


def test_a_batch_larger_than_the_data_is_refused(digits, tmp_path):
    with pytest.raises(ValueError, match="128 is less than one batch of 256"):
        train("moco", digits, tmp_path / "a", batch=256)


def test_learning_rate_by_hand():
    settings = stage("moco", optimiser=SGD(lr=0.03), batch=64, warmup_epochs=1)
    assert settings.peak_lr() == pytest.approx(0.03 * 64 / 256)
    rates = [optim.rate(settings, s, 100, 10) for s in range(100)]
    assert rates[0] == pytest.approx(settings.peak_lr() / 10)
    assert rates[9] == rates[10] == max(rates) == pytest.approx(settings.peak_lr())
    assert rates[55] == pytest.approx(settings.peak_lr() / 2)
    assert rates == sorted(rates[:10]) + sorted(rates[10:], reverse=True)


@pytest.mark.parametrize("kind", [SGD, Adam])
@pytest.mark.parametrize("norms", [True, False])
def test_biases_and_norms_are_decayed_if_so_set(kind, norms):
    """Without gradients, what moves is decayed: weight matrices always, what has one dimension if so set."""
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    before = {}
    for name, p in module.named_parameters():
        torch.nn.init.constant_(p, 2.0)
        before[name], p.grad = p.detach().clone(), torch.zeros_like(p)
    settings = stage("moco", optimiser=kind(lr=0.1, weight_decay=0.5, decay_norms=norms))
    optim.build(objective_of(module), settings).step()
    moved = {name for name, p in module.named_parameters() if not torch.equal(p, before[name])}
    assert moved == ({"0.weight", "0.bias", "1.weight", "1.bias"} if norms else {"0.weight"})


@pytest.mark.parametrize("names", [("weight",), ("weight", "bias", "bias")])
def test_a_parameter_in_no_group_or_in_two_is_named(names):
    module = torch.nn.Linear(3, 2)
    objective = objective_of(module)
    objective.parameter_groups = lambda: [ParameterGroup([getattr(module, n)]) for n in names]  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"Objective.parameter_groups: net.bias: each parameter that trains"):
        optim.build(objective, stage("moco"))
