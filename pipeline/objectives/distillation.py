"""Self-distillation: BYOL, SimSiam and DINO, which predict of one view of an image what is made of another.

There are no negatives, so nothing in ``high``. In BYOL and SimSiam nothing in the loss limits the volume of low energy
either: "BYOL does not use an explicit term to prevent collapse (such as negative examples) while minimizing" it (arXiv
2006.07733, sec. 3.2), and "collapsing solutions do exist for the loss and structure, but a stop-gradient operation
plays an essential role in preventing collapsing" (arXiv 2011.10566, abstract). What is watched in place of a volume is
the deviation of the unit projections over 1/sqrt(d), that of a sphere, as in sec. 4.1 of the latter.
"""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.nets import ema, heads, seeded
from pipeline.objectives.base import PATIENCE_STEPS, Batch, ParameterGroup, Setup, Sign, Step
from pipeline.objectives.energies import full_precision, unit
from pipeline.objectives.joint_embeddings import JointEmbedding, embed_crops, shown
from pipeline.settings import distillation as kinds
from pipeline.tags import FLAT


class SelfDistillation(JointEmbedding):
    """Each view's prediction against the target of every other large view, a mean over all such pairs.

    Two views or more are large. Small crops predict too, and are no one's target.
    """

    remedy = "lower the learning rate, or keep predictor, stopped gradient, centre and momentum as the paper has them"

    def __init__(self, settings: Any, setup: Setup):
        super().__init__(settings, setup)
        self.dim = settings.head.dim
        self.head, self.predictor = self.build_heads(setup)

    def embed(self, batch: Batch) -> tuple[Tensor, ...]:
        """-> unit predictions [B, V + P, dim] of V large views and P small crops, unit targets [B, V, dim]."""
        large = [view for view in batch.views if view.ndim == 4]
        projections = [self.head(self.trunk(view)) for view in large]
        rows = torch.stack([unit(self.predictor(z)) for z in projections], 1)
        for crops in batch.views[len(large) :]:
            rows = torch.cat([rows, embed_crops(self.trunk, nn.Sequential(self.head, self.predictor), crops)], 1)
        return rows, self.targets(large, projections)

    @abstractmethod
    def targets(self, views: list[Tensor], projections: list[Tensor]) -> Tensor:
        """Unit targets [B, V, dim] of large views, whose projections by the trained network are [B, dim] each."""

    def pair(self, embedded: tuple[Tensor, ...]) -> Tensor:
        """The targets of the first two views: projections of the same network."""
        return embedded[1][:, :2]

    def diagnostics(self, step: Step, batch: Batch) -> dict[str, Tensor]:
        """Those of the pairs, and the deviation of the projections over that of a sphere."""
        scalars = super().diagnostics(step, batch)
        return {"energy/volume": scalars["collapse/std"] * self.dim**0.5} | scalars


def of_other_views(energies: Tensor) -> Tensor:
    """Of energies [B, S, V] of S predictions and V targets, those of different views -> [B pairs], a sample's next to
    each other. Prediction i and target i are of the same view."""
    rows = energies.unbind(1)  # slices, since a mask would make the host wait for the device
    return torch.cat([part for i, row in enumerate(rows) for part in (row[:, :i], row[:, i + 1 :])], 1).flatten()


class MomentumTargets(SelfDistillation):
    """Targets come from a momentum encoder of trunk and head, which moves in `commit`."""

    commit_changes = training_state = ("key_trunk.", "key_head.")

    def __init__(self, settings: Any, setup: Setup):
        super().__init__(settings, setup)
        self.key_trunk, self.key_head = ema.momentum_encoder(setup.net, self.trunk, self.head)

    @torch.no_grad()
    def targets(self, views: list[Tensor], projections: list[Tensor]) -> Tensor:
        return torch.stack([unit(self.key_head(self.key_trunk(view))) for view in views], 1)

    def commit(self, pending: dict[str, Tensor], batch_step: int, progress: float = 0.0) -> None:
        """Moves the momentum encoder's parameters."""
        ema.follow(self.settings, progress, (self.key_trunk, self.trunk), (self.key_head, self.head))

    def diagnostics(self, step: Step, batch: Batch) -> dict[str, Tensor]:
        return super().diagnostics(step, batch) | {"learn/key_distance": ema.distance(self.trunk, self.key_trunk)}


class BYOL(MomentumTargets):
    """BYOL (Grill et al. 2020, arXiv 2006.07733), eq. 2: L = ||q - z'||^2 = 2 - 2 <q, z'> of unit rows, q the
    prediction of one view and z' the momentum encoder's projection of the other; both directions are added.

    Of more views, or small crops, the loss is twice the mean over all pairs.
    """

    Settings = kinds.BYOL

    def score(self, embedded: tuple[Tensor, ...], batch: Batch) -> Step:
        """low [B pairs], high [B pairs, 0]."""
        predictions, targets = embedded
        with full_precision(predictions):
            low = of_other_views(2 - 2 * torch.einsum("bsd,bvd->bsv", predictions, targets))
            return Step(2 * low.mean(), low, low.new_empty(len(low), 0), per_sample={"pair": self.pair(embedded)})


