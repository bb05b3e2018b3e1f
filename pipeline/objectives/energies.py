"""Energies in full precision, the losses over those of positives and negatives, and the directions that rows fill."""

import torch
from torch import Tensor
from torch.nn.functional import normalize, softplus


def full(x: Tensor) -> Tensor:
    """The tensor in at least fp32: no energy or loss is computed in half precision, whatever autocast says."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def full_precision(x: Tensor) -> torch.autocast:
    """A context in which autocast lowers no precision of what is computed on x's device."""
    return torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False)


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
def directions(rows: Tensor) -> Tensor:
    """How many directions of their space rows [B, D] fill: (tr C)^2 / tr C^2 of their covariance, 0-d; 0 where all are
    one point."""
    centred = rows - rows.mean(0)
    covariance = torch.einsum("bi,bj->ij", centred, centred)
    return covariance.trace().square() / covariance.square().sum().clamp(min=torch.finfo(rows.dtype).tiny)
