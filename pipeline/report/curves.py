"""What trainings logged: their losses, and what limited them."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import bottleneck
from pipeline.plan import PlannedStage
from pipeline.report import facts

POINTS = 500
"""Points of a curve, at most."""
LOSSES = ("/loss", "/objective", "/elbo")
"""How the tags end of what a training or a dictionary improves."""


def curve(label: str, points: Sequence[tuple[int, float]]) -> facts.Curve:
    """(step, value) pairs in order, as many of them as are drawn, evenly apart, the first and the last among them."""
    at = np.unique(np.linspace(0, len(points) - 1, min(POINTS, len(points))).round().astype(int)).tolist()
    return facts.Curve(label, [points[i][0] for i in at], [points[i][1] for i in at], points[-1][1])


def rows(path: Path) -> list[dict[str, float]]:
    """The lines of a metrics.jsonl or timings.jsonl, less one that is not complete; none where there is no file."""
    found = []
    try:
        for line in path.read_text().splitlines():
            found.append(json.loads(line))
    except (OSError, ValueError):
        pass
    return found


def losses(stages: Iterable[PlannedStage]) -> list[facts.Chart]:
    """A chart for each training's name, its variants together; of stages in whose folder, or in one of its own below
    it, a loss is logged."""
    charts: dict[tuple[str, str], list[facts.Curve]] = {}
    for p in stages:
        for path in sorted(p.folder.glob("**/metrics.jsonl")):
            logged = rows(path)
            tags = {tag for row in logged for tag in row if tag.endswith(LOSSES)}
            for tag in sorted(tags - ({"learn/loss"} if "vae/elbo" in tags else set())):  # whose price of the KL grows
                part = path.parent.relative_to(p.folder).parts
                points = [(int(row["step"]), row[tag]) for row in logged if tag in row]
                if len(points) < 2:
                    continue
                charts.setdefault((" · ".join((p.name, *part)), tag), []).append(curve(p.label or p.name, points))
    return [facts.Chart(title, tag, curves) for (title, tag), curves in charts.items()]


def trainings(stages: Iterable[PlannedStage]) -> Iterator[facts.Training]:
    """What limited each stage that was fed with images."""
    for p in stages:
        settings: Any = p.settings
        timings = rows(p.folder / "timings.jsonl")
        if not hasattr(settings, "batch") or not timings:
            continue
        speed = bottleneck.logged(timings, settings.batch, settings.threads)
        if speed is None or speed.wait is None:
            continue
        latest = {key: value for row in timings for key, value in row.items()}
        restarts, lost, bad = (int(latest.get(key, 0)) for key in ("ops/restarts", "ops/lost_steps", "speed/bad"))
        rate = float(np.median([row["speed/images_per_s"] for row in timings if "speed/images_per_s" in row]))
        limit = bottleneck.limit(speed, getattr(settings, "view_size", None) or 0)
        yield facts.Training(p.label or p.name, rate, speed.wait, settings.threads, limit, restarts, lost, bad)