class SimSiam(SelfDistillation):
    """SimSiam (Chen & He 2020, arXiv 2011.10566), eq. 2 and algorithm 1: L = D(p1, stopgrad(z2)) / 2 + D(p2,
    stopgrad(z1)) / 2, D(p, z) = - <p, z> of unit rows, z a view's projection and p its prediction.

    Of more views, or small crops, the loss is the mean over all pairs.
    """

    Settings = kinds.SimSiam

    def targets(self, views: list[Tensor], projections: list[Tensor]) -> Tensor:
        rows = torch.stack([unit(z) for z in projections], 1)
        return rows.detach() if self.settings.stop_gradient else rows

    def score(self, embedded: tuple[Tensor, ...], batch: Batch) -> Step:
        """low [B pairs], high [B pairs, 0]."""
        predictions, targets = embedded
        with full_precision(predictions):
            low = of_other_views(-torch.einsum("bsd,bvd->bsv", predictions, targets))
            pair = self.pair(embedded).detach()
            return Step(low.mean(), low, low.new_empty(len(low), 0), per_sample={"pair": pair})

    def parameter_groups(self) -> list[ParameterGroup]:
        """The predictor apart, whose learning rate may be constant."""
        rest = [p for name, p in self.named_parameters() if not name.startswith("predictor.")]
        constant = self.settings.predictor_lr == "constant"
        return [ParameterGroup(rest), ParameterGroup([*self.predictor.parameters()], constant_lr=constant)]


class DINO(MomentumTargets):
    """DINO (Caron et al. 2021, arXiv 2104.14294), eq. 3 and algorithm 1: L = - sum_k Pt_k log Ps_k, of which Pt =
    softmax((gt - C) / tt) and Ps = softmax(gs / ts), g the cosines of an embedding with the prototypes of teacher, the
    momentum encoder, and of student.

    Volume is limited by the balance of two things: the centre C, the moving mean of gt over global batches, keeps Pt
    from being one prototype for all images, and the low temperature tt keeps it from being uniform. "energy/volume" is
    what Pt tells of the image, in nats: the entropy of its mean over the global batch less its own mean entropy. It is
    0 in a collapse of either kind. "energy/low" less "collapse/teacher_entropy" is KL(Pt || Ps) (sec. 5.3).
    """

    Settings = kinds.DINO
    commit_changes = training_state = (*MomentumTargets.commit_changes, "key_prototypes.", "centre")
    centre: Tensor

    def __init__(self, settings: kinds.DINO, setup: Setup):
        super().__init__(settings, setup)
        with seeded(setup.seed, "init", "prototypes"):
            self.prototypes = heads.Prototypes(settings.head.dim, settings.prototypes)
        (self.key_prototypes,) = ema.momentum_encoder(setup.net, self.prototypes)
        self.register_buffer("centre", torch.zeros(settings.prototypes))

    def score(self, embedded: tuple[Tensor, ...], batch: Batch) -> Step:
        """low [B pairs], high [B pairs, 0]. Pending: the mean of the teacher's cosines, [1, prototypes]."""
        predictions, targets = embedded
        with full_precision(predictions):
            student = (self.prototypes(predictions) / self.settings.temperature).log_softmax(2)
            with torch.no_grad():
                cosines = self.key_prototypes(targets)
                teacher = ((cosines - self.centre) / self.teacher_temperature(batch.progress)).softmax(2)
                # One gather for both means, of the global batch.
                means = torch.stack([cosines.mean((0, 1)), teacher.mean((0, 1))])[None]
                mean_cosines, mean_teacher = self.world.gather(means).mean(0)
                own = entropy(teacher).mean()
            low = of_other_views(-torch.einsum("bsk,bvk->bsv", student, teacher))
            scalars = {"energy/volume": entropy(mean_teacher) - own, "collapse/teacher_entropy": own}
            pending, pair = {"cosines": mean_cosines[None]}, self.pair(embedded)
            return Step(low.mean(), low, low.new_empty(len(low), 0), scalars, pending, {"pair": pair})

    def teacher_temperature(self, progress: float) -> float:
        """That of the teacher's softmax once ``progress`` of training is done, 0 to 1."""
        first, last = self.settings.first_teacher_temperature, self.settings.teacher_temperature
        warmup = self.settings.teacher_warmup
        return last if progress >= warmup else first + (last - first) * progress / warmup

    @torch.no_grad()
    def commit(self, pending: dict[str, Tensor], batch_step: int, progress: float = 0.0) -> None:
        """Moves the momentum encoder's parameters and the centre."""
        super().commit(pending, batch_step, progress)
        ema.follow(self.settings, progress, (self.key_prototypes, self.prototypes))
        self.centre.lerp_(pending["cosines"].mean(0), 1 - self.settings.centre_momentum)

    def diagnostics(self, step: Step, batch: Batch) -> dict[str, Tensor]:
        return super().diagnostics(step, batch) | {"energy/volume": step.scalars["energy/volume"]}

    def parameter_groups(self) -> list[ParameterGroup]:
        """The prototypes apart, which do not train from the start."""
        rest = [p for name, p in self.named_parameters() if p.requires_grad and not name.startswith("prototypes.")]
        return [ParameterGroup(rest),
                ParameterGroup([*self.prototypes.parameters()], frozen_steps=self.settings.frozen_steps)]  # fmt: skip

    def collapse_signs(self, scalars: dict[str, float]) -> dict[str, Sign]:
        """Those of the pairs, but for their being nearly one point: what they have in common the centre takes off.
        constant: the teacher's distribution tells less than FLAT nats of the image."""
        told, own = scalars["energy/volume"], scalars["collapse/teacher_entropy"]
        text = f"the teacher gives all images one distribution ({told:.2g} nats of their own, entropy {own:.2g})"
        pairs = {name: sign for name, sign in super().collapse_signs(scalars).items() if name != "point"}
        return pairs | shown({"constant": (told < FLAT, PATIENCE_STEPS, text)})


def entropy(p: Tensor) -> Tensor:
    """Of distributions [..., K], in nats -> [...]."""
    return torch.special.entr(p).sum(-1)
