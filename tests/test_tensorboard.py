"""TensorBoard shows what was promised: asked over HTTP, and looked at in a real browser where there is one."""

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SHORT = [
    "moco.steps=20", "moco.snapshots=1", "pirl.steps=20", "pirl.snapshots=0", "vae.steps=20", "vae.snapshots=0",
    "codes.signals=2048", "codes.lista_steps=20", "probe.draws=2", "probe.train_examples=400",
]  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("board") / "runs"
    command = [sys.executable, "-m", "pipeline", "run", "configs/quickstart.yaml", f"root={root}", "--here", *SHORT]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return root


@pytest.fixture(scope="module")
def server(runs):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(runs), "--port", str(port)]
    process = subprocess.Popen(
        [*command, "--host", "127.0.0.1"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    yield f"http://127.0.0.1:{port}"
    process.terminate()
    process.wait()


def ask(url: str):
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)


def wait_for(found, seconds: float = 90):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if result := found():
                return result
        except OSError:
            pass
        time.sleep(0.3)
    raise AssertionError("TensorBoard did not show it in time")


def test_every_promised_page_is_served(server, runs):
    names = wait_for(lambda: ask(f"{server}/data/runs"))
    kinds = ("moco", "pirl", "vae", "codes", "probe")
    wait_for(lambda: all(any(r.startswith(k) for r in ask(f"{server}/data/runs")) for k in kinds))
    wait_for(lambda: ask(f"{server}/data/plugins_listing")["projector"]["enabled"])
    listing = ask(f"{server}/data/plugins_listing")
    for plugin in ("scalars", "images", "custom_scalars", "hparams", "projector", "text"):
        assert listing[plugin]["enabled"], plugin
    scalars = ask(f"{server}/data/plugin/scalars/tags")
    images = ask(f"{server}/data/plugin/images/tags")

    def tags(table, start):
        return {tag for run, found in table.items() if run.startswith(start) for tag in found}

    assert {"learn/loss", "learn/lr", "energy/low", "energy/high", "energy/gap"} <= tags(scalars, "moco")
    assert {"learn/queue_age", "learn/accuracy", "speed/wait", "speed/images_per_s"} <= tags(scalars, "moco")
    assert {"vae/elbo", "vae/kl", "vae/recon", "vae/active_units"} <= tags(scalars, "vae")
    assert {"accuracy/linear_top1", "accuracy/linear_few", "accuracy/knn_top1"} <= tags(scalars, "probe")
    assert "views" in tags(images, "moco") and "views" in tags(images, "pirl")
    assert {"samples", "reconstructions", "interpolations"} <= tags(images, "drawn")
    assert {"latent/codes", "latent/plane"} <= tags(images, "drawn_plane")
    assert {"codes/dictionary"} <= tags(images, "codes")
    assert any("confusion" in t for t in tags(images, "probe"))
    layout = ask(f"{server}/data/plugin/custom_scalars/layout")
    assert len(layout["category"]) >= 4
    assert names


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium to look with")
def test_a_browser_draws_it(server, tmp_path):
    wait_for(lambda: len(ask(f"{server}/data/runs")) > 5)
    picture = tmp_path / "page.png"
    subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1400,1000", "--virtual-time-budget=20000",
            f"--screenshot={picture}", f"{server}/?tagFilter=probe%2Flinear#timeseries",
        ],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    from PIL import Image

    colours = Image.open(picture).convert("RGB").getcolors(1 << 24)
    assert colours is not None and len(colours) > 200  # an empty page has a handful
