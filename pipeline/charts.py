"""The page of custom scalars: a question a section, and of its charts those for which there is something to show."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Chart:
    """A chart of curves, each of a run and a tag. ``band``: draws the first tag with the range between the other two.
    ``within``: only where all runs that have the first tag have this one: losses of two families share no axis."""

    title: str
    tags: tuple[str, ...]
    band: bool = False
    within: str = ""


def banded(title: str, name: str) -> Chart:
    return Chart(title, (f"accuracy/{name}", f"range/{name}_low", f"range/{name}_high"), band=True)


MANY, OPEN = 20, 3

SECTIONS = {
    "How good is it? The highest curve, above raw_pixels and random by more than its band": (
        banded("few labels a class (band: deviation over label draws)", "linear_few"),
        banded("all labels (band: deviation of the finite test set)", "linear_top1"),
        banded("nearest neighbours (band: the same)", "knn_top1"),
    ),
    "Did it collapse? Near the line healthy, on the other side of the line collapsed": (
        Chart("deviation of embeddings: up is good", ("collapse/std",)),
        Chart("directions that they fill: up is good", ("collapse/directions",)),
        Chart("an image's views over other images: down is good", ("collapse/alignment_ratio",)),
        Chart("nats from positives to negatives: up is good", ("energy/gap",)),
        Chart("effective rank of features (RankMe): up is good", ("collapse/rankme",)),
        Chart("leakage of batch norm: 0 is good", ("collapse/batchnorm_leakage",)),
    ),
    "Is it learning?": (
        Chart("contrastive loss: down", ("learn/loss",), within="learn/accuracy"),
        Chart("positives before all negatives, share: up", ("learn/accuracy",)),
        Chart("kNN accuracy on training images: up", ("accuracy/knn_online",)),
        Chart("density: energies of data and of samples", ("energy/low", "energy/high"), within="density/moved"),
        Chart("density: pixels that the chains change, share", ("density/moved",)),
        Chart("learning rate", ("learn/lr",)),
    ),
    "What did autoencoders learn? Pictures of it are under Images": (
        Chart("VAE: ELBO, nats an image: up", ("vae/elbo",)),
        Chart("VAE: information in the latent (KL), nats: above 0", ("vae/kl",)),
        Chart("VAE: latent units in use: most of them", ("vae/active_units",)),
        Chart("AE: squared error of an image: down", ("ae/error",)),
    ),
    "What did densities learn? Chains are under Images": (
        Chart("log-likelihood of test images, nats: up", ("density/log_likelihood",)),
        Chart("Frechet distance of samples: near its floor", ("density/frechet", "density/frechet_floor")),
        Chart("simpler images have more energy, share: near 1", ("anomaly/black", "anomaly/white", "anomaly/thinned")),
        Chart("the same less complexity", ("anomaly/black_corrected", "anomaly/thinned_corrected")),
    ),
    "What did sparse codes learn? Atoms are under Images": (
        Chart("objective while the dictionary learns: down", ("codes/objective",)),
        Chart("nonzero entries of a code: few", ("codes/nnz",)),
        Chart("excess after n steps: LISTA below FISTA, ISTA", ("codes/ista", "codes/fista", "codes/lista")),
        Chart("objective of LISTA's codes: down", ("codes/energy",)),
    ),
    "Is it fed?": (
        Chart("share of a step that waits for images: under 0.1", ("speed/wait_share",)),
        Chart("images a second", ("speed/images_per_s",)),
        Chart("seconds a step that the slowest rank waits", ("speed/wait_most",)),
        Chart("seconds a step that ranks compute", ("speed/compute_most", "speed/compute_least")),
        Chart("which rank computes longest", ("speed/compute_rank",)),
        Chart("images that cannot be read: 0", ("speed/bad",)),
    ),
    "What was lost?": (
        Chart("starts after the first", ("ops/restarts",)),
        Chart("steps computed twice", ("ops/lost_steps",)),
        Chart("seconds that they took", ("ops/lost_s",)),
        Chart("seconds from a signal to its checkpoint", ("ops/preempt_save_s",)),
    ),
}


def sections(runs: Iterable[Collection[str]]) -> dict[str, list[Chart]]:
    """The sections and charts of which some run has tags. ``runs``: the tags of each."""
    runs = list(runs)
    shown = {title: [c for c in charts if has(c, runs)] for title, charts in SECTIONS.items()}
    return {title: charts for title, charts in shown.items() if charts}


def has(chart: Chart, runs: list[Collection[str]]) -> bool:
    having = [tags for tags in runs if chart.tags[0] in tags]
    return bool(having) and all(not chart.within or chart.within in tags for tags in having)


def guide(found: dict[str, list[Chart]]) -> str:
    """The sections with the tags of their charts, in Markdown."""
    return "\n".join(
        f"- **{title}**\n" + "\n".join(f"    - {c.title}: `{', '.join(c.tags)}`" for c in group)
        for title, group in found.items()
    )


def layout(found: dict[str, list[Chart]], runs: int) -> list[Any]:
    """What TensorBoard reads of the page. It asks for each chart and run by itself: of many ``runs`` the sections
    after the OPENth are closed until they are clicked. Charts with bands it shows in reverse order."""
    from tensorboard.plugins.custom_scalar.layout_pb2 import Category  # type: ignore[attr-defined]

    return [
        Category(
            title=title,
            chart=[drawn(c) for c in (reversed(group) if group[0].band else group)],
            closed=i >= OPEN and runs > MANY,
        )
        for i, (title, group) in enumerate(found.items())
    ]


def drawn(chart: Chart) -> Any:
    from tensorboard.plugins.custom_scalar import layout_pb2

    page: Any = layout_pb2
    if chart.band:
        value, lower, upper = chart.tags
        series = page.MarginChartContent.Series(value=value, lower=lower, upper=upper)
        return page.Chart(title=chart.title, margin=page.MarginChartContent(series=[series]))
    return page.Chart(title=chart.title, multiline=page.MultilineChartContent(tag=[f"{tag}$" for tag in chart.tags]))
