"""Whether Markov chains have mixed: split R-hat and effective sample size of a number each chain has at each draw.

Both after ranks in place of values (Vehtari et al. 2021, arXiv 1903.08008, eq. 6-14): neither heavy tails nor the
number's scale matter.
"""

import numpy as np
from torch import Tensor


def rhat(values: Tensor) -> float:
    """Split R-hat of values [draws, chains], the larger of location's and of scale's: 1 where all chains, and their
    first and second halves, are one distribution's; published advice is at most 1.01."""
    chains = halves(values)
    folded = np.abs(chains - np.median(chains))
    return max(_rhat(normal_ranks(chains)), _rhat(normal_ranks(folded)))


def effective_size(values: Tensor) -> float:
    """Independent draws that values [draws, chains] are worth for a mean: autocorrelations summed as long as pairs of
    them are positive and fall (Geyer 1992)."""
    chains = normal_ranks(halves(values))
    draws, count = chains.shape
    within, total = _variances(chains)
    if not total > 0:
        return float(draws * count)
    correlation = 1 - (within - _autocovariance(chains).mean(1)) / total
    pairs = correlation[: draws // 2 * 2].reshape(-1, 2).sum(1)
    negative = np.flatnonzero(pairs < 0)
    pairs = np.minimum.accumulate(pairs[: negative[0] if len(negative) else None])
    length = max(2 * pairs.sum() - 1, 1 / np.log10(draws * count))
    return float(draws * count / length)


def halves(values: Tensor) -> np.ndarray:
    """The first and the second half of each chain as chains of their own, float64 [draws / 2, 2 chains]."""
    draws = len(values) // 2
    array = values.double().cpu().numpy()
    return np.concatenate([array[:draws], array[-draws:]], 1)


def normal_ranks(values: np.ndarray) -> np.ndarray:
    """Each value's normal score by its rank among all."""
    from scipy.special import ndtri
    from scipy.stats import rankdata

    ranks = rankdata(values, axis=None).reshape(values.shape)
    return ndtri((ranks - 0.375) / (values.size + 0.25))


def _rhat(chains: np.ndarray) -> float:
    within, total = _variances(chains)
    return float(np.sqrt(total / within)) if within > 0 else 1.0


def _variances(chains: np.ndarray) -> tuple[float, float]:
    """The mean variance within chains, and the estimate of the distribution's that also sees between them."""
    draws = len(chains)
    within = chains.var(0, ddof=1).mean()
    return within, within * (draws - 1) / draws + chains.mean(0).var(ddof=1)


def _autocovariance(chains: np.ndarray) -> np.ndarray:
    """Of each chain at every lag, [draws, chains], by Fourier transform; at lag 0 the unbiased variance."""
    draws = len(chains)
    transform = np.fft.rfft(chains - chains.mean(0), 2 * draws, axis=0)
    return np.fft.irfft(np.abs(transform) ** 2, axis=0)[:draws] / (draws - 1)
