"""What a GPU does with this: `python -m benchmarks.gpu PHOTOS OUT [--small]`, without Ray and without a network.

Measures decoding, photometrics, the pure step (fp32, TF32, bf16; eager, compiled, as CUDA graphs) beside the same step
of plain torch modules, its share of a large matrix product of the same run, peak memory beside the estimate, and
training end to end from shards with its waiting. Each piece ends within minutes and is written to OUT/gpu.json; one
that fails is named and passed over: the same command goes on with what is missing. PHOTOS: a folder of a few hundred
images, replicated for the feed. The table is OUT/gpu.md.
"""

import argparse
import copy
import gc
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import normalize

from pipeline import estimate, objectives
from pipeline.data.formats import is_image
from pipeline.image import Image
from pipeline.nets import trunks
from pipeline.objectives.base import Batch, Setup
from pipeline.settings.data import MoCoV2
from pipeline.settings.nets import ResNet
from pipeline.settings.objectives import Inputs, MoCo
from pipeline.settings.stages import Pack, Pretrain
from pipeline.stages import pack, pretrain
from pipeline.training import optim
from pipeline.training.loop import backward
from pipeline.training.state import compile_networks
from pipeline.views import transforms
from pipeline.views.decode import decode
from pipeline.world import World


class Bench:
    """``small``: sizes at which a CPU shows that all of it runs; such numbers are no claim."""

    def __init__(self, photos: Path, out: Path, small: bool):
        self.out, self.small, self.world = out, small, World(1 if small else 8)
        self.device = self.world.device
        self.photos = sorted(p for p in photos.rglob("*") if is_image(p.name))
        if not self.photos:
            raise SystemExit(f"{photos}: no images in it; expected a folder with a few hundred photographs")
        self.side, self.batch = (32, 4) if small else (224, 256)
        self.kind: Any = "resnet18" if small else "resnet50"
        self.first, self.repeats = (0, 1) if small else (2, 20)

    def seconds(self, work: Callable[[], Any]) -> float:
        """Of a repeat, after a few that are not counted."""
        for _ in range(self.first):
            work()
        self.wait()
        start = time.perf_counter()
        for _ in range(self.repeats):
            work()
        self.wait()
        return (time.perf_counter() - start) / self.repeats

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def release(self) -> None:
        """Gives back what a piece has used, so that the next one's peak is its own."""
        gc.collect()
        torch.compiler.reset()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def name(self) -> dict[str, Any]:
        card = torch.cuda.get_device_name() if self.device.type == "cuda" else "CPU: not a measurement"
        return {"device": card, "torch": torch.__version__, "small": self.small}

    def matmul(self, precision: str) -> dict[str, Any]:
        self.set(precision)
        n = 256 if self.small else 8192
        a = torch.randn(n, n, device=self.device, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
        return {"tflops": 2 * n**3 / self.seconds(lambda: a @ a) / 1e12}

    def decoding(self) -> dict[str, Any]:
        data = [p.read_bytes() for p in self.photos[:64]]
        return {"images_per_s_and_core": len(data) / self.seconds(lambda: [decode(d, 3) for d in data])}

    def photometrics(self) -> dict[str, Any]:
        image = Image(3, self.side, (0.5,) * 3, (0.25,) * 3)
        transform = transforms.build(Inputs(), (MoCoV2(size=self.side),), image, 0)
        ids = np.arange(self.batch)
        crops = tuple(
            torch.randint(0, 256, (self.batch, *shape), dtype=torch.uint8, device=self.device)
            for shape in transform.crop_shapes
        )
        return {"images_per_s": 2 * self.batch / self.seconds(lambda: transform.views(crops, 0, ids))}

    def settings(self, precision: str, side: int = 0) -> Pretrain:
        """The step that is measured; at 32 pixels, that of configs/cifar10_gpu.yaml with one view."""
        tiny = side == 32
        return Pretrain(
            data="shards", net=ResNet(kind="resnet18" if tiny else self.kind), views=(MoCoV2(size=side or self.side),),
            batch=2 * self.batch if tiny else self.batch, objective=MoCo(queue=64 if self.small else 65536),
            channels_last=True, steps=2 if self.small else 100, precision="bf16" if precision == "bf16" else "fp32",
            log_steps=1 if self.small else 20, threads=1 if self.small else 16, collapse="ignore", train_examples=None,
        )  # fmt: skip

    def case(self, precision: str, side: int = 0) -> tuple[Pretrain, Image, tuple[torch.Tensor, ...]]:
        """Settings, image and two synthetic views, after the precision was set for this process."""
        self.set(precision)
        settings, image = self.settings(precision, side), Image(3, side or self.side, (0.5,) * 3, (0.25,) * 3)
        shape = (settings.batch, 3, image.side, image.side)
        return settings, image, tuple(torch.randn(shape, device=self.device) for _ in range(2))

    def set(self, precision: str) -> None:
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        torch.backends.cudnn.allow_tf32 = precision == "tf32"

    def autocast(self, precision: str) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "bf16")

    def step(self, precision: str, mode: str, side: int = 0) -> dict[str, Any]:
        """The pure step from synthetic input: images a second, and FLOP/s by a count of the forward pass."""
        settings, image, views = self.case(precision, side)
        objective: Any = objectives.build(settings.objective, Setup(image, 10_000, settings.net, self.world, 0))
        objective.to(self.device).to(memory_format=torch.channels_last).train()
        optimiser, at = optim.build(objective, settings), itertools.count()
        batch = Batch(views, torch.arange(len(views[0]), device=self.device))
        flops = 4 * self.forward_flops(objective.trunk, views[0])
        if mode != "eager":
            compile_networks(objective, "graphs" if mode == "graphs" else True)

        def work() -> None:
            if mode == "graphs":
                torch.compiler.cudagraph_mark_step_begin()
            with self.autocast(precision):
                result = backward(objective, objective, [batch])
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            objective.commit(result.pending, next(at))

        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        took = self.seconds(work)
        peak = torch.cuda.max_memory_allocated() if self.device.type == "cuda" else 0
        expected = estimate.memory(settings, self.on_meta(settings), image)
        rates = {"images_per_s": len(views[0]) / took, "tflops": flops / took / 1e12}
        return {**rates, "peak_bytes": peak, "estimated_bytes": expected}

    def peer(self, precision: str, side: int = 0) -> dict[str, Any]:
        """The same step composed of plain torch modules, as MoCo's authors' code has it."""
        settings, image, (first, second) = self.case(precision, side)
        chosen: Any = settings.objective
        trunk: Any = trunks.build(settings.net, image, None, 0)
        sizes = (trunk.features, chosen.head.hidden, chosen.head.dim)
        head = torch.nn.Sequential(torch.nn.Linear(*sizes[:2]), torch.nn.ReLU(), torch.nn.Linear(*sizes[1:]))
        query = torch.nn.Sequential(trunk, head).to(self.device)
        key = copy.deepcopy(query).requires_grad_(False)
        queue = normalize(torch.randn(chosen.head.dim, chosen.queue, device=self.device), dim=0)
        optimiser = torch.optim.SGD(query.parameters(), 0.03, momentum=0.9, weight_decay=1e-4)
        criterion, place = torch.nn.CrossEntropyLoss(), 0
        label = torch.zeros(len(first), dtype=torch.long, device=self.device)

        def work() -> None:
            nonlocal place
            with self.autocast(precision):
                q = normalize(query(first), dim=1)
                with torch.no_grad():
                    for slow, fast in zip(key.parameters(), query.parameters(), strict=True):
                        slow.data = slow.data * chosen.momentum + fast.data * (1 - chosen.momentum)
                    k = normalize(key(second), dim=1)
                logits = torch.cat([(q * k).sum(1, keepdim=True), q @ queue.clone().detach().to(q.dtype)], 1)
                loss = criterion(logits / chosen.temperature, label)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            slots = (place + torch.arange(len(k), device=self.device)) % queue.shape[1]
            queue[:, slots] = k.T.to(queue.dtype)
            place = (place + len(k)) % queue.shape[1]

        return {"images_per_s": len(first) / self.seconds(work)}

    def on_meta(self, settings: Pretrain) -> Any:
        built = estimate.build(settings, estimate.Packed(10_000, 3, self.side), 0)
        assert built is not None
        return built[0]

    def forward_flops(self, trunk: torch.nn.Module, images: torch.Tensor) -> int:
        """Of one forward pass of a batch; a step is four: query forward, twice that backward, key forward."""
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counted, torch.no_grad():
            trunk(images)
        return counted.get_total_flops()

    def end_to_end(self) -> dict[str, Any]:
        """Training from shards: images a second and the share of the time that steps wait for images."""
        folder, shards, run = (self.out / name for name in ("photos", "shards", "run"))
        copies = max(1, -(-(2 if self.small else 40) * self.batch // len(self.photos)))
        if not (shards / "manifest.json").exists():
            folder.mkdir(exist_ok=True)
            for at, (copy, photo) in enumerate(itertools.product(range(copies), self.photos)):
                link = folder / f"{at:06d}-{copy}{photo.suffix}"
                if not link.exists():
                    link.symlink_to(photo.resolve())
            shards.mkdir(exist_ok=True)
            pack.run(Pack(source=f"folder:{folder}", test=0.02, threads=self.world.threads), 0, {}, shards, self.world)
        run.mkdir(exist_ok=True)
        pretrain.run(self.settings("bf16"), 0, {"shards": shards}, run, self.world)
        rows = [json.loads(line) for line in (run / "timings.jsonl").read_text().splitlines()]
        rows = [row for row in rows if "speed/images_per_s" in row]
        rows = rows[1:-1] or rows  # the first ones start up, the last ones save
        rates, waits = ([row[f"speed/{name}"] for row in rows] for name in ("images_per_s", "wait_share"))
        return {"images_per_s": statistics.median(rates), "wait_share": statistics.median(waits)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--small", action="store_true", help="sizes for a CPU: shows that it runs, measures nothing")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    bench, path = Bench(options.photos, options.out, options.small), options.out / "gpu.json"
    done: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    precisions, modes = ("fp32", "tf32", "bf16"), ("eager",) if options.small else ("eager", "compile", "graphs")
    steps = [(p, m) for m in modes for p in reversed(precisions)]
    pieces: dict[str, Callable[[], dict[str, Any]]] = {"device": bench.name}
    pieces |= {f"matmul {p}": lambda p=p: bench.matmul(p) for p in precisions}
    pieces |= {"decode": bench.decoding, "photometrics": bench.photometrics}
    pieces |= {f"step {p} {m}": lambda p=p, m=m: bench.step(p, m) for p, m in steps if m == "eager"}
    pieces |= {f"step {p} of plain torch": lambda p=p: bench.peer(p) for p in precisions}
    pieces |= {"step 32 pixels bf16 of plain torch": lambda: bench.peer("bf16", 32)}
    pieces |= {f"step 32 pixels bf16 {m}": lambda m=m: bench.step("bf16", m, 32) for m in modes}
    pieces |= {"end to end bf16": bench.end_to_end}
    pieces |= {f"step {p} {m}": lambda p=p, m=m: bench.step(p, m) for p, m in steps if m != "eager"}
    failed: list[str] = []
    for name in [name for name in pieces if name not in done]:
        try:
            done[name] = pieces[name]()
        except Exception as error:  # the card is lent for minutes: the other pieces are not lost with this one
            failed.append(name)
            print(name, f"failed: {type(error).__name__}: {error}", flush=True)
        else:
            path.write_text(json.dumps(done, indent=1) + "\n")
            print(name, json.dumps(done[name]), flush=True)
        bench.release()
        lines = [f"| {key} | {', '.join(f'{k} {v}' for k, v in row.items())} |" for key, row in done.items()]
        lines += [f"| {key} | not measured: it failed |" for key in failed]
        (options.out / "gpu.md").write_text("\n".join(["| piece | result |", "|---|---|", *lines]) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
