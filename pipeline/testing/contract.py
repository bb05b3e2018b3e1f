"""The contract that every objective keeps: a function for each part, which raises AssertionError if it is broken."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.objectives.base import Batch, Step
from pipeline.settings.nets import Norm
from pipeline.settings.stages import Pretrain
from pipeline.settings.training import Adam
from pipeline.testing.cases import IDS, Case
from pipeline.training import loop, optim
from pipeline.world import World

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
WITHOUT_NORM = Norm(kind="none")
CONTRACT: dict[str, Callable[[Case], None]] = {}
"""Its parts by name."""


def contract(check: Callable[[Case], None]) -> Callable[[Case], None]:
    CONTRACT[check.__name__] = check
    return check


def expect(condition: object, text: str) -> None:
    if not condition:
        raise AssertionError(text)


def state(objective: nn.Module) -> dict[str, Tensor]:
    return {name: x.clone() for name, x in objective.state_dict().items()}


def changed(before: dict[str, Tensor], objective: nn.Module) -> set[str]:
    """Names of the state that is no longer as it was."""
    now = objective.state_dict()
    expect(set(now) == set(before), f"state came or went: {set(now) ^ set(before)}")
    both = {name: (x, now[name]) for name, x in before.items()}
    return {name for name, (x, y) in both.items() if not torch.equal(x, y) and not (x.isnan() & y.isnan()).all()}


def gradients(objective: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in objective.named_parameters() if p.grad is not None}


def equal(one: Step, other: Step) -> bool:
    parts = [(one.loss, other.loss), (one.low, other.low), (one.high, other.high)]
    return all(torch.equal(a, b) for a, b in [*parts, *((x, other.pending[k]) for k, x in one.pending.items())])


@contract
def forward_is_pure(case: Case) -> None:
    """The same state and batch give the same answer, and leave nothing behind but batch norm's statistics."""
    objective = case.warm()
    before, generator = state(objective), torch.random.get_rng_state()
    first, second = (objective(case.batch(objective)) for _ in range(2))
    expect(equal(first, second), "two forward passes of one batch differ: draw by batch.normal, batch.uniform")
    left = {name for name in changed(before, objective) if name.rpartition(".")[2] not in STATISTICS}
    expect(not left, f"forward changes {left}; only commit may")
    same = torch.equal(generator, torch.random.get_rng_state())
    expect(same, "forward draws from torch's generator; draw by batch.normal, batch.uniform")


@contract
def commit_changes_what_it_declares(case: Case) -> None:
    objective = case.warm()
    result = objective(case.batch(objective))
    with torch.no_grad():
        for p in objective.encoder.parameters():
            p.add_(0.01)  # an optimiser's step
    before = state(objective)
    objective.commit(result.pending, 3)
    touched = changed(before, objective)
    named = objective.commit_changes
    expect(all(name.startswith(named) for name in touched), f"commit changes {touched}, commit_changes says {named}")
    expect(bool(touched) == bool(named), f"commit changes nothing of commit_changes {named}")
    expect(not any(name.endswith(STATISTICS) for name in touched), "commit changes batch norm's statistics")


@contract
def loaded_it_goes_on_bit_for_bit(case: Case) -> None:
    """What a checkpoint of its state is resumed to."""
    objective, other = case.warm(), case.objective(seed=1)
    other.load_state_dict(state(objective))
    for step in (3, 4):
        results = [o(case.batch(o, IDS, step)) for o in (objective, other)]
        expect(torch.equal(results[0].loss, results[1].loss), "after loading its state the loss is another: keep all "
               "that training changes in buffers and parameters")  # fmt: skip
        for o, r in zip((objective, other), results, strict=True):
            o.commit(r.pending, step)
    differing = changed(state(objective), other)
    expect(not differing, f"after loading its state and two steps {differing} differ")


@contract
def loss_falls_with_low_and_with_rising_high(case: Case) -> None:
    """Or, where nothing is pushed up, says what limits the volume of low energy: a scalar energy/volume."""
    objective = case.warm()
    batch = case.batch(objective)
    result = objective(batch)
    rows = len(result.low)
    expect(rows and rows % len(IDS) == 0, f"low has {rows} rows of {len(IDS)} samples; expected a multiple")
    if result.high.numel() == 0:
        expect(result.high.shape == (rows, 0), f"high is {list(result.high.shape)}; expected [{rows}, 0]")
        known = result.scalars | objective.diagnostics(result, batch)
        expect("energy/volume" in known, "high is empty, and no scalar energy/volume says what limits low energies")
        (low,) = torch.autograd.grad(result.loss, [result.low], allow_unused=True)
        expect(low is None or (low > 0).all(), "the loss does not fall with low")
        return
    low, high = torch.autograd.grad(result.loss, [result.low, result.high])
    seen = torch.isfinite(result.high)
    expect((low > 0).all(), "the loss does not fall with low, the energies of data")
    expect((high[seen] < 0).all(), "the loss does not fall with rising high, the energies of what is no data")
    expect((high[~seen] == 0).all(), "an infinite high has a gradient")


@contract
def accumulation_equals_the_big_batch(case: Case) -> None:
    """Without batch norm: the same gradient and pending rows from one batch or several, whatever is coupled."""
    for pieces in (2, 4):
        whole, cut = (case.warm(norm=WITHOUT_NORM) for _ in range(2))
        size = len(IDS) // pieces
        one = loop.backward(whole, whole, [case.batch(whole)])
        parts = [case.batch(cut, IDS[i : i + size]) for i in range(0, len(IDS), size)]
        many = loop.backward(cut, cut, parts)
        why = f"{pieces} micro-batches are not the whole batch (coupled is {whole.coupled}): "
        near(many.loss, one.loss, why + "loss", 1e-12, 1e-14)
        near(gradients(cut), gradients(whole), why + "gradient", 1e-9, 1e-13)
        for o, r in ((whole, one), (cut, many)):
            o.commit(r.pending, 3)
        near(cut.state_dict(), whole.state_dict(), why + "state", 1e-12, 1e-14)


