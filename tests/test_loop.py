"""The loop by hand: every step of a small training against torch's own parts in plain Python."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pipeline.errors import Stopped
from pipeline.nets.norm import BatchNorm
from pipeline.objectives.base import Objective, ParameterGroup, Step
from pipeline.settings.stages import Pretrain
from pipeline.settings.training import SGD
from pipeline.training import checkpoint, loop, monitor
from pipeline.world import World
from tests.cases import random

PER_EPOCH, EPOCHS, BATCH = 5, 4, 6
TOTAL = PER_EPOCH * EPOCHS
FROZEN = 7


class Regression(Objective):
    """A batch norm and a linear layer that fit a line; it notes what it is given, and what it is when it commits."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(BatchNorm(3), nn.Linear(3, 1)).double()
        with torch.no_grad():
            for i, p in enumerate(self.net.parameters()):
                p.copy_(random(*p.shape, seed=f"first {i}"))
        self.given, self.committed = [], []

    def embed(self, batch):
        return (self.net(batch.views[0]),)

    def score(self, embedded, batch):
        self.given.append((batch.step, batch.epoch, batch.progress))
        low = (embedded[0][:, 0] - 3 * batch.views[0].sum(1)).square()
        return Step(low.mean(), low, low.new_empty(len(low), 0), pending={"ids": batch.ids})

    def commit(self, pending, batch_step, progress=0.0):
        self.committed.append((batch_step, progress, self.weights(), pending["ids"].tolist()))

    def weights(self):
        return [p.detach().clone() for p in self.net.parameters()]

    @property
    def encoder(self):
        return self.net


class Grouped(Regression):
    """Its batch norm learns at a tenth of the rate and undecayed, its bias from step FROZEN on."""

    def parameter_groups(self):
        norm, linear = self.net
        return [
            ParameterGroup([linear.weight]),
            ParameterGroup(list(norm.parameters()), lr_scale=0.1, weight_decay=0.0),
            ParameterGroup([linear.bias], frozen_steps=FROZEN),
        ]


def inputs(step: int) -> torch.Tensor:
    return random(BATCH, 3, seed=f"step {step}")


class Stream:
    """A feed of numbers."""

    steps_per_epoch, bad = PER_EPOCH, 0
    seconds: dict[str, float] = {}

    def steps(self, start):
        for step in range(start, TOTAL):
            loaded = SimpleNamespace(views=(inputs(step),), ids=torch.arange(BATCH) + BATCH * step)
            yield step, step // PER_EPOCH, [loaded]


def rate(step: int, peak: float) -> float:
    """One epoch of warm-up, whose last step is at the peak; then half a cosine, from the peak towards 0."""
    if step < PER_EPOCH:
        return peak * (step + 1) / PER_EPOCH
    return peak * (1 + math.cos(math.pi * (step - PER_EPOCH) / (TOTAL - PER_EPOCH))) / 2


PEAK, DECAY = 0.02, 0.9


def settings(limit: float, **others) -> Pretrain:
    return Pretrain(
        data="x", batch=BATCH, epochs=EPOCHS, warmup_epochs=1, clip=limit, **({"ema": DECAY} | others), snapshots=0,
        log_steps=1, precision="fp64", optimiser=SGD(lr=PEAK, reference_batch=0, weight_decay=0.01),
    )  # fmt: skip


def test_the_average_of_the_last_steps(tmp_path, world):
    """Each of the last share's weights alike."""
    ours, exported = Regression(), []
    loop.train(
        ours, Stream(), settings(0, ema=0, average=0.25), total=TOTAL, seed=0, out=tmp_path, world=world,
        export=lambda weights, _: exported.append(weights),
    )  # fmt: skip
    last = [weights for _, _, weights, _ in ours.committed[TOTAL - round(0.25 * TOTAL) :]]
    for i, name in enumerate(dict(ours.named_parameters())):
        mean = torch.stack([weights[i] for weights in last]).mean(0)
        torch.testing.assert_close(exported[-1][name], mean, rtol=1e-12, atol=1e-14)
        assert (exported[-1][name] != last[-1][i]).any()


