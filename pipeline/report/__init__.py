"""The report of a config: one page that needs nothing but itself, and beside it results.json, which has its numbers.

    facts.py        what results.json holds
    gather.py       the artifacts of a plan -> facts
    rows.py         probes: rows, differences, verdict
    confusion.py    what was taken for what, and the images behind it
    curves.py       losses, and what limited each training
    page.py         facts -> HTML, by page.html and page.css
    charts.py       curves and intervals as SVG; graph.py: the graph of stages
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.plan import PlannedStage


def write(
    words: Sequence[str], root: Path, variants: Mapping[str, list["PlannedStage"]], only_news: bool = False
) -> Path:
    """Writes the page of a config, and results.json beside it, and returns the page's path. ``words``: config and
    overrides as they were typed; ``variants``: the planned stages of each variant of a sweep, by what marks it;
    ``only_news``: leaves a page as it is that has these results. The same artifacts give the same bytes."""
    from pipeline import files, page
    from pipeline.report import gather

    results = gather.results(words, variants)
    folder = page.folder(root, results.name, (p.key for stages in variants.values() for p in stages))
    if only_news and written(folder) == json.loads(json.dumps(results.json())):
        return folder / "report.html"
    from pipeline.report import page as report

    files.write(folder / "report.html", report.html(results))
    files.write_json(folder / "results.json", results.json(), sort_keys=False)  # last: a page is as new as these
    return folder / "report.html"


def written(folder: Path) -> Any:
    """The results that a page in this folder shows; None where there is no whole page."""
    try:
        return json.loads((folder / "results.json").read_text()) if (folder / "report.html").exists() else None
    except (OSError, ValueError):
        return None
