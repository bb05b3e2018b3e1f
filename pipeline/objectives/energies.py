"""What the contrastive objectives share: energies in full precision, the losses over them, and what is watched."""

import torch
from torch import Tensor
from torch.nn.functional import normalize, softplus

from pipeline.objectives.base import Step

POINT, NARROW, FAR, FLAT = 0.17, 1.5, 0.9, 0.02


def full(x: Tensor) -> Tensor:
    """At least fp32: energies and losses are never halved, whatever autocast says."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def unit(x: Tensor) -> Tensor:
    """Rows of length 1, at least fp32."""
    return normalize(full(x), dim=-1)


def infonce(low: Tensor, high: Tensor) -> Tensor:
    """low + log(e^-low + sum_j e^-high_j) for low [B], high [B, K] (infinite where masked) -> [B].

    - log of the positive's share in the softmax (van den Oord et al., arXiv 1807.03748, eq. 4).
    """
    return low + torch.cat([low[:, None], high], 1).neg().logsumexp(1)


def nce(low: Tensor, high: Tensor) -> Tensor:
    """- log h+ - sum_j log(1 - h_j), with h the softmax over the positive and all negatives -> [B] (PIRL, eq. 3-4).

    In logarithms throughout. Only the largest h_j can be near 1: its 1 - h is summed from all the others, the rest is
    safe in log1p.
    """
    logits = torch.cat([low[:, None], high], 1).neg()
    total = logits.logsumexp(1, keepdim=True)
    share = logits - total
    top = high.argmin(1, keepdim=True) + 1
    others = logits.scatter(1, top, -torch.inf).logsumexp(1, keepdim=True) - total
    safe = share.scatter(1, top, -torch.inf)[:, 1:]
    return -(share[:, 0] + others[:, 0] + torch.log1p(-safe.exp()).sum(1))


def binary_nce(low: Tensor, high: Tensor, log_partition: Tensor, log_odds: float) -> Tensor:
    """- log sigmoid of data's, - sum log(1 - sigmoid) of noise's log-odds -> [B] (NPID, arXiv 1805.01978, eq. 7).

    The log-odds of an energy E are - E - ``log_partition`` [B] - ``log_odds``, the last being log(K / samples).
    """
    shift = log_partition + log_odds
    return softplus(low + shift) + softplus(-high - shift[:, None]).sum(1)


@torch.no_grad()
def watch(step: Step) -> dict[str, Tensor]:
    """Scalars of a contrastive step, of its unit rows [B, d], its low [R] and its high [R, K].

    accuracy: positives ranked first; auroc: mean over images of the share of an image's negatives above its positive.
    Energies that rounding alone parts are ties, and ties are chance: half a negative in auroc, one of so many that
    share the first place in accuracy (a collapsed encoder: 1/2 and 1 / (1 + K)). positive_share: of the positive in
    the softmax; effective_negatives: 1 / sum of the squared shares of the negatives, K where all weigh the same;
    alignment: mean squared distance to the positive; alignment_ratio: that over the mean squared distance to other
    images' positives, 1 where a positive is as far as any; uniformity: log of the mean of e^(-2 squared distance) over
    pairs (Wang & Isola, arXiv 2005.10242); std: mean over dimensions, 1/sqrt(d) if spread over the sphere, 0 if
    collapsed; directions: how many the rows fill, (tr C)^2 / tr C^2 of their covariance.
    """
    rows, positives, low, high = step.rows, step.positives, step.low.detach(), step.high.detach()
    assert rows is not None and positives is not None
    n, some = len(rows), rows[:256]  # pairs grow with the square
    apart = 2 - 2 * some @ some.T
    apart.fill_diagonal_(torch.inf)
    count = max(1, len(some) * (len(some) - 1))
    alignment = (rows - positives).square().sum(1).mean()
    # All pairs at once, by means and variances about them: nothing cancels where rows are nearly one point.
    means = rows.mean(0), positives.mean(0)
    every = sum((x - mean).square().sum(1).mean() for x, mean in zip((rows, positives), means, strict=True))
    others = (n * (every + (means[0] - means[1]).square().sum()) - alignment) / max(1, n - 1)
    scalars = {
        "learn/alignment": alignment,
        "learn/alignment_ratio": alignment / others.clamp(min=torch.finfo(rows.dtype).tiny),
        "learn/uniformity": (-2 * apart).flatten().logsumexp(0) - torch.log(apart.new_tensor(count)),
        "learn/std": rows.std(0, correction=0).mean(),
        "learn/directions": directions(rows),
    }
    if high.numel():
        real = torch.isfinite(high)
        # A cosine is a sum of d products: its rounding is at most about d eps, of an energy in proportion.
        margin = rows.shape[1] * torch.finfo(low.dtype).eps * low.abs()[:, None]
        above, below = high - low[:, None] > margin, high - low[:, None] < -margin
        ties, count = (~above & ~below).sum(1), real.sum(1)
        won = (above & real).sum(1).to(low.dtype) + 0.5 * ties.to(low.dtype)
        share = high.neg().softmax(1).nan_to_num()  # a row may have none
        scalars |= {
            "learn/accuracy": (~below.any(1) / (1 + ties)).to(low.dtype).mean(),
            "learn/auroc": torch.where(count > 0, won / count.clamp(min=1), 0.5).mean(),
            "learn/positive_share": (-infonce(low, high)).exp().mean(),
            "learn/effective_negatives": (1 / share.square().sum(1).clamp(min=1e-30)).mul(real.any(1)).mean(),
        }
    return scalars


@torch.no_grad()
def directions(rows: Tensor) -> Tensor:
    """How many directions of their space rows [B, D] fill: (tr C)^2 / tr C^2 of their covariance, 0-d; 0 where all are
    one point."""
    centred = rows - rows.mean(0)
    covariance = torch.einsum("bi,bj->ij", centred, centred)
    return covariance.trace().square() / covariance.square().sum().clamp(min=torch.finfo(rows.dtype).tiny)


def collapsed(read: dict[str, float], step: Step) -> dict[str, str]:
    """The signs of a contrastive objective, of what `watch` reads.

    point: its rows' deviation is under POINT of that of a sphere. narrow: they fill fewer directions than NARROW. far:
    positives are nearly as far as other images' (FAR). flat: positives lie less than FLAT nats under negatives, so
    that no sample is told from another (a temperature without end).
    """
    assert step.rows is not None
    found, dim = {}, step.rows.shape[1]
    if read["learn/std"] < POINT * dim**-0.5:
        found["point"] = f"the embeddings are nearly one point (std {read['learn/std']:.2g}, spread {dim**-0.5:.2g})"
    if read["learn/directions"] < NARROW and dim > 1:
        found["narrow"] = f"the embeddings fill {read['learn/directions']:.2g} directions of {dim}"
    if read["learn/alignment_ratio"] > FAR:
        ratio = read["learn/alignment_ratio"]
        found["far"] = f"positives are as far as other images (squared distances, {ratio:.2g} to 1)"
    if read.get("energy/gap", 1.0) < FLAT:
        found["flat"] = f"negatives are not pushed above positives (gap {read['energy/gap']:.2g} nats)"
    return found
