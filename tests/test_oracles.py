"""The papers' formulas as slow loops in double precision: the loss and its gradient, to 1e-10."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from pipeline.objectives.base import Batch
from pipeline.objectives.energies import binary_nce, infonce, nce
from pipeline.settings.nets import Norm
from pipeline.settings.objectives import VAE, MoCo
from tests.cases import CASES, IMAGE, SAMPLES, batch, dictionary, make, random, warm

IDS = [3, 1, 12, 25, 3, 30]  # one image twice: neither is the other's negative


def exp(x: Tensor) -> Tensor:
    return torch.exp(x)


def agree(objective, b: Batch, oracle, score=None) -> None:
    """The objective's loss and gradient on its embedded rows against the oracle's on the same rows."""
    results, score = [], score or (lambda rows: objective.score(rows, b))
    for loss_of in (lambda rows: score(rows).loss, lambda rows: oracle(*rows)):
        rows = tuple(r.detach().clone().requires_grad_() for r in objective.embed(b))
        loss = loss_of(rows)
        grads = torch.autograd.grad(loss, rows, allow_unused=True)
        results.append((loss.detach(), [torch.zeros_like(r) if g is None else g for r, g in zip(rows, grads)]))  # noqa: B905
    torch.testing.assert_close(results[0], results[1], rtol=1e-10, atol=1e-12)
    assert any(g.abs().max() > 1e-6 for g in results[0][1])


@pytest.mark.parametrize("name", ["simclr", "simclr_crops"])
def test_simclr_is_eq_1(name, world):
    """A view asks for the other, a small crop for both, against the views of all other images."""
    objective = make(name, world)
    b = batch(objective, IDS)
    asked = [(0, 1), (1, 0)] + [(crop, v) for crop in (2, 3, 4) for v in (0, 1)] * (name == "simclr_crops")

    def oracle(rows: Tensor) -> Tensor:
        z, total = [(i, v, rows[n, v]) for n, i in enumerate(IDS) for v in (0, 1)], torch.zeros(()).double()
        for n, i in enumerate(IDS):
            for query, positive in ((rows[n, a], rows[n, p]) for a, p in asked):
                up = exp(query @ positive / 0.5)
                down = sum((exp(query @ k / 0.5) for j, _, k in z if j != i), torch.zeros(()).double())
                total = total - torch.log(up / (up + down))
        return total / (len(asked) * len(IDS))

    agree(objective, b, oracle)


@pytest.mark.parametrize("name", ["moco", "moco_symmetric", "moco_crops", "moco_sum", "moco_paper"])
def test_moco_is_eq_1(name, world):
    objective = warm(make(name, world), 2)
    settings: MoCo = CASES[name]  # type: ignore[assignment]
    b = batch(objective, IDS, 2)
    queue, t = objective.queue, settings.temperature
    assert (queue.steps < 0).any() == (not settings.symmetric)

    def oracle(queries: Tensor, keys: Tensor) -> Tensor:
        total, count = torch.zeros(()).double(), 0
        for n, i in enumerate(IDS):
            for a, q in enumerate(queries[n]):  # small crops ask for both keys in turn
                k = keys[n, a % len(keys[n])]
                up, down = exp(q @ k / t), 0.0
                for slot, (own, step) in enumerate(zip(queue.ids.tolist(), queue.steps.tolist(), strict=True)):
                    if not settings.mask_own or (own != i and step >= 0):
                        down = down + exp(q @ queue.keys[slot] / t)
                total, count = total - torch.log(up / (up + down)), count + 1
        return total / (len(IDS) if settings.reduction == "sum" else count)

    agree(objective, b, oracle)


HEADS = {
    "simclr_crops": lambda objective: objective.head,
    "moco_crops": lambda objective: objective.head,
    "moco_v3_crops": lambda objective: nn.Sequential(objective.head, objective.predictor),
    "pirl_crops": lambda objective: objective.f,
    "pirl_rotation_crops": lambda objective: objective.f,
}


@pytest.mark.parametrize("name", HEADS)
def test_small_crops_come_after_the_views(name, world):
    """Through the head of whole images, all small crops in one pass; of MoCo's queries each stands twice, since it
    asks for both keys."""
    objective = make(name, world)
    b = batch(objective, IDS)
    rows, *keys = objective.embed(b)
    assert rows.shape[1] == 2 + 3 * (1 + len(keys)) and all(k.shape[1] == 2 for k in keys)
    crops = HEADS[name](objective)(objective.trunk(b.views[2].flatten(0, 1))).unflatten(0, (len(IDS), 3))
    for each in range(1 + len(keys)):
        torch.testing.assert_close(rows[:, 2 + each :: 1 + len(keys)], normalize(crops, dim=2), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["moco_v3", "moco_v3_paper", "moco_v3_crops"])
def test_moco_v3_is_algorithm_1(name, world):
    """ctr(q1, k2) + ctr(q2, k1), each times 2 T; with mask_own a second key of the query's image is left out. Small
    crops ask for both keys, and the sum is twice the mean over all of them."""
    objective, settings = warm(make(name, world), 1), CASES[name]
    b, t = batch(objective, IDS, 1), settings.temperature

    def oracle(queries: Tensor, keys: Tensor) -> Tensor:
        total, keys = torch.zeros(()).double(), keys.detach()
        count = queries.shape[1]
        for a in range(count):
            view = a % 2  # of the keys: the first is the second view's
            for n, i in enumerate(IDS):
                q, down = queries[n, a], 0.0
                up = exp(q @ keys[n, view] / t)
                for m, j in enumerate(IDS):
                    if m != n and not (settings.mask_own and i == j):
                        down = down + exp(q @ keys[m, view] / t)
                total = total - 2 * t * torch.log(up / (up + down)) / len(IDS)
        return 2 * total / count

    agree(objective, b, oracle)
    _, k = objective.embed(b)
    assert not k.requires_grad and (settings.predictor is None) == isinstance(objective.predictor, nn.Identity)
    first, second = (normalize(objective.key_head(objective.key_trunk(v)), dim=1) for v in b.views[:2])
    torch.testing.assert_close(k, torch.stack([second, first], 1), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["byol", "byol_crops", "simsiam"])
def test_predictions_against_targets_of_other_views(name, world):
    """BYOL's eq. 2, both directions added, and SimSiam's algorithm 1, both halved."""
    objective = warm(make(name, world), 1)
    b = batch(objective, IDS, 1)
    rows, targets = objective.embed(b)
    asked = [(s, t) for s in range(rows.shape[1]) for t in range(targets.shape[1]) if s != t]
    assert len(asked) == (2 if rows.shape[1] == 2 else 3 * 2 + 3 * 3)

    def oracle(predictions: Tensor, targets: Tensor) -> Tensor:
        total = torch.zeros(()).double()
        for n in range(len(IDS)):
            for s, t in asked:
                q, z = predictions[n, s], targets[n, t].detach()
                total = total - (q @ z if name == "simsiam" else 2 * (2 * (q @ z) - 2))
        return total / (len(asked) * len(IDS))

    def detached(embedded):
        return objective.score((embedded[0], embedded[1].detach()), b)

    agree(objective, b, oracle, detached)
    assert not targets.requires_grad
    slow = (objective.trunk, objective.head) if name == "simsiam" else (objective.key_trunk, objective.key_head)
    for v, view in enumerate(b.views[: targets.shape[1]]):
        z = normalize(slow[1](slow[0](view)), dim=1)
        torch.testing.assert_close(targets[:, v], z.detach(), rtol=1e-12, atol=1e-14)
        p = normalize(objective.predictor(objective.head(objective.trunk(view))), dim=1)
        torch.testing.assert_close(rows[:, v], p, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["dino", "dino_crops"])
def test_dino_is_algorithm_1(name, world):
    """The centre of the steps before, the temperature of this one; then the centre moves, once."""
    objective, settings = warm(make(name, world), 2), CASES[name]
    b = replace(batch(objective, IDS, 2), progress=0.05)
    tau = 0.04 + (0.07 - 0.04) * 0.5
    centre = objective.centre.clone()
    objective.key_prototypes.weight.data.mul_(1 + 0.5 * random(*objective.key_prototypes.weight.shape))
    ours, theirs = (normalize(part.weight, dim=1) for part in (objective.prototypes, objective.key_prototypes))
    assert centre.abs().max() > 0

    def oracle(students: Tensor, teachers: Tensor) -> Tensor:
        total, count = torch.zeros(()).double(), 0
        for n in range(len(IDS)):
            for t in range(teachers.shape[1]):
                raised = [exp((theirs[k] @ teachers[n, t] - centre[k]) / tau).detach() for k in range(len(centre))]
                for s in range(students.shape[1]):
                    if s == t:
                        continue
                    own = [exp(ours[k] @ students[n, s] / settings.temperature) for k in range(len(centre))]
                    for k in range(len(centre)):
                        total = total - raised[k] / sum(raised) * torch.log(own[k] / sum(own))
                    count += 1
        return total / count

    agree(objective, b, oracle)
    result = objective(b)
    objective.commit(result.pending, 2, 0.1)
    outputs = objective.embed(b)[1] @ theirs.T
    m = settings.centre_momentum
    torch.testing.assert_close(objective.centre, m * centre + (1 - m) * outputs.mean((0, 1)), rtol=1e-10, atol=1e-13)


def test_what_the_teacher_tells_of_an_image(world):
    """Nothing where it is constant, whether sharp or not; the log of the number of images where each has its own."""
    objective = make("dino", world)
    rows = objective.prototypes.weight[None, :4].repeat(2, 1, 1).transpose(0, 1)
    objective.key_prototypes.weight.data.copy_(objective.prototypes.weight)
    apart, one = (
        objective.score((normalize(x, dim=2), normalize(x, dim=2).detach()), batch(objective, IDS[:4]))
        for x in (rows, rows[:1].expand_as(rows))
    )
    assert float(one.scalars["energy/volume"]) == pytest.approx(0, abs=1e-12)
    assert 0.5 < float(apart.scalars["energy/volume"]) <= math.log(4)
    signs = objective.collapse_signs({**{"collapse/std": 0, "collapse/directions": 6, "collapse/alignment_ratio": 0},
                                      **{k: float(v) for k, v in one.scalars.items()}})  # fmt: skip
    assert set(signs) == {"constant"}


@pytest.mark.parametrize("name", ["moco_sum", "moco_v3", "byol", "dino"])
def test_momentum_rises_to_one_along_a_cosine(name, world):
    from pipeline.nets.ema import momentum

    settings = CASES[name]
    at = [momentum(settings, p) for p in (0.0, 0.25, 0.5, 1.0)]
    assert at == pytest.approx([0.9, 1 - 0.1 * (0.5 + math.sqrt(0.125)), 0.95, 1.0], rel=1e-12)
    objective = make(name, world)
    with torch.no_grad():
        for p in objective.trunk.parameters():
            p.add_(1.0)
    before = [p.clone() for p in objective.key_trunk.parameters()]
    objective.commit(objective(batch(objective, IDS)).pending, 0, 1.0)
    assert all(torch.equal(*pair) for pair in zip(before, objective.key_trunk.parameters(), strict=True))
    objective.commit(objective(batch(objective, IDS)).pending, 0, 0.5)
    for old, new, fast in zip(before, objective.key_trunk.parameters(), objective.trunk.parameters(), strict=True):
        torch.testing.assert_close(new, 0.95 * old + 0.05 * fast, rtol=1e-12, atol=1e-14)


def test_symmetric_keys_are_enqueued_a_view_after_the_other(world):
    """All keys of the second view, which the first asks for, then all of the first: none between the others."""
    objective = make("moco_symmetric", world)
    b = batch(objective, IDS)
    _, keys = objective.embed(b)
    objective.commit(objective(b).pending, 0)
    count = 2 * len(IDS)
    assert torch.equal(objective.queue.keys[:count], torch.cat([keys[:, 0], keys[:, 1]]))
    assert objective.queue.ids[:count].tolist() == IDS + IDS and not torch.equal(keys[:, 0], keys[:, 1])


def test_rotation_turns_the_second_view_as_drawn(world):
    objective = make("pirl_rotation", world)
    b = batch(objective, IDS)
    turns = (4 * b.uniform("rotation")).long().tolist()
    assert len(set(turns)) > 1 and turns[IDS.index(3)] == turns[4]  # of the sample, not of its place
    (rows,) = objective.embed(b)
    turned = torch.stack([torch.rot90(x, k, (1, 2)) for x, k in zip(b.views[1], turns, strict=True)])
    expected = normalize(objective.g(objective.trunk(turned)), dim=1)
    torch.testing.assert_close(rows[:, 1], expected, rtol=1e-12, atol=1e-14)


def h(up: Tensor, downs: list[Tensor], which: int) -> Tensor:
    """Eq. 3: share of the positive (-1) or of one negative among all."""
    return (up if which < 0 else downs[which]) / (up + sum(downs))


@pytest.mark.parametrize("name", [n for n in CASES if n.startswith("pirl")])
def test_pirl_is_eq_3_to_5(name, world):
    objective = warm(make(name, world), 2)
    settings = CASES[name]
    b = batch(objective, IDS, 2)
    drawn = objective.negative_ids(b)
    noise = range(SAMPLES) if drawn is None else drawn.tolist()
    assert len(set(noise)) == (settings.negatives or SAMPLES)

    def term(v: Tensor, i: int, which: int) -> Tensor:
        up = exp(objective.bank.rows[i] @ v / 0.5)
        downs = [exp(v @ objective.bank.rows[j] / 0.5) for j in noise if j != i]
        if settings.loss == "infonce":
            return -torch.log(h(up, downs, -1))
        if settings.loss == "nce":
            return -torch.log(h(up, downs, -1)) - sum(torch.log(1 - h(up, downs, j)) for j in range(len(downs)))
        z, odds = exp(objective.log_partition[which]), len(noise) / SAMPLES
        return -torch.log(up / z / (up / z + odds)) - sum(torch.log(odds / (d / z + odds)) for d in downs)

    def oracle(rows: Tensor) -> Tensor:
        total, images = torch.zeros(()).double(), [a for a in range(rows.shape[1]) if a != 1]  # small crops are images
        for n, i in enumerate(IDS):
            total = total + settings.weight * term(rows[n, 1], i, 1)
            for a in images:
                total = total + (1 - settings.weight) * term(rows[n, a], i, 0) / len(images)
        return total / len(IDS)

    agree(objective, b, oracle)


def test_pirl_draws_its_negatives_anew_each_step(world):
    objective = make("pirl", world)
    drawn = [objective.negative_ids(batch(objective, IDS, step)).tolist() for step in range(4)]
    assert len({tuple(sorted(d)) for d in drawn}) == 4 and all(len(set(d)) == 16 for d in drawn)
    assert drawn[1] == objective.negative_ids(batch(objective, [7, 8], 1)).tolist()  # of the step, whoever asks


@pytest.mark.parametrize("name", ["pirl_binary_nce", "pirl_rotation_crops"])
def test_binary_nce_fixes_its_partition_on_the_first_batch(name, world):
    objective = make(name, world)
    b = batch(objective, IDS)
    (rows,) = objective.embed(b)
    noise = objective.negative_ids(b).tolist()
    expected = []
    for view in (0, 1):
        seen = []
        for n, i in enumerate(IDS):
            seen += [exp(rows[n, view] @ objective.bank.rows[j] / 0.5) for j in [i] + [j for j in noise if j != i]]
        expected.append(math.log(SAMPLES * float(torch.stack(seen).detach().mean())))
    first = objective(b)
    objective.commit(first.pending, 0)
    assert objective.log_partition.tolist() == pytest.approx(expected, rel=1e-12)
    objective.commit(objective(batch(objective, [7, 8], 1)).pending, 1)
    assert objective.log_partition.tolist() == pytest.approx(expected, rel=1e-12)


def test_two_by_two_by_hand():
    """Similarities (positive 1, negative 0) and (0, 1) at temperature 1."""
    low, high = torch.tensor([-1.0, 0.0]).double(), torch.tensor([[0.0], [-1.0]]).double()
    p = math.e / (math.e + 1)
    assert infonce(low, high).tolist() == pytest.approx([-math.log(p), -math.log(1 - p)])
    assert nce(low, high).tolist() == pytest.approx([-2 * math.log(p), -2 * math.log(1 - p)])
    s = 1 / (1 + math.exp(-1))
    assert binary_nce(low, high, torch.zeros(2), 0.0).tolist() == pytest.approx(
        [-math.log(s) - math.log(0.5), -math.log(0.5) - math.log(1 - s)]
    )


def test_nce_where_one_negative_takes_all():
    """In fp32, 1 - h of the winner would be 0 and its logarithm infinite."""
    low, high = torch.tensor([14.0], requires_grad=True), torch.tensor([[-14.0, 3.0, torch.inf]])
    loss = nce(low, high)
    exact = nce(low.double(), high.double())
    total = sum(math.exp(x) for x in (-14, 14, -3))
    rest = math.exp(-14) + math.exp(-3)
    expected = 14 + math.log(total) - math.log(rest / total) - math.log(1 - math.exp(-3) / total)
    assert float(exact.detach()) == pytest.approx(expected, rel=1e-9)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
    assert torch.isfinite(torch.autograd.grad(loss.sum(), low)[0]).all()


class PublishedMoCo:
    """Algorithm 1 of arXiv 1911.05722 as it was published: the key encoder moves at the start of the step, state
    changes on the way. No mask."""

    def __init__(self, ours):
        self.q = nn.Sequential(copy.deepcopy(ours.trunk), copy.deepcopy(ours.head))
        self.k = copy.deepcopy(self.q)
        self.queue = ours.queue.keys.clone().T
        self.at, self.t, self.m = 0, ours.settings.temperature, ours.settings.momentum

    def step(self, x_q: Tensor, x_k: Tensor) -> Tensor:
        q = normalize(self.q(x_q), dim=1)
        with torch.no_grad():
            for slow, fast in zip(self.k.parameters(), self.q.parameters(), strict=True):
                slow.mul_(self.m).add_(fast, alpha=1 - self.m)
            k = normalize(self.k(x_k), dim=1)
        l_pos, l_neg = (q * k).sum(1, keepdim=True), q @ self.queue.clone()
        logits = torch.cat([l_pos, l_neg], 1) / self.t
        loss = nn.functional.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long))
        self.queue[:, self.at : self.at + len(k)] = k.T
        self.at = (self.at + len(k)) % self.queue.shape[1]
        return loss


def test_twenty_steps_of_published_moco(world):
    ours = make("moco_paper", world)
    theirs = PublishedMoCo(ours)
    optimisers = [torch.optim.SGD(m.parameters(), 0.1, momentum=0.9) for m in (ours, theirs.q)]
    for step in range(20):
        b = batch(ours, [(7 * step + i) % SAMPLES for i in range(10)], step)
        result = ours(b)
        losses = [result.loss, theirs.step(*b.views)]
        torch.testing.assert_close(losses[0], losses[1], rtol=1e-9, atol=0)
        for loss, optimiser in zip(losses, optimisers, strict=True):
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        ours.commit(result.pending, step)
    torch.testing.assert_close(ours.queue.keys, theirs.queue.T, rtol=1e-8, atol=1e-10)


def test_pirl_moves_the_row_of_the_image_head_only(world):
    objective = warm(make("pirl", world), 1)
    before, ids = objective.bank.rows.clone(), [2, 60, 5]
    b = batch(objective, ids, 1)
    with torch.no_grad():
        f = normalize(objective.f(objective.trunk(b.views[0])), dim=1)
        result = objective(b)
    objective.commit(result.pending, 1)
    for n, i in enumerate(ids):
        moved = 0.5 * before[i] + 0.5 * f[n]
        torch.testing.assert_close(objective.bank.rows[i], moved / moved.norm(), rtol=1e-12, atol=1e-12)
        before[i] = objective.bank.rows[i]
    assert torch.equal(objective.bank.rows, before)


@pytest.mark.parametrize("name", ["ae", "dae"])
def test_autoencoder_is_the_squared_error_summed_over_pixels(name, world):
    objective = make(name, world)
    b = batch(objective, IDS)
    (images,) = b.views
    shown = images + 0.3 * b.normal("noise", 1, 8, 8) if name == "dae" else images
    assert (name == "dae") == (not torch.equal(shown, images))
    again = objective.reconstruct(shown).detach()
    result = objective(b)
    for n in range(len(IDS)):
        error = sum((float(images[n, 0, y, x]) - float(again[n, 0, y, x])) ** 2 for y in range(8) for x in range(8))
        assert float(result.low[n]) == pytest.approx(error, rel=1e-12)
    assert float(result.loss) == pytest.approx(float(result.low.mean()), rel=1e-12)


def vae_by_hand(objective, b: Batch, beta: float, free: float) -> Tensor:
    """- E log p(x|z) + beta sum_j max(free, mean KL_j), with the draw that the batch gives."""
    (images,) = b.views
    total, units = torch.zeros(()).double(), [torch.zeros(()).double() for _ in range(objective.latent)]
    for n in range(len(images)):
        mean, logvar = (v[0] for v in objective.encode(images[n : n + 1]))
        epsilon = b.normal("epsilon", objective.latent)[n]
        z = torch.stack([m + torch.sqrt(exp(v)) * e for m, v, e in zip(mean, logvar, epsilon, strict=True)])
        p = objective.decode(z[None])[0]
        for x, m in zip(images[n].flatten(), p.flatten(), strict=True):
            if objective.settings.likelihood == "bernoulli":
                total = total - x * torch.log(m) - (1 - x) * torch.log(1 - m)
            else:
                sigma = exp(-6 + torch.log(1 + exp(objective.pixels.log_scale + 6)))
                total = total + (x - m) ** 2 / (2 * sigma**2) + torch.log(sigma) + math.log(2 * math.pi) / 2
        for j in range(objective.latent):
            units[j] = units[j] + (exp(logvar[j]) - logvar[j] - 1 + mean[j] ** 2) / 2
    return total / len(images) + beta * sum(torch.clamp(u / len(images), min=free) for u in units)


@pytest.mark.parametrize(("name", "beta", "free"), [("vae", 0.5, 0.0), ("vae_gaussian", 0.7, 0.05)])
def test_vae_is_minus_the_elbo(name, beta, free, world):
    """A quarter through training, half-way up the warm-up of ``vae``."""
    objective = make(name, world, norm=Norm(kind="none"))  # by hand, images are encoded one at a time
    if name == "vae_gaussian":
        with torch.no_grad():
            objective.pixels.log_scale.fill_(-0.7)
    b = batch(objective, IDS, progress=0.25)
    ours, oracle = objective(b).loss, vae_by_hand(objective, b, beta, free)
    torch.testing.assert_close(ours, oracle, rtol=1e-11, atol=0)
    parameters = list(objective.parameters())
    grads = [torch.autograd.grad(loss, parameters) for loss in (ours, oracle)]
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("raw", [-30.0, -12.0, -6.0, 0.0, 2.0])
def test_sigma_has_a_floor_and_a_gradient_everywhere(raw, world):
    """d/ds of -log N(x; m, e^(2f(s))) with f(s) = -6 + log(1 + e^(s + 6)): (1 - e^2 / sigma^2) / (1 + e^-(s + 6)) a
    pixel. A parameter that has fallen far below comes back where the error says so."""
    objective = make("vae_gaussian", world)
    with torch.no_grad():
        objective.pixels.log_scale.fill_(raw)
    images, z = batch(objective, IDS).views[0], random(len(IDS), objective.latent, seed="z")
    errors = (images - objective.decoder(z)).detach().square().flatten().tolist()
    sigma = math.exp(-6) * (1 + math.exp(raw + 6))
    assert sigma >= math.exp(-6)
    slope = sum(1 - e / sigma**2 for e in errors) / (1 + math.exp(-(raw + 6)))
    objective.negative_log_likelihood(images, z[:, None]).sum().backward()
    assert float(objective.pixels.log_scale.grad) == pytest.approx(slope, rel=1e-9) != 0
    if raw < -6:
        optimiser = torch.optim.Adam([objective.pixels.log_scale], lr=0.5)
        for _ in range(150):
            optimiser.zero_grad()
            objective.negative_log_likelihood(images, z[:, None]).sum().backward()
            optimiser.step()
        assert objective.pixels.log_deviation().item() > -5


def test_vae_energy_is_the_whole_elbo_whatever_presses_it(world):
    objective = make("vae_gaussian", world)
    plain = copy.copy(objective)
    plain.settings = VAE(likelihood="gaussian", latent=4)
    b = batch(objective, IDS)
    result = plain(b)
    torch.testing.assert_close(objective(b).low, result.low)
    torch.testing.assert_close(result.loss, result.low.mean())
    torch.testing.assert_close(-result.scalars["vae/elbo"], result.loss)


def test_free_bits_are_of_the_mean_over_the_batch(world):
    """One sample below them and one above: pressed by their mean, arXiv 1606.04934, eq. 15."""
    objective = make("vae_gaussian", world)  # 0.05 nats a unit, beta 0.7
    mean = torch.zeros(2, objective.latent).double()
    mean[1, 0] = 1.0  # KL 1/2, in the mean 1/4; in the other units 0
    rows = torch.zeros(2).double(), mean, torch.zeros_like(mean), mean
    loss = objective.score(rows, batch(objective, [1, 2])).loss
    assert float(loss) == pytest.approx(0.7 * (0.25 + 0.05 * (objective.latent - 1)), rel=1e-12)


class SigmaPoints(Batch):
    """Draws whose mean over the 2 k points is exact for quadratics: +- sqrt(k) along each axis."""

    def normal(self, op: str, *shape: int) -> Tensor:
        k = shape[0]
        points = math.sqrt(k) * torch.cat([torch.eye(k), -torch.eye(k)]).double()
        return points.repeat(len(self.ids) // len(points), 1)


def test_linear_vae_at_the_optimum_is_probabilistic_pca(world):
    """With orthogonal columns the bound is tight: - ELBO = - log N(x; mu, W W' + sigma^2 I) for every image."""
    k, d, sigma = 4, 64, 0.3
    objective = make("vae_gaussian", world)
    w = torch.linalg.qr(random(d, k))[0] * torch.tensor([2.0, 1.5, 1.0, 0.5]).double()
    mu = random(d, seed="mu")
    m = w.square().sum(0) + sigma**2
    encoder, decoder = nn.Linear(d, 2 * k).double(), nn.Linear(k, d).double()
    with torch.no_grad():
        encoder.weight[:k] = w.T / m[:, None]
        encoder.bias[:k] = -encoder.weight[:k] @ mu
        encoder.weight[k:] = 0
        encoder.bias[k:] = torch.log(sigma**2 / m)
        decoder.weight.copy_(w)
        decoder.bias.copy_(mu)
        objective.pixels.log_scale.fill_(math.log(math.expm1(math.log(sigma) + 6)) - 6)
    objective.mean.trunk, objective.mean.projection = nn.Flatten(), encoder
    objective.decoder = nn.Sequential(decoder, nn.Unflatten(1, (IMAGE.channels, 8, 8)))
    images = random(5, 1, 8, 8, seed="x")
    repeated = images.repeat_interleave(2 * k, 0)
    low = objective(SigmaPoints((repeated,), torch.arange(len(repeated)))).low.view(5, -1).mean(1)
    normal = torch.distributions.MultivariateNormal(mu, w @ w.T + sigma**2 * torch.eye(d).double())
    torch.testing.assert_close(low, -normal.log_prob(images.flatten(1)), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["lista_energy", "lista_code"])
def test_lista_starts_as_ista(name, world):
    objective = make(name, world)
    d, penalty = dictionary(), 0.2
    signals = random(5, 10, seed="signals")
    bound = torch.linalg.matrix_norm(d, 2) ** 2
    z = torch.zeros(5, 24).double()
    for _ in range(objective.settings.layers):
        moved = z - (z @ d.T - signals) @ d / bound
        z = torch.sign(moved) * torch.clamp(moved.abs() - penalty / bound, min=0)
    torch.testing.assert_close(objective.encoder(signals), z, rtol=1e-10, atol=1e-13)
    assert 0 < (z != 0).double().mean() < 1


@pytest.mark.parametrize("name", ["lista_energy", "lista_code"])
def test_lista_losses(name, world):
    objective = make(name, world)
    with torch.no_grad():
        for p in objective.parameters():
            p.add_(0.05 * random(*p.shape))
    b = batch(objective, IDS)
    signals, codes = b.views
    z, d, total = objective.net(signals), dictionary(), torch.zeros(()).double()
    for n in range(len(IDS)):
        energy = 0.5 * sum((signals[n, i] - d[i] @ z[n]) ** 2 for i in range(10)) + 0.2 * sum(abs(v) for v in z[n])
        distance = sum((z[n, j] - codes[n, j]) ** 2 for j in range(24))
        total = total + (energy if name == "lista_energy" else distance)
        assert float(objective(b).low[n]) == pytest.approx(float(energy), rel=1e-12)
    result = objective(b)
    torch.testing.assert_close(result.loss, total / len(IDS), rtol=1e-12, atol=0)
    parameters = list(objective.parameters())
    grads = [torch.autograd.grad(loss, parameters) for loss in (result.loss, total / len(IDS))]
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-11)


def test_diagnostics_by_hand(world):
    objective = warm(make("moco", world), 4)
    b = batch(objective, IDS, 4)
    queries, keys = objective.embed(b)
    result = objective(b)
    q, n = queries[:, 0], len(IDS)
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
    uniform = math.log(sum(float(exp(-2 * (q[i] - q[j]).square().sum())) for i, j in pairs) / len(pairs))
    seen = objective.diagnostics(result, b)
    assert float(seen["collapse/uniformity"]) == pytest.approx(uniform, rel=1e-9)
    align = float((q - keys[:, 0]).square().sum(1).mean())
    assert float(seen["collapse/alignment"]) == pytest.approx(align, rel=1e-9)
    first = float((result.low < result.high.min(1).values).double().mean())
    assert float(seen["learn/accuracy"]) == first
    assert float(seen["collapse/std"]) == pytest.approx(float(q.std(0, correction=0).mean()))
    assert float(seen["learn/queue_age"]) == pytest.approx((8 * 1 + 8 * 2 + 4 * 3) / 20)
    collapsed = replace(b, views=tuple(torch.zeros_like(v) for v in b.views))
    assert float(objective.diagnostics(objective(collapsed), collapsed)["collapse/std"]) < 1e-6