def near(found: Any, wanted: Any, what: str, rtol: float, atol: float) -> None:
    torch.testing.assert_close(found, wanted, rtol=rtol, atol=atol, equal_nan=True, msg=lambda text: f"{what}: {text}")


@contract
def any_batch_size(case: Case) -> None:
    objective = case.objective()
    for step, size in enumerate((7, 2, 5, 30, 3)):
        result = objective(case.batch(objective, list(range(step, step + size)), step))
        expect(len(result.low) and len(result.low) % size == 0, f"low has {len(result.low)} rows of {size} samples")
        expect(torch.isfinite(result.loss), f"the loss of {size} samples is not finite")
        objective.commit(result.pending, step)


@contract
def autocast_leaves_energies_and_loss_whole(case: Case) -> None:
    """Under bf16 energies, loss and pending rows are in float32, and gradients are finite."""
    objective = case.warm(torch.float32)
    batch = case.draw(objective, IDS, 3, torch.float32)
    exact = objective(batch)
    with torch.autocast("cpu", torch.bfloat16):
        result = objective(batch)
    result.loss.backward()
    types = {result.loss.dtype, result.low.dtype, result.high.dtype}
    expect(types == {torch.float32}, f"under bf16 loss, low and high are {types}: wrap score in `full_precision`")
    expect(all(x.dtype != torch.bfloat16 for x in result.pending.values()), "under bf16 pending rows are bfloat16")
    expect(torch.isfinite(result.loss), "under bf16 the loss is not finite")
    wrong = [name for name, grad in gradients(objective).items() if not torch.isfinite(grad).all()]
    expect(not wrong, f"under bf16 the gradient of {wrong} is not finite")
    near(result.loss, exact.loss, "under bf16 the loss", 0.05, 0.05)


@contract
def double_precision_throughout(case: Case) -> None:
    objective = case.objective()
    result = objective(case.batch(objective, IDS, 0))
    types = {result.loss.dtype, result.low.dtype, result.high.dtype}
    expect(types == {torch.float64}, f"in fp64 loss, low and high are {types}")
    wrong = {x.dtype for x in objective.state_dict().values()} - {torch.float64, torch.int64, torch.uint8}
    expect(not wrong, f"in fp64 some of the state is {wrong}")


@contract
def learns_64_images_by_heart(case: Case) -> None:
    objective = case.objective(dtype=torch.float32)
    batch = case.draw(objective, list(range(64)), 0, torch.float32)
    optimiser, losses = optim.build(objective, Pretrain(data="x", optimiser=Adam(lr=3e-3))), []
    for step in range(100):
        result = objective(batch)
        result.loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        objective.commit(result.pending, step)
        losses.append(float(result.loss.detach()))
    first, last = sum(losses[2:5]) / 3, sum(losses[-3:]) / 3  # once a queue has keys
    expect(last < 0.97 * first, f"in 100 steps of Adam on 64 images the loss goes from {first:.4g} to {last:.4g}")


@contract
def step_is_made_of_detached_scalars_and_whole_pending(case: Case) -> None:
    objective = case.warm()
    batch = case.batch(objective)
    result = objective(batch)
    expect(result.loss.shape == () and result.loss.requires_grad, "the loss is no 0-d tensor with a gradient")
    for tag, value in (result.scalars | objective.diagnostics(result, batch)).items():
        expect(tag.count("/") == 1, f'a scalar is called "{tag}"; expected family/name')
        expect(value.shape == () and not value.requires_grad, f"{tag} is no detached 0-d tensor")
        expect(torch.isfinite(value), f"{tag} is not finite")
    expect(not any(x.requires_grad for x in result.pending.values()), "pending rows are not detached")
    rows = result.per_sample.values()
    expect(all(len(x) == len(IDS) and not x.requires_grad for x in rows), "per_sample is no detached row a sample")


@contract
def what_is_not_finite_shows_in_the_loss(case: Case) -> None:
    objective = case.warm()
    good = case.batch(objective)
    for place in range(1 if objective.settings.inputs.signals else len(good.views)):  # type: ignore[union-attr]
        views = [view.clone() for view in good.views]
        views[place][2].flatten()[0] = float("nan")
        result = objective(replace(good, views=tuple(views)))
        expect(not torch.isfinite(result.loss), f"a NaN in view {place + 1} leaves the loss finite")


@contract
def first_weights_depend_on_the_seed_alone(case: Case) -> None:
    torch.manual_seed(1)
    first = state(case.objective(seed=5))
    torch.manual_seed(2)
    again = changed(first, case.objective(seed=5))
    expect(not again, f"the first {again} depend on torch's generator: draw them under `seeded(setup.seed, ...)`")


@contract
def it_is_built_without_numbers(case: Case) -> None:
    """As --dry-run and the memory's estimate build it: on the meta device, where a constructor that asks for a number
    (float(x), .item(), a comparison) ends in a traceback; and, but for the last energies, embeds there."""
    with torch.device("meta"):
        objective = case.make(world=World.single(device="meta"), dtype=torch.float32)
    real = case.draw(objective, IDS, 0, torch.float32)
    expect(all(x.is_meta for x in (*objective.parameters(), *objective.buffers())), "some of its state has numbers")
    rows = objective.embed(Batch(tuple(view.to("meta") for view in real.views), real.ids))
    expect(all(len(row) == len(IDS) for row in rows), "embed gives not a row a sample")
