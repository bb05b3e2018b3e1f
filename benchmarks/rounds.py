"""Work done by ours and by peers in turns, so that a busy machine is as busy for each of them."""

import time
from collections.abc import Callable, Mapping

import numpy as np


def rounds(
    work: Mapping[str, Callable[[], object]], count: int = 7, clock: Callable[[], float] = time.process_time
) -> dict[str, list[float]]:
    """CPU seconds of this process (or a clock's) for each, ``count`` times, in turns; each has run once before."""
    for run in work.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(count):
        for name, run in work.items():
            start = clock()
            run()
            seconds[name].append(clock() - start)
    return seconds


def compare(seconds: dict[str, list[float]], items: int, unit: str, ours: str, peer: str) -> dict:
    """Prints a table of all; -> the figure of ours against the peer, by medians."""
    rates = {name: items / float(np.median(s)) for name, s in seconds.items()}
    print(f"\n{items} items a round, {len(seconds[ours])} rounds, CPU time")
    for name, rate in rates.items():
        least = min(seconds[peer]) / min(seconds[name])
        print(f"  {name:<44}{rate:>10.0f} {unit}   {rate / rates[peer]:6.2f} x peer   {least:6.2f} by minima")
    return {"ratio": round(rates[ours] / rates[peer], 3), "ours": rates[ours], "peer": rates[peer], "unit": unit,
            "n": items}  # fmt: skip
