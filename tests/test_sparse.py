"""Sparse codes against closed forms, scikit-learn and slow loops; dictionaries; features."""

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline import keyed
from pipeline.settings.objectives import LISTA as LISTASettings
from pipeline.settings.sparse import Coding
from pipeline.settings.stages import Codes
from pipeline.sparse import dictionary, features, lista, solvers

SOLVERS = {"ista": solvers.ista, "fista": solvers.fista, "descend": solvers.descend}


def problem(p: int = 20, k: int = 50, n: int = 30, seed: int = 0, dtype=torch.float64) -> tuple[Tensor, Tensor]:
    """Unit signals [n, p] and a dictionary [p, k] of unit atoms."""
    d = torch.from_numpy(keyed.normal(k, seed, "d", np.arange(p)))
    y = torch.from_numpy(keyed.normal(p, seed, "y", np.arange(n)))
    return (y / y.norm(dim=1, keepdim=True)).to(dtype), (d / d.norm(dim=0)).to(dtype)


def slow_certificate(y: np.ndarray, d: np.ndarray, z: np.ndarray, penalty: float) -> tuple[float, float]:
    """Gap and violation of one code, written from the definitions."""
    r = y - d @ z
    c = d.T @ r
    primal = 0.5 * r @ r + penalty * np.abs(z).sum()
    bound = penalty / max(np.abs(c).max(), 1e-300)
    s = np.clip(y @ r / (r @ r), -bound, bound) if r @ r > 0 else 0.0
    theta = s * r
    assert np.abs(d.T @ theta).max() <= penalty * (1 + 1e-12)
    dual = 0.5 * y @ y - 0.5 * (y - theta) @ (y - theta)
    violation = max(
        abs(c[j] - penalty * np.sign(z[j])) if z[j] else max(abs(c[j]) - penalty, 0.0) for j in range(len(z))
    )
    return primal - dual, violation


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("penalty", [0.05, 0.15, 0.5])
def test_codes_are_those_of_scikit_learn(name, penalty):
    from sklearn.linear_model import Lasso

    y, d = problem(n=12)
    codes = SOLVERS[name](y, d, penalty, 1e-11, 100000)
    for one, z in zip(y.numpy(), codes.z.numpy(), strict=True):
        peer = Lasso(alpha=penalty / len(one), fit_intercept=False, tol=1e-13, max_iter=100000).fit(d.numpy(), one)
        np.testing.assert_allclose(z, peer.coef_, atol=1e-4)
    assert codes.gap.max() <= 1e-11 + 1e-14