@pytest.mark.parametrize("made", [Regression, Grouped])
@pytest.mark.parametrize("limit", [0.0, 0.1])
def test_a_training_by_hand(limit, made, tmp_path, world):
    """Schedule, clipping, step, then commit, and the average that is exported, batch norm's statistics and all; where
    the objective groups its parameters, each group as it is told."""
    grouped = made is Grouped
    ours, exported = made(), []
    loop.train(
        ours, Stream(), settings(limit), total=TOTAL, seed=0, out=tmp_path, world=world,
        export=lambda weights, _: exported.append({k.removeprefix("net."): v.clone() for k, v in weights.items()}),
    )  # fmt: skip

    net = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1)).double()
    net.load_state_dict(Regression().net.state_dict())
    average = {k: v.clone() for k, v in net.state_dict().items()}
    scale, others = (0.1, 0.0) if grouped else (1.0, 0.01)
    groups = [{"params": net[1].parameters()}, {"params": net[0].parameters(), "weight_decay": others}]
    optimiser = torch.optim.SGD(groups, momentum=0.9, weight_decay=0.01)
    clipped = 0
    for step in range(TOTAL):
        for group, factor in zip(optimiser.param_groups, (1.0, scale), strict=True):
            group["lr"] = factor * rate(step, PEAK)
        x = inputs(step)
        optimiser.zero_grad()
        (net(x)[:, 0] - 3 * x.sum(1)).square().mean().backward()
        if grouped and step < FROZEN:
            net[1].bias.grad = None
        if limit:
            clipped += bool(nn.utils.clip_grad_norm_(net.parameters(), limit) > limit)
        optimiser.step()
        at, progress, weights, ids = ours.committed[step]
        torch.testing.assert_close(weights, list(net.parameters()), rtol=1e-9, atol=1e-12)
        assert (at, ids) == (step, list(range(BATCH * step, BATCH * step + BATCH)))
        assert progress == pytest.approx((step + 1) / TOTAL)
        for name, value in net.state_dict().items():
            learned = name in dict(net.named_parameters())
            average[name] = DECAY * average[name] + (1 - DECAY) * value if learned else value.clone()
    assert (clipped == TOTAL) == bool(limit)  # the limit binds
    bias = torch.stack([weights[3] for _, _, weights, _ in ours.committed])
    assert (bias[0] == bias[: FROZEN if grouped else 1]).all() and (bias[0] != bias[FROZEN:]).all()
    assert ours.given == [(s, s // PER_EPOCH, s / TOTAL) for s in range(TOTAL)]
    for name, value in exported[-1].items():
        torch.testing.assert_close(value, average[name], rtol=1e-9, atol=1e-12, msg=name)
    assert not torch.equal(average["0.running_mean"], torch.zeros(3).double())


@pytest.mark.parametrize("cut", [FROZEN - 3, FROZEN + 3])
def test_groups_go_on_bit_for_bit(cut, tmp_path):
    """Stopped while a group is frozen, or after."""

    def run(name: str, stop: int) -> None:
        asked = iter(range(TOTAL))
        loop.train(
            Grouped(), Stream(), settings(0.1), total=TOTAL, seed=0, out=tmp_path / name,
            world=World(stop=lambda: next(asked) == stop), export=lambda *_: None,
        )  # fmt: skip

    run("whole", TOTAL)
    with pytest.raises(Stopped):
        run("parts", cut)
    run("parts", TOTAL)
    (whole, _), (parts, _) = (checkpoint.newest(tmp_path / name / "checkpoints") for name in ("whole", "parts"))
    assert set(whole) == set(parts) and [k for k in whole if not torch.equal(whole[k], parts[k])] == []


def test_what_is_logged_of_a_step(world):
    """Energies as means over rows, each of the negatives it has; the gap is how far they lie above the positives."""
    low, high = torch.tensor([1.0, 3.0]), torch.tensor([[4.0, 6.0], [torch.inf, 9.0]])
    step = Step(torch.tensor(0.5), low, high, {"learn/own": torch.tensor(0.25)})
    read = monitor.step_scalars(Regression(), step, 7, torch.tensor(2.0), 0.1, world)
    assert read == {
        "learn/loss": 0.5, "energy/low": 2.0, "energy/high": (5 + 9) / 2, "energy/gap": 5.0, "learn/own": 0.25,
        "learn/grad_norm": 2.0, "learn/lr": 0.1,
    }  # fmt: skip
