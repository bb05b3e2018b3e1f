"""Excess energy of predicted sparse codes by the number of layers, of LISTA and its kin, trained anew at each depth.

    uv run python -m benchmarks.lista [STEPS [FIGURE.png]]

On held-out patches of the digits inside scikit-learn, of a dictionary that is learned once: (P(z) - min P) / min P in
percent, beside ISTA's and FISTA's after as many steps, whose layers nobody trains. STEPS: of each network's training
(400), as the codes stage trains it.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

from pipeline import sheets
from pipeline.settings.objectives import LISTA
from pipeline.settings.stages import Codes, Pack
from pipeline.sparse import features, solvers
from pipeline.sparse.features import Coder
from pipeline.stages import codes, pack
from pipeline.world import World

DEPTHS = (1, 2, 3, 5, 8, 12)
FORMS = {
    "LISTA": LISTA(),
    "LISTA, all layers": LISTA(supervision="all"),
    "LISTA-CP": LISTA(form="coupled", supervision="all"),
    "ALISTA": LISTA(form="analytic", supervision="all"),
    "step-LISTA": LISTA(form="steps", supervision="all"),
}
SETTINGS = Codes(data="shards", atoms=192)


def curves(steps: int) -> dict[str, list[float]]:
    """Excess energy in percent at each of `DEPTHS`, by method."""
    world, found = World.single(device="cpu"), {}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        pack.run(Pack(), 0, {}, out, world)
        train, test = codes.signals(SETTINGS, 0, {"shards": out}, world.device)
        white = features.whitening(train.take(np.arange(SETTINGS.signals)), SETTINGS.whitening)
        coder = Coder(SETTINGS, *white, codes.learn(SETTINGS, 0, train, white, out, world).atoms)
        y, d, penalty = white(test.take(np.arange(SETTINGS.held_out))), coder.dictionary, SETTINGS.penalty
        least = solvers.energy(y, d, solvers.encode(y, d, penalty, 1e-6).z, penalty).sum()
        for name in ("ISTA", "FISTA"):
            at = list(solvers.iterates(y, d, penalty, max(DEPTHS), momentum=name == "FISTA"))
            found[name] = [at[depth] for depth in DEPTHS]
        for name, form in FORMS.items():
            found[name] = []
            for depth in DEPTHS:
                made = SETTINGS.model_copy(
                    update={"lista": form.model_copy(update={"layers": depth}), "lista_steps": steps}
                )
                network = codes.train_lista(made, 0, train, coder, out / f"{name}-{depth}", world)
                found[name].append(network(y).detach())
    return {
        name: [100 * float(solvers.energy(y, d, z, penalty).sum() / least - 1) for z in several]
        for name, several in found.items()
    }


def draw(found: dict[str, list[float]], path: str) -> None:
    figure, page = sheets.canvas(8, 6)
    plot = figure.add_subplot()
    for name, values in found.items():
        plot.plot(DEPTHS, values, marker="o", label=name)
    plot.set(xlabel="layers, or steps", ylabel="excess energy, %", yscale="log", xticks=DEPTHS)
    plot.legend()
    from PIL import Image

    Image.fromarray(sheets.drawn(page)).save(path)


def main(steps: int = 400, figure: str = "") -> None:
    found = curves(steps)
    print("| excess energy in %, layers or steps | " + " | ".join(map(str, DEPTHS)) + " |")
    print("|---|" + "---|" * len(DEPTHS))
    for name, values in found.items():
        print(f"| {name} | " + " | ".join(f"{value:.2f}" for value in values) + " |")
    if figure:
        draw(found, figure)


if __name__ == "__main__":
    main(*(kind(word) for kind, word in zip((int, str), sys.argv[1:], strict=False)))