@pytest.mark.parametrize("name", SOLVERS)
def test_orthogonal_atoms_have_a_closed_form(name):
    d = torch.linalg.qr(problem(12, 12)[1])[0]
    y = problem(12, 12)[0]
    codes = SOLVERS[name](y, d, 0.2, 1e-11)
    torch.testing.assert_close(codes.z, solvers.soft_threshold(y @ d, 0.2), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", SOLVERS)
def test_from_the_largest_penalty_on_codes_are_zero(name):
    y, d = problem()
    for one, top in zip(y, solvers.largest_penalty(y, d), strict=True):
        assert not SOLVERS[name](one[None], d, float(top) * (1 + 1e-12)).z.any()
        assert SOLVERS[name](one[None], d, float(top) * 0.99, 1e-10).z.any()


@pytest.mark.parametrize(
    ("name", "penalty"),
    [(name, p) for name in SOLVERS for p in (1e-3, 0.15, 0.9) if (name, p) != ("ista", 1e-3)],  # it crawls there
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_hard_dictionaries_are_solved_and_certified(name, penalty, dtype):
    """Duplicated and opposite atoms, an atom of zeros, a rank of 3, more atoms than dimensions, and zero signals."""
    y, d = problem(10, 24, 12, dtype=dtype)
    low = d[:, :3] @ problem(3, 24, dtype=dtype)[1]
    y[3] = 0
    cases = [torch.cat([d, d[:, :5], -d[:, 5:9], torch.zeros(10, 1, dtype=dtype)], 1), low / low.norm(dim=0), d[:, :4]]
    for case in cases:
        codes = SOLVERS[name](y, case, penalty, 1e-4)
        gap, violation = solvers.certify(y, case, codes.z, penalty)
        assert codes.z.dtype == dtype and gap.dtype == torch.float64
        assert gap.max() <= 1e-4
        torch.testing.assert_close(codes.gap, gap, atol=1e-12, rtol=0)
        torch.testing.assert_close(codes.violation, violation, atol=1e-12, rtol=0)
        assert not codes.z[3].any() and codes.gap[3] == 0 and codes.iterations[3] == 0


def test_the_certificate_is_its_definition_and_bounds_the_excess():
    y, d = problem()
    least = solvers.energy(y, d, solvers.descend(y, d, 0.1, 1e-13).z, 0.1)
    at, gram, q, step = solvers.begin(y @ d), d.T @ d, y @ d, 1 / solvers.curvature(d)
    for _ in range(30):
        gap, violation = solvers.certify(y, d, at.z, 0.1)
        assert (solvers.energy(y, d, at.z, 0.1) - least <= gap + 1e-13).all()
        for i in range(3):
            slow = slow_certificate(y[i].numpy(), d.numpy(), at.z[i].numpy(), 0.1)
            np.testing.assert_allclose((float(gap[i]), float(violation[i])), slow, atol=1e-12)
        at = solvers.advance(at, gram, q, 0.1, step, momentum=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", SOLVERS)
def test_nothing_is_certified_of_what_is_not_finite(name, dtype):
    """NaN, infinities, and numbers whose squares are past the end: all three are NaN, and the others are untouched."""
    y, d = problem(n=8, dtype=dtype)
    clean = SOLVERS[name](y, d, 0.15)
    broken = y.clone()
    broken[1, 3], broken[2, 0], broken[4, 5] = torch.nan, torch.inf, -torch.inf
    broken[6] = torch.finfo(dtype).max / 2
    bad = torch.tensor([False, True, True, False, True, False, dtype == torch.float64, False])
    codes = SOLVERS[name](broken, d, 0.15)
    for whole, found in zip(clean[:3], codes[:3], strict=True):
        assert found[bad].isnan().all()
        torch.testing.assert_close(found[[0, 3, 5, 7]], whole[[0, 3, 5, 7]])
    gap, _ = solvers.certify(broken, d, torch.zeros_like(codes.z), 0.15)
    assert not torch.isfinite(gap[bad]).any()
    d[2, 7] = torch.nan
    assert all(found.isnan().all() for found in SOLVERS[name](y, d, 0.15)[:3])


def test_single_precision_reaches_its_tolerance_in_double():
    y, d = problem(64, 256, 1200, dtype=torch.float32)
    for penalty in (0.02, 0.15, 0.6):
        for tolerance in (1e-4, 1e-6):
            codes = solvers.descend(y, d, penalty, tolerance)
            assert solvers.certify(y, d, codes.z, penalty)[0].max() <= tolerance
    assert solvers.fista(y, d, 0.15).gap.max() <= 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dense_codes_of_correlated_atoms_are_solved(dtype):
    """By a tenth of the sweeps that descent from 0 at the small penalty would take: it then has more atoms than
    dimensions, and leaves some codes unsolved after 10,000 sweeps."""
    y, d = problem(64, 256, 12, dtype=dtype)
    d = d + 1.5 * problem(64, 1, 1, seed=9, dtype=dtype)[1]
    d = d / d.norm(dim=0)
    for penalty in (1e-4, 1e-3):
        assert penalty < solvers.largest_penalty(y, d).min() / 100
        codes = solvers.descend(y, d, penalty)
        assert solvers.certify(y, d, codes.z, penalty)[0].max() <= 1e-4
        assert (codes.z != 0).sum(1).min() > 55 and codes.iterations.max() < 1000
        fewest = solvers.descend(y, d, penalty, limit=40)  # stopped on the way, the gap is still of this penalty
        gap, violation = solvers.certify(y, d, fewest.z, penalty)
        torch.testing.assert_close(fewest.gap, gap, atol=1e-10, rtol=1e-9)
        torch.testing.assert_close(fewest.violation, violation, atol=1e-10, rtol=1e-9)


def test_a_code_depends_on_its_signal_alone():
    """To the bit: alone, in any company, any order, any number of threads."""
    y, d = problem(36, 100, 1100, dtype=torch.float32)
    together = solvers.descend(y, d, 0.1)
    order = torch.from_numpy(keyed.permute(np.arange(len(y)), len(y), 3))
    shuffled = solvers.descend(y[order], d, 0.1)
    alone = [solvers.descend(y[i : i + 1], d, 0.1) for i in range(len(y))]
    torch.set_num_threads(3)
    try:
        threaded = solvers.descend(y, d, 0.1)
    finally:
        torch.set_num_threads(1)
    for i in range(4):
        assert torch.equal(together[i], threaded[i])
        assert torch.equal(together[i][order], shuffled[i])
        assert torch.equal(together[i], torch.cat([one[i] for one in alone]))


def test_a_solved_signal_leaves_the_batch():
    """A signal's steps of FISTA do not depend on the others', as far as products of matrices allow."""
    y, d = problem(n=40)
    together = solvers.fista(y, d, 0.1)
    for i in range(len(y)):
        one = solvers.fista(y[i : i + 1], d, 0.1)
        assert one.iterations == together.iterations[i]
        torch.testing.assert_close(one.z[0], together.z[i], atol=1e-13, rtol=0)


def test_without_the_kernel_codes_are_as_exact(monkeypatch):
    y, d = problem(36, 100, 50, dtype=torch.float32)
    ours = solvers.encode(y, d, 0.1, 1e-6)
    monkeypatch.setattr(solvers, "find_spec", lambda name: None)
    monkeypatch.setattr(solvers, "descend", None)
    plain = solvers.encode(y, d, 0.1, 1e-6)
    assert plain.gap.max() <= 1e-6
    torch.testing.assert_close(plain.z, ours.z, atol=5e-3, rtol=0)


@pytest.mark.gpu
def test_a_gpu_solves_the_same_problem():
    y, d = problem(64, 256, 500, dtype=torch.float32)
    ours, theirs = solvers.encode(y, d, 0.15, 1e-5), solvers.encode(y.cuda(), d.cuda(), 0.15, 1e-5)
    assert theirs.gap.max() <= 1e-5
    gap, _ = solvers.certify(y, d, theirs.z.cpu(), 0.15)
    torch.testing.assert_close(gap, theirs.gap.cpu(), atol=1e-9, rtol=0)
    difference = solvers.energy(y, d, ours.z, 0.15) - solvers.energy(y, d, theirs.z.cpu(), 0.15)
    assert difference.abs().max() < 2e-5


def test_the_lectures_energy_is_twice_ours_at_half_its_penalty():
    y, d = problem()
    lecture = 0.3
    codes = solvers.descend(y, d, solvers.half(lecture), 1e-12)
    theirs = (y - codes.z @ d.T).square().sum(1) + lecture * codes.z.abs().sum(1)
    torch.testing.assert_close(theirs, 2 * solvers.energy(y, d, codes.z, solvers.half(lecture)))
    # ... and is at its minimum there: every small change of the code costs.
    for sign in (1e-3, -1e-3):
        for j in range(d.shape[1]):
            moved = codes.z.clone()
            moved[:, j] += sign
            assert ((y - moved @ d.T).square().sum(1) + lecture * moved.abs().sum(1) >= theirs - 1e-9).all()


def test_momentum_is_what_tells_fista_from_ista():
    y, d = problem()
    slow, fast = solvers.ista(y, d, 0.05, 1e-6), solvers.fista(y, d, 0.05, 1e-6)
    assert slow.gap.max() <= 1e-6 and fast.gap.max() <= 1e-6
    assert fast.iterations.double().mean() < 0.5 * slow.iterations.double().mean()
    at, gram, q, step = solvers.begin(y @ d), d.T @ d, y @ d, 1 / solvers.curvature(d)
    z = torch.zeros_like(q)
    for _ in range(5):
        at = solvers.advance(at, gram, q, 0.05, step, momentum=False)
        z = solvers.soft_threshold(z + step * (y - z @ d.T) @ d, step * 0.05)
    torch.testing.assert_close(at.z, z)


def test_fista_follows_its_equations():
    """Beck & Teboulle's recursion with restarts, one signal at a time, from y and D."""
    y, d = problem(n=4)
    at, gram, q, step = solvers.begin(y @ d), d.T @ d, y @ d, 1 / solvers.curvature(d)
    expected = []
    for one in y:
        z = x = torch.zeros(d.shape[1], dtype=y.dtype)
        t = 1.0
        for _ in range(60):
            new = solvers.soft_threshold(x - step * d.T @ (d @ x - one), step * 0.02)
            if (x - new) @ (new - z) > 0:
                t = 1.0
            after = (1 + (1 + 4 * t * t) ** 0.5) / 2
            x, z, t = new + (t - 1) / after * (new - z), new, after
        expected.append(z)
    for _ in range(60):
        at = solvers.advance(at, gram, q, 0.02, step, momentum=True)
    torch.testing.assert_close(at.z, torch.stack(expected), atol=1e-10, rtol=0)


@pytest.mark.parametrize("form", ["lista", "coupled", "steps"])
def test_each_form_starts_as_ista(form):
    y, d = problem()
    *_, wanted = solvers.iterates(y, d, 0.1, 5, momentum=False)
    network = lista.build(LISTASettings(layers=5, form=form), d, 0.1)
    torch.testing.assert_close(network(y), wanted, atol=1e-9, rtol=0)


def test_the_analytic_weight_is_the_least_coherent_one():
    """No other weight with w_j'd_j = 1 has a smaller ||W'D||_F: the norm's slope is along d_j alone."""
    _, d = problem()
    weight = lista.least_coherent(d).requires_grad_()
    torch.testing.assert_close((weight * d).sum(0), torch.ones(50).double())
    (slope,) = torch.autograd.grad((weight.T @ d).square().sum(), [weight])
    across = slope - d * (slope * d).sum(0)
    assert float(across.abs().max()) < 1e-9 < float(slope.abs().max())
    assert (weight.T @ d).square().sum() < (d.T @ d).square().sum()


def test_lista_starts_as_ista_and_only_the_plus_sign_does():
    y, d = problem()
    network = lista.LISTA(d, 0.1, layers=5)
    at, gram, q, step = solvers.begin(y @ d), d.T @ d, y @ d, 1 / solvers.curvature(d)
    wrong = torch.zeros_like(q)
    for _ in range(5):
        at = solvers.advance(at, gram, q, 0.1, step, momentum=False)
    torch.testing.assert_close(network(y), at.z, atol=1e-9, rtol=0)
    inhibit = torch.eye(len(gram), dtype=gram.dtype) - step * gram
    right = torch.zeros_like(q)
    for _ in range(3000):
        wrong = solvers.soft_threshold(step * q - wrong @ inhibit, step * 0.1)
        right = solvers.soft_threshold(step * q + right @ inhibit, step * 0.1)
    assert solvers.certify(y, d, right, 0.1)[0].max() < 1e-6
    assert solvers.certify(y, d, wrong, 0.1)[0].min() > 1e-3


# Dictionaries


def digit_signals() -> Tensor:
    """Whitened unit patches of the digits in a fixed order: float32 [22992, 25]."""
    from sklearn.datasets import load_digits

    images = torch.from_numpy(load_digits().images / 16).float()[:1437, None]
    raw = features.patches(images, 5, 0, 10.0)
    raw = raw[torch.from_numpy(keyed.permute(np.arange(len(raw)), len(raw), 0))]
    mean, zca = features.whitening(raw, 0.1)
    return features.unit(((raw - mean) @ zca).float())[0]


def learned(signals: Tensor, atoms: int, batches: int, batch: int, penalty: float = 0.15) -> dictionary.Dictionary:
    now = dictionary.begin(signals, atoms, 0)
    for i in range(batches):
        y = signals[(torch.arange(batch) + i * batch) % len(signals)]
        dictionary.update(now, y, solvers.encode(y, now.atoms.to(y), penalty).z)
    return now


def cost(signals: Tensor, d: Tensor, penalty: float = 0.15) -> float:
    return float(solvers.energy(signals, d, solvers.encode(signals, d, penalty, 1e-6).z, penalty).mean())


def test_the_sweep_is_its_equation_and_never_costs():
    y, d = problem(8, 12, 60)
    z = solvers.descend(y, d, 0.1).z
    z[:, 4] = 0  # an atom without weight stays
    a, b = z.T @ z / 60, y.T @ z / 60
    slow = d.numpy().copy()
    for j in range(12):
        if a[j, j] > 0:
            u = slow[:, j] + (b.numpy()[:, j] - slow @ a.numpy()[:, j]) / float(a[j, j])
            slow[:, j] = u / np.linalg.norm(u)
    new = d.clone()
    dictionary.sweep(new, a, b)
    np.testing.assert_allclose(new.numpy(), slow, atol=1e-12)
    assert (y - z @ new.T).square().sum() < (y - z @ d.T).square().sum()
    torch.testing.assert_close(new.norm(dim=0), torch.ones(12, dtype=torch.float64))


def test_learning_pays_and_keeps_up_with_scikit_learn():
    from sklearn.decomposition import MiniBatchDictionaryLearning

    signals = digit_signals()
    train, held = signals[:20000], signals[20000:22000]
    start = dictionary.begin(train, 64, 0)
    ours = learned(train, 64, 39, 512)
    peer = MiniBatchDictionaryLearning(
        64, alpha=0.15, batch_size=512, max_iter=1, fit_algorithm="cd", shuffle=False, max_no_improvement=None,
        dict_init=start.atoms.T.numpy().copy(), transform_alpha=0.15,
    ).fit(train[:19968].double().numpy())  # fmt: skip
    theirs = torch.from_numpy(peer.components_.T).float()
    before, after = cost(held, start.atoms.float()), cost(held, ours.atoms.float())
    assert after < 0.95 * before
    assert after < 1.01 * cost(held, theirs / theirs.norm(dim=0).clamp_min(1))
    usage = (solvers.encode(held, ours.atoms.float(), 0.15).z != 0).sum(0)
    assert (usage > 0).all()


def test_dead_atoms_become_what_is_reconstructed_worst():
    signals = digit_signals()[:512]
    now = learned(signals, 32, 9, 512)
    now.used[5] = 0
    now.atoms[:, 5] = 0
    now.atoms[0, 5] = 1
    z = solvers.encode(signals, now.atoms.float(), 0.15).z
    z[:, 5] = 0
    before = now.a.clone()
    beta = dictionary.discount(int(now.seen), 512)
    dictionary.update(now, signals, z)
    residual = signals.double() - z.double() @ now.atoms.T
    assert int(now.replaced) == 1 and not now.used.any()
    assert now.a[5].abs().sum() == 0 and now.a[:, 5].abs().sum() == 0 and now.b[:, 5].abs().sum() == 0
    assert (now.a[0, 0] - (beta * before[0, 0] + z[:, 0].double().square().mean())).abs() < 1e-12
    worst = residual.norm(dim=1).argmax()  # its residual, where the dead atom takes no part
    torch.testing.assert_close(now.atoms[:, 5], residual[worst] / residual[worst].norm())
    dictionary.sweep(now.atoms, now.a, now.b)  # it stays until codes give it weight
    torch.testing.assert_close(now.atoms[:, 5], residual[worst] / residual[worst].norm())


def test_early_batches_fade_as_published():
    batch = 4
    for t in range(1, 20):
        theta = t * batch if t < batch else batch**2 + t - batch
        assert dictionary.discount((t - 1) * batch, batch) == pytest.approx((theta + 1 - batch) / (theta + 1))
    assert dictionary.discount(0, batch) == pytest.approx(1 / (batch + 1))


def test_too_few_signals_still_begin_a_dictionary():
    signals = torch.zeros(6, 4)
    signals[2, 1] = 3
    now = dictionary.begin(signals, 5, 0)
    torch.testing.assert_close(now.atoms.norm(dim=0), torch.ones(5, dtype=torch.float64))


# Features


def settings(**changes) -> Coding:
    return Coding(**{"patch": 3, "atoms": 7, **changes})


def coder(channels: int, **changes) -> features.Coder:
    chosen = settings(**changes)
    size = channels * chosen.patch**2
    draw = torch.from_numpy(keyed.normal(size, 1, np.arange(400)))
    mean, zca = features.whitening(draw + 0.3, 0.1)
    return features.Coder(chosen, mean, zca, problem(size, chosen.atoms)[1])


def slow_features(made: features.Coder, image: np.ndarray) -> np.ndarray:
    """One image [C, H, W] in float64, patch by patch."""
    s = made.settings
    mean, zca, d = (x.double().numpy() for x in (made.mean, made.zca, made.dictionary))
    padded = np.pad(image, ((0, 0), (s.pad, s.pad), (s.pad, s.pad)))
    across = padded.shape[1] - s.patch + 1
    total = np.zeros((2, s.atoms, s.pool, s.pool))
    edges = [round(i * across / s.pool) for i in range(s.pool + 1)]
    for i in range(across):
        for j in range(across):
            x = padded[:, i : i + s.patch, j : j + s.patch].reshape(-1)
            x = (x - x.mean()) / np.sqrt(x.var(ddof=1) + 10 / 255**2)
            x = zca.T @ (x - mean)
            if s.features == "threshold":
                r = d.T @ x
                z = np.sign(r) * np.maximum(np.abs(r) - s.threshold, 0)
            else:
                y = torch.from_numpy(x / np.linalg.norm(x))[None]
                z = np.linalg.norm(x) * solvers.descend(y, made.dictionary.double(), s.penalty, 1e-12).z[0].numpy()
            row = max(c for c in range(s.pool) if edges[c] <= i)
            column = max(c for c in range(s.pool) if edges[c] <= j)
            total[0, :, row, column] += np.maximum(z, 0)
            total[1, :, row, column] += np.maximum(-z, 0)
    return total.reshape(-1)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["threshold", "lasso"])
@pytest.mark.parametrize(("pad", "pool", "side"), [(0, 2, 8), (1, 3, 9), (2, 1, 6)])
def test_features_are_those_of_a_slow_loop(channels, kind, pad, pool, side):
    made = coder(channels, features=kind, pad=pad, pool=pool, tolerance=1e-9)
    images = torch.from_numpy(keyed.uniform(channels * side * side, 0, np.arange(4))).view(4, channels, side, side)
    images[1] = 0.5  # flat: nothing but the contrast constant holds it
    images[2, :, 2:] = 0
    net = features.SparseFeatures(made)
    got = net(images.float())
    assert got.shape == (4, net.features) and got.dtype == torch.float32
    expected = np.stack([slow_features(made, image.numpy()) for image in images])
    np.testing.assert_allclose(got.numpy(), expected, atol=2e-3 * np.abs(expected).max())
    torch.testing.assert_close(torch.cat([net(one[None]) for one in images.float()]), got, atol=1e-4, rtol=1e-5)


def test_lista_features_are_its_codes():
    made = coder(1, features="lista", lista=LISTASettings(layers=2), pad=0)
    images = torch.from_numpy(keyed.uniform(36, 0, np.arange(3))).view(3, 1, 6, 6).float()
    y, norm = features.unit(made.whiten(features.patches(images, 3, 0, 10.0)))
    z = (made.lista(y) * norm).view(3, 4, 4, 7)
    expected = torch.stack([z.clamp_min(0), (-z).clamp_min(0)], 1).view(3, 2, 2, 2, 2, 2, 7).sum((3, 5))
    torch.testing.assert_close(features.SparseFeatures(made)(images), expected.permute(0, 1, 4, 2, 3).flatten(1))


def test_whitened_signals_are_uncorrelated_but_for_the_regulariser():
    spread = torch.tensor([9, 3, 1, 1, 0.3, 0], dtype=torch.float64)
    x = torch.from_numpy(keyed.normal(6, 2, np.arange(5000))) * spread
    mean, zca = features.whitening(x, 0.1)
    values = torch.linalg.eigvalsh(torch.cov(x.T))
    covariance = torch.cov(((x - mean) @ zca).T)
    torch.testing.assert_close(torch.linalg.eigvalsh(covariance), values / (values + 0.1), atol=1e-9, rtol=0)
    torch.testing.assert_close(zca, zca.T)


def test_ten_digits_a_class_are_enough_for_a_linear_probe():
    """Codes of 5x5 patches against raw pixels, mean over 5 draws of 10 labels a class."""
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import train_test_split

    x, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(x / 16).float().view(-1, 1, 8, 8)
    train, test = train_test_split(np.arange(len(x)), test_size=0.2, stratify=labels, random_state=1)
    chosen = Codes(data="shards")
    raw = features.patches(images[train], chosen.patch, chosen.pad, chosen.contrast)
    raw = raw[torch.from_numpy(keyed.permute(np.arange(20000), len(raw), 0))]
    mean, zca = features.whitening(raw, 0.1)
    now = learned(features.unit(((raw - mean) @ zca).float())[0], chosen.atoms, 30, chosen.batch)
    net = features.SparseFeatures(features.Coder(chosen, mean, zca, now.atoms))
    scores = {}
    for name, values in (("codes", net(images).numpy()), ("pixels", x)):
        values = (values - values[train].mean(0)) / np.sqrt(values[train].var(0) + 0.01)
        accuracy = []
        for draw in range(5):
            order = keyed.permute(np.arange(len(train)), len(train), draw)
            few = np.concatenate([train[order][labels[train][order] == c][:10] for c in range(10)])
            head = LogisticRegression(max_iter=300).fit(values[few], labels[few])
            accuracy.append(head.score(values[test], labels[test]))
        scores[name] = np.mean(accuracy)
    assert scores["codes"] > 0.935
    assert scores["codes"] > scores["pixels"] + 0.03
