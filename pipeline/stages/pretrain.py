"""Contrastive pretraining: shards -> views -> objective -> an encoder."""

from pathlib import Path

from torch import nn

from pipeline import objectives, sheets
from pipeline.data.loader import Loader
from pipeline.data.shards import Shards
from pipeline.evaluation import encoders, online
from pipeline.image import Image
from pipeline.objectives.base import Objective, Setup
from pipeline.settings.stages import Pretrain
from pipeline.training import loop
from pipeline.views import transforms
from pipeline.world import World


def prepare(
    settings: Pretrain, seed: int, shards: Shards, world: World, bad_samples: Path | None
) -> tuple[Objective, Loader, Image]:
    """What is trained, what feeds this rank, and what the encoder is for."""
    image = shards.image(settings.view_size)
    setup = Setup(image, settings.samples(shards.n), settings.net, world, seed)
    objective = objectives.build(settings.objective, setup)
    loader = Loader(
        shards,
        transforms.build(settings.objective.inputs, settings.views, image, seed),
        batch=settings.batch,
        accumulate=settings.accumulate,
        seed=seed,
        rank=world.rank,
        size=world.size,
        threads=settings.threads,
        device=world.device,
        total_steps=settings.total_steps(shards.n),
        limit=settings.train_examples,
        window=settings.window,
        bad_samples=bad_samples,
        max_bad_share=settings.max_bad_share,
    )
    return objective, loader, image


def run(settings: Pretrain, seed: int, inputs: dict[str, Path], out: Path, world: World) -> dict[str, float]:
    """Trains the objective on the shards' training split; writes the encoder, its snapshots and the board."""
    shards = Shards.open(inputs[settings.data], "train")
    objective, loader, image = prepare(settings, seed, shards, world, out / f"bad-{world.rank}.jsonl")

    def export(encoder: nn.Module, folder: Path) -> None:
        spec = {"net": settings.net.model_dump(mode="json"), "image": encoders.describe(image)}
        encoders.save(folder, "trunk", encoder, spec)

    total = settings.total_steps(shards.n)
    every = min(total, settings.save_steps or settings.save_epochs * settings.steps_per_epoch(shards.n))
    # A forward pass on so many costs a hundredth of the training between two checkpoints.
    evaluate = online.evaluation(shards, image, settings.samples(shards.n), every * settings.batch // 25, seed)
    try:
        return loop.train(
            objective,
            loader,
            settings,
            total=total,
            seed=seed,
            out=out,
            world=world,
            export=export,
            evaluate=evaluate,
            sheets=lambda views: {"views": sheets.views(views, image)},
        )
    finally:
        loader.close()
