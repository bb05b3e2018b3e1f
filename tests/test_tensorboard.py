"""TensorBoard shows what was promised: asked over HTTP, and looked at in a real browser where there is one."""

import json
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from pipeline.tags import find

ROOT = Path(__file__).parent.parent
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SHORT = [
    "moco.steps=20", "moco.snapshots=1", "pirl.steps=20", "pirl.snapshots=0", "vicreg.steps=20",
    "vicreg.snapshots=0", "vae.steps=20", "vae.snapshots=0", "plane.steps=20", "codes.signals=2048",
    "codes.lista_steps=20",
    "probe.draws=2", "probe.train_examples=400",
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
    """TensorBoard on the folder that the run ends with naming."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder,) = runs.glob("pages/quickstart-*/tensorboard")
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--port", str(port)]
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


ENCODERS = {"moco", "pirl", "vicreg", "codes", "vae", "plane", "raw_pixels", "random", "random_vae"}
LIMITS = {f"{limit} {of}" for limit in ("healthy", "collapsed") for of in ("dim=64 batch=128", "dim=256 batch=64")}
BESIDE = {"quickstart", "probe"} | LIMITS


def test_a_run_is_an_encoder_under_its_one_name(server):
    wait_for(lambda: set(ask(f"{server}/data/runs")) == ENCODERS | BESIDE)
    tags = ask(f"{server}/data/plugin/scalars/tags")
    moco = {"learn/loss", "energy/gap", "learn/queue_age", "speed/wait_share", "accuracy/linear_few"}
    assert moco <= set(tags["moco"])
    assert {"vae/elbo", "vae/active_units", "energy/test", "accuracy/knn_top1"} <= set(tags["vae"])
    assert {"codes/objective", "codes/energy", "codes/lista", "codes/held_out_explained"} <= set(tags["codes"])
    assert {"collapse/std", "collapse/directions"} == set(tags["healthy dim=64 batch=128"])


def test_every_plugin_has_its_page(server):
    wait_for(lambda: ask(f"{server}/data/plugins_listing")["projector"]["enabled"])
    listing = ask(f"{server}/data/plugins_listing")
    for plugin in ("scalars", "images", "custom_scalars", "hparams", "histograms", "text"):
        assert listing[plugin]["enabled"], plugin
    images = wait_for(lambda: ask(f"{server}/data/plugin/images/tags"))
    assert "views" in images["moco"] and "views" in images["pirl"] and "codes/dictionary" in images["codes"]
    assert {"samples", "reconstructions", "interpolations", "confusion"} <= set(images["vae"])
    assert {"latent/codes", "latent/plane"} <= set(images["plane"])


def test_every_tag_is_served_with_its_description(server):
    for plugin in ("scalars", "images", "histograms", "text"):
        found = wait_for(lambda plugin=plugin: ask(f"{server}/data/plugin/{plugin}/tags"))
        for run, tags in found.items():
            for tag in tags:
                assert find(tag) is not None, (run, tag)
                assert plugin == "text" or "Unit:" in tags[tag]["description"], (run, tag)


def test_every_chart_has_curves(server):
    """Asked as the page asks: by the regular expressions of each chart."""
    layout = wait_for(lambda: ask(f"{server}/data/plugin/custom_scalars/layout"))
    titles = [category["title"].partition("?")[0] for category in layout["category"]]
    assert titles[:3] == ["How good is it", "Did it collapse", "Is it learning"] and "Is it fed" in titles
    tags = [tag for found in ask(f"{server}/data/plugin/scalars/tags").values() for tag in found]
    for category in layout["category"]:
        for chart in category["chart"]:
            bands = chart.get("margin", {}).get("series", [])
            names = [name for band in bands for name in band.values()] or chart["multiline"]["tag"]
            assert all(any(re.match(name, tag) for tag in tags) for name in names), chart["title"]


def test_a_row_of_hparams_is_an_encoder(server):
    def rows():
        states = [f"STATUS_{state}" for state in ("UNKNOWN", "SUCCESS", "FAILURE", "RUNNING")]
        question = {"experimentName": "", "allowedStatuses": states, "colParams": [], "startIndex": 0, "sliceSize": 99}
        body = json.dumps(question).encode()
        request = urllib.request.Request(f"{server}/data/plugin/hparams/session_groups", body,
                                         {"Content-Type": "application/json"})  # fmt: skip
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)["sessionGroups"]

    found = wait_for(lambda: {row["hparams"]["encoder"]: row for row in rows()})
    assert set(found) == ENCODERS
    moco = found["moco"]["hparams"]
    assert moco["queue"] == 512 and moco["lr"] == 1e-3 and moco["seed"] == 0 and "moco-" in moco["folder"]
    assert {m["name"]["tag"] for m in found["moco"]["metricValues"]} >= {"accuracy/linear_few", "learn/loss"}


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium to look with")
def test_a_browser_draws_it(server, tmp_path):
    wait_for(lambda: len(ask(f"{server}/data/runs")) == len(ENCODERS | BESIDE))
    picture = tmp_path / "page.png"
    subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1400,1000", "--virtual-time-budget=20000",
            f"--screenshot={picture}", f"{server}/?tagFilter=accuracy%2Flinear#timeseries",
        ],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    from PIL import Image

    colours = Image.open(picture).convert("RGB").getcolors(1 << 24)
    assert colours is not None and len(colours) > 200  # an empty page has a handful
