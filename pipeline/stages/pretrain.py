"""Contrastive pretraining: shards -> views -> objective -> an encoder."""

from pathlib import Path

from torch import nn

from pipeline import objectives, sheets
from pipeline.data.index import Shards
from pipeline.data.loader import Feed
from pipeline.evaluation import encoders, quality
from pipeline.settings.stages import Pretrain
from pipeline.training import loop
from pipeline.views import recipes
from pipeline.world import World


def run(settings: Pretrain, seed: int, inputs: dict[str, Path], out: Path, world: World) -> dict[str, float]:
    """Trains the objective on the shards' training split; writes the encoder, its snapshots and the board."""
    shards = Shards.open(inputs[settings.data], "train")
    image = shards.image(settings.views.size)
    jigsaw = getattr(settings.objective, "jigsaw", None)
    samples, total = settings.samples(shards.n), settings.total_steps(shards.n)
    objective = objectives.build(settings.objective, settings.net, image, samples, world, seed)
    recipe = recipes.build(objective.recipe, settings.views, image, jigsaw, seed)
    feed = Feed(
        shards,
        recipe,
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
        ledger=out / f"bad-{world.rank}.jsonl",
        max_bad_share=settings.max_bad_share,
    )

    def export(encoder: nn.Module, folder: Path) -> None:
        spec = {"net": settings.net.model_dump(mode="json"), "image": encoders.describe(image)}
        encoders.save(folder, "trunk", encoder, spec)

    every = settings.save_steps or settings.save_epochs * settings.steps_per_epoch(shards.n)
    # A forward pass on so many costs a hundredth of the training between two checkpoints.
    judge = quality.judge(shards, image, samples, every * settings.batch // 25, seed)
    first = next(iter(feed.steps(0)))[2][0].views
    try:
        return loop.train(
            objective,
            feed,
            settings,
            total=total,
            seed=seed,
            out=out,
            world=world,
            export=export,
            judge=judge,
            sheets={f"views/{objective.recipe}": sheets.views(first, image)},
        )
    finally:
        feed.close()
