"""Autoencoders and the VAE on the shards: an encoder to probe, and pictures of what was learned."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline import keyed, objectives, sheets
from pipeline.board import Board
from pipeline.data.images import images
from pipeline.data.loader import Loader
from pipeline.data.shards import Shards
from pipeline.evaluation import encoders
from pipeline.objectives.base import Setup
from pipeline.settings.nets import CNN
from pipeline.settings.objectives import VAE
from pipeline.settings.stages import Generate
from pipeline.training import loop
from pipeline.views import transforms
from pipeline.world import World

SHOWN = 1000  # test images of the latent plane


def run(settings: Generate, seed: int, inputs: dict[str, Path], out: Path, world: World) -> dict[str, float]:
    """Trains the objective, then draws reconstructions, samples and paths between images of the test split; for a VAE
    with ``bubbles`` also trains a twin with two latent units and draws its plane."""
    shards = inputs[settings.data]
    objective, metrics = fit(settings, seed, shards, out, world)
    if world.main:
        board = Board(out, settings.total_steps(Shards.open(shards, "train").n))
        pictures, _ = held_out(shards, 32, seed)
        show(board, objective.eval().float(), pictures.to(world.device), seed)
        board.close()
    if settings.bubbles and isinstance(settings.objective, VAE):
        flat = settings.objective.net.model_copy(update={"latent": 2})
        twin = settings.model_copy(update={"objective": settings.objective.model_copy(update={"net": flat})})
        plane, _ = fit(twin, seed, shards, out / "plane", world)
        if world.main:
            board = Board(out / "plane", settings.total_steps(Shards.open(shards, "train").n))
            pictures, labels = held_out(shards, SHOWN, seed)
            mean, logvar = plane.eval().float().encode(pictures.to(world.device))
            board.image("latent/bubbles", 0, bubbles(mean.cpu(), logvar.cpu(), labels))
            board.image("latent/plane", 0, sheets.tile(walk(plane, 16), 16))
            board.close()
    return metrics


def fit(settings: Generate, seed: int, folder: Path, out: Path, world: World) -> tuple[Any, dict[str, float]]:
    """One training on the loop -> (objective, last scalars)."""
    out.mkdir(exist_ok=True)
    shards = Shards.open(folder, "train")
    image = shards.image(None)
    total = settings.total_steps(shards.n)
    setup = Setup(image, settings.samples(shards.n), CNN(), world, seed)
    objective = objectives.build(settings.objective, setup)
    loader = Loader(
        shards,
        transforms.build(settings.objective.inputs, (), image, seed),
        batch=settings.batch,
        accumulate=settings.accumulate,
        seed=seed,
        rank=world.rank,
        size=world.size,
        threads=settings.threads,
        device=world.device,
        total_steps=total,
        limit=settings.train_examples,
        window=settings.window,
        bad_samples=out / f"bad-{world.rank}.jsonl",
        max_bad_share=settings.max_bad_share,
    )

    def export(encoder: nn.Module, where: Path) -> None:
        spec = {"objective": settings.objective.model_dump(mode="json"), "image": encoders.describe(image)}
        encoders.save(where, "autoencoder", encoder, spec)

    try:
        metrics = loop.train(objective, loader, settings, total=total, seed=seed, out=out, world=world, export=export)
    finally:
        loader.close()
    return objective, metrics


def held_out(folder: Path, count: int, seed: int) -> tuple[Tensor, np.ndarray]:
    """A fixed random choice of test images in [0, 1], [n, C, H, W], and their labels [n]."""
    shards = Shards.open(folder, "test")
    chosen = keyed.permute(np.arange(min(count, shards.n)), shards.n, seed, "shown")
    return images(shards, chosen, shards.image(None).side).float() / 255, shards.labels[chosen]


@torch.no_grad()
def show(board: Board, objective, pictures: Tensor, seed: int) -> None:
    """The sheets of one trained objective: images over their reconstructions, samples of the prior, straight paths
    in latent space between neighbours of the sheet."""
    again = objective.reconstruct(pictures)
    board.image("reconstructions", 0, sheets.tile(torch.stack([pictures, again], 1).flatten(0, 1), 8))
    ends = objective.code(pictures[:16])
    share = torch.linspace(0, 1, 10, device=pictures.device).view(1, -1, 1)
    paths = ends[:8, None] * (1 - share) + ends[8:, None] * share
    board.image("interpolations", 0, sheets.tile(objective.decode(paths.flatten(0, 1)), 10))
    if hasattr(objective, "sample"):
        board.image("samples", 0, sheets.tile(objective.sample(64, seed), 8))


@torch.no_grad()
def walk(plane, count: int) -> Tensor:
    """Decoded points of the latent plane at the prior's quantiles: [count^2, C, H, W], the first axis downwards."""
    quantiles = torch.erfinv(torch.linspace(-0.95, 0.95, count)) * 2**0.5
    y, x = torch.meshgrid(quantiles.flip(0), quantiles, indexing="ij")
    device = next(plane.parameters()).device
    return plane.decode(torch.stack([x, y], -1).view(-1, 2).to(device))


def bubbles(mean: Tensor, logvar: Tensor, labels: np.ndarray) -> np.ndarray:
    """The lecture's fuzzy balls: an ellipse at each code's mean, its half axes the deviations sqrt(V), coloured by
    label -> uint8 [H, W, 3]."""
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.collections import EllipseCollection
    from matplotlib.figure import Figure
    from matplotlib.patches import Circle

    centre, axes = mean.detach().numpy(), logvar.detach().mul(0.5).exp().numpy()
    figure = Figure(figsize=(9, 9), dpi=100)
    canvas, plot = FigureCanvasAgg(figure), figure.add_subplot()
    colours = colormaps["tab10"](np.maximum(labels, 0) % 10)
    plot.add_collection(
        EllipseCollection(
            2 * axes[:, 0], 2 * axes[:, 1], np.zeros(len(centre)), units="xy", offsets=centre,
            offset_transform=plot.transData, facecolors=colours, edgecolors="none", alpha=0.35,
        )
    )  # fmt: skip
    for label in np.unique(labels[labels >= 0]):
        at = np.median(centre[labels == label], 0)
        plot.text(at[0], at[1], str(label), fontsize=16, weight="bold", ha="center", va="center")
    plot.add_artist(Circle((0, 0), 2, fill=False, ls=":"))
    plot.set(xlim=(-4, 4), ylim=(-4, 4), aspect="equal", xlabel="z1", ylabel="z2")
    plot.set_title("Codes of test images: a ball at E(z), as wide as √V(z); dotted: two deviations of the prior")
    figure.tight_layout()
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
