"""The report: a page that needs nothing but itself, whose every number is that of results.json."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline import cli, plan, report
from pipeline.commands.run import load
from pipeline.report import charts, confusion, curves, facts, gather, page, rows
from tests.test_tensorboard import CHROMIUM

CLASSES = ["<b>cat & dog", 'it\'s "ö"', "{{ 7 * 7 }}"]
CONFIG = """\
root: runs
stages:
  shards: {kind: pack, source: "folder:photos", test: 0.3}
  _moco_: {kind: pretrain, data: shards, net: {kind: cnn, width: 4, depth: 1}, views: {kind: characters}, batch: 32,
    steps: 8, log_steps: 2, snapshots: 1, objective: {kind: moco, queue: 32, head: {hidden: 8, dim: 4}}}
  probe: {kind: probe, data: shards, encoders: [_moco_], draws: 2, per_class: 4}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Iterator[Path]:
    """A folder with photographs of three classes, a config, and its runs of two seeds."""
    where, monkeypatch = tmp_path_factory.mktemp("report"), pytest.MonkeyPatch()
    rng = np.random.default_rng(0)
    for k, name in enumerate(CLASSES):
        (where / "photos" / name).mkdir(parents=True)
        for i in range(40):
            noise = rng.integers(0, 256, (10, 10), np.uint8)
            noise[:, 3 * k : 3 * k + 3] //= 2
            Image.fromarray(noise).save(where / "photos" / name / f"<i>{i}.png")
    (where / "tiny.yaml").write_text(CONFIG)
    monkeypatch.chdir(where)
    monkeypatch.setenv("PIPELINE_REPORT", "yes")
    assert cli.main(["run", "tiny.yaml", "seed=0,1", "--here"]) == 0
    yield where
    monkeypatch.undo()


def written(*words: str) -> tuple[Path, dict[str, Any]]:
    """The page of tiny.yaml with overrides, and results.json."""
    path = report.write(["tiny.yaml", *words], Path("runs"), variants(*words))
    return path, json.loads((path.parent / "results.json").read_text())


def variants(*words: str, config: str = "tiny.yaml") -> dict[str, list[plan.PlannedStage]]:
    return {mark: plan.plan(cfg, True) for mark, cfg in load(config, words).items()}


class Page(HTMLParser):
    """``elements``: (tag, attributes, text inside) of what names its place in results.json; ``rest``: text that does
    not; ``tags``: every tag with its attributes."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, Any]]] = []
        self.elements: list[tuple[str, dict[str, Any], str]] = []
        self.rest: list[str] = []
        self.open: list[tuple[str, dict[str, Any], list[str]]] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "path", "use", "circle", "rect"):
            self.open.append((tag, dict(attrs), []))

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag in ("path", "use", "circle", "rect"):
            return
        name, attributes, texts = self.open.pop()
        assert name == tag, (name, tag)
        if {"data-key", "data-part", "data-count"} & set(attributes):
            self.elements.append((name, attributes, "".join(texts)))

    def handle_data(self, data):
        named = [entry for entry in self.open if {"data-key", "data-part", "data-count"} & set(entry[1])]
        if named:
            named[-1][2].append(data)
        elif not any(tag in ("style", "svg") for tag, _, _ in self.open):
            self.rest.append(data)


def at(results: Any, pointer: str) -> Any:
    """What a JSON Pointer leads to (RFC 6901)."""
    for part in pointer.split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        results = results[int(name)] if isinstance(results, list) else results[name]
    return results


def same(text: str, value: Any) -> bool:
    """Whether a text is this value: a word as it is; a number to the digits shown, in whatever unit."""
    if isinstance(value, str):
        return text in (value, value[:8])
    unit = {"bytes": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "s": 1}.get(text.split(" ")[-1], 1)
    digits = text.split(" ")[0].replace(",", "").replace("−", "-")
    last = 10.0 ** -len(digits.partition("e")[0].partition(".")[2]) * 10.0 ** int(digits.partition("e")[2] or 0)
    return any(abs(float(digits) * unit / by - value) <= 0.5001 * last * unit / by for by in (1, 100)) or (
        unit > 1 and abs(float(digits) * unit / value - 1) < 0.005
    )


def check(path: Path, results: dict[str, Any]) -> Page:
    """Every number and name is at its place in results.json, and no digit is anywhere else but in the prose's 95 %."""
    found = Page(path.read_text())
    assert len(found.elements) > 20
    for _, attributes, text in found.elements:
        if "data-part" in attributes:
            last = attributes["data-part"].split("/")[-1].replace("~1", "/").replace("~0", "~")
            assert text == last and at(results, attributes["data-part"]) is not None
            continue
        if "data-count" in attributes:
            assert text == str(len(at(results, attributes["data-count"])))
            continue
        value = at(results, attributes["data-key"])
        assert same(text, value), (attributes, text, value)
        if "value" in attributes:
            assert float(attributes["value"]) == value
    left = " ".join(found.rest).replace("95\xa0%", "").replace("holds 0", "")
    assert not re.findall(r"[^\n]*\d[^\n]*", left)
    return found


def test_a_run_ends_with_its_page_whose_numbers_are_those_of_results(place):
    (drawn,) = (place / "runs/pages").glob("tiny-*/report.html")
    before = drawn.read_bytes(), (drawn.parent / "results.json").read_bytes()
    path, results = written("seed=0,1")
    assert path.resolve() == drawn and (path.read_bytes(), (path.parent / "results.json").read_bytes()) == before
    assert results["schema"] == facts.SCHEMA and results["incomplete"] == [] and len(before[0]) < 5e6
    check(path, results)
    (probe,) = results["probes"]
    assert probe["seeds"] == [0, 1] and {r["label"] for r in probe["rows"]} == {
        "_moco_", "raw pixels", "untrained network of _moco_"
    }  # fmt: skip
    records = [json.loads(p.read_text()) for p in place.glob("runs/probe-*/artifact.json")]
    for row in probe["rows"]:
        for metric, value in row["values"].items():
            seeds = [record["metrics"]["rows"][row["name"]][metric] for record in records]
            assert value["mean"] == pytest.approx(np.mean(seeds)) and value["n"] == 2 and value["over"] == "seeds"
    lead = probe["verdict"]["pixels"]
    assert lead["low"] < lead["mean"] < lead["high"]
    assert probe["verdict"]["answer"] == ("undecided" if lead["low"] <= 0 <= lead["high"] else "ahead")
    assert {chart["tag"] for chart in results["losses"]} == {"learn/loss"}
    assert [len(chart["curves"]) for chart in probe["along"]] == [3, 3, 3]
    assert {t["stage"] for t in results["trainings"]} == {"_moco_ seed=0", "_moco_ seed=1"}


def test_of_one_seed_the_deviations_are_over_draws_and_images(place):
    path, results = written("seed=1")
    check(path, results)
    (probe,) = results["probes"]
    few, every = (probe["rows"][0]["values"][m] for m in ("linear_few", "linear_top1"))
    assert (few["n"], few["over"], every["over"]) == (2, "label draws", "test images")
    assert every["sd"] == pytest.approx((every["mean"] * (1 - every["mean"]) / every["n"]) ** 0.5)
    assert {d["over"] for d in probe["differences"]} == {"label draws and test images", "test images"}
    assert "run a sweep of seeds" in path.read_text()


def test_the_page_needs_nothing_but_itself(place):
    path, _ = written("seed=0")
    text = path.read_text()
    assert not re.findall(r"(?:https?:)?//[\w.-]+", re.sub(r'src="data:[^"]*"', "", text))
    found = Page(text)
    for tag, attributes in found.tags:
        assert tag not in ("script", "link", "iframe", "object", "base")
        assert not any(name.startswith("on") for name in attributes)
        assert attributes.get("src", "data:").startswith("data:") and attributes.get("href", "#").startswith("#")
        if tag == "img":
            assert len(attributes["alt"]) > 10
    drawings = [a for t, a in found.tags if t == "svg" and a.get("aria-hidden") != "true"]
    assert all(len(a["aria-label"]) > 10 for a in drawings + [a for _, a in found.tags if a.get("role") == "img"])
    ids = re.findall(r' id="([^"]*)"', text)
    assert len(ids) == len(set(ids)) and not set(re.findall(r'(?:href="|url\()#([\w-]+)', text)) - set(ids)


def test_names_of_classes_and_files_are_text_and_nothing_else(place):
    path, results = written("seed=0")
    text = path.read_text()
    assert "<b>cat" not in text and "<i>" not in text and "{{ 7 * 7 }}" in text and "&lt;b&gt;cat &amp; dog" in text
    mistakes = results["probes"][0]["confusion"]
    assert mistakes["classes"] == sorted(CLASSES)


def test_confused_images_are_those_that_were_taken_for_another_class(place):
    _, results = written("seed=0")
    mistakes = results["probes"][0]["confusion"]
    table, names = np.array(mistakes["table"]), mistakes["classes"]
    counts = [pair["count"] for pair in mistakes["pairs"]]
    assert counts == sorted(counts, reverse=True)
    assert sum(counts) <= table.sum() - table.trace()
    for pair in mistakes["pairs"]:
        assert table[names.index(pair["true"]), names.index(pair["taken"])] == pair["count"]
        assert len(pair["images"]) == min(pair["count"], confusion.IMAGES)
        for image in pair["images"]:
            assert image["name"].startswith(pair["true"])
            assert confusion.picture(Path(mistakes["shards"]), image["id"])
    assert confusion.picture(Path("gone"), 0) is None


def test_what_is_not_there_is_said_in_its_place(place, monkeypatch):
    """Only packed; begun and failed; with shards that are not packed; and a config without a probe."""
    path, results = written("_moco_.steps=9")
    check(path, results)
    assert results["incomplete"] == ["_moco_", "probe"] and "2</data> of" in path.read_text()
    folder = Path(next(s["folder"] for s in results["stages"] if s["name"] == "_moco_"))
    folder.mkdir()
    (folder / "begun.json").write_text("{}")
    assert [s["state"] for s in written("_moco_.steps=9")[1]["stages"]] == ["done", "stopped", "not begun"]
    (folder / "failed").write_text("1")
    (folder / "error.log").write_text("Traceback\nValueError: <img src=x>\n")
    path, results = written("_moco_.steps=9")
    check(path, results)
    assert "failed: <span" in path.read_text() and "ValueError: &lt;img src=x&gt;" in path.read_text()
    shutil.rmtree(folder)
    path, results = written("shards.test=0.4")
    check(path, results)
    assert {s["state"] for s in results["stages"]} == {"not begun"}
    Path("bare.yaml").write_text(CONFIG.partition("  probe:")[0])
    bare = report.write(["bare.yaml"], Path("runs"), variants(config="bare.yaml"))
    assert "has no probe, so nothing here says how good" in bare.read_text()


def test_the_numbers_of_any_stage_are_shown(place):
    """Whatever an artifact ends with, by groups and without asking for names."""
    metrics = {"log_likelihood": {"bound": -80.5, "se": 0.1}, "fid": 3, "said": ["x"], "fine": True, "rows": {"a": 1}}
    assert gather.numbers(metrics) == {"log_likelihood/bound": -80.5, "log_likelihood/se": 0.1, "fid": 3}
    path, results = written("seed=0")
    numbers = next(s["numbers"] for s in results["stages"] if s["name"] == "_moco_")
    assert numbers["learn/loss"] > 0 and "learn/loss</span>" in path.read_text()


def lead(low: float, high: float, against: str = "raw pixels") -> facts.Difference:
    decided = not low <= 0 <= high
    return facts.Difference("a", "b", "linear_few", against, (low + high) / 2, low, high, 10, "seeds", decided)


@pytest.mark.parametrize(
    ("low", "high", "answer"), [(0.01, 0.2, "ahead"), (-0.2, -0.01, "behind"), (-0.01, 0.2, "undecided")]
)
def test_the_verdict_says_no_where_raw_pixels_are_not_beaten(place, low, high, answer):
    metric = facts.Metric("linear_few", "linear, 4 labels a class")
    value = facts.Value(0.9, 0.01, 10, "label draws")
    row = facts.Row("a", "a", "", True, {"linear_few": value}, None)
    verdict = rows.verdict(metric, row, [lead(low, high), lead(-0.1, 0.1, "the next")])
    assert verdict.answer == answer and verdict.rival and not verdict.rival.decided
    found = gather.results(["tiny.yaml"], variants("seed=0"))
    text = page.html(replace(found, probes=[replace(found.probes[0], verdict=verdict)]))
    (said,) = re.findall(r'<section class="verdict \w+">(.*?)</section>', text, re.S)
    assert ("Yes:" in said) == (answer == "ahead") and ("No:" in said) == (answer != "ahead")
    assert "not told apart" in said


def test_curves_have_few_points_and_keep_both_ends():
    points = [(10 * i, float(i)) for i in range(100_000)]
    thinned = curves.curve("x", points)
    assert len(thinned.steps) == curves.POINTS and (thinned.steps[0], thinned.steps[-1]) == (0, 999_990)
    assert curves.curve("x", points[:3]).values == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("values", [[0.5], [2.0, 2.0], [0.0, float("nan"), 1e-9], [float("inf")], [-3e6, 7e6], []])
def test_any_curve_can_be_drawn(values):
    """Constant, without end, huge or of no points: within the drawing, between round numbers."""
    curve = facts.Curve("a", list(range(0, 10 * len(values), 10)), values, 0.0)
    drawn = charts.lines(facts.Chart("t", "<tag>", [curve] * 9), percent=False)
    assert "<tag>" not in drawn and "nan" not in drawn and "inf" not in drawn
    for x, y in re.findall(r"[ML]([\d.-]+) ([\d.-]+)", drawn):
        assert 0 <= float(x) <= charts.WIDTH and 0 <= float(y) <= charts.HEIGHT
    assert len(re.findall('class="middle"', drawn)) >= 1 and 3 <= len(re.findall('class="end"', drawn)) - 1 <= 9


def test_ticks_are_round():
    assert [*charts.Axis(-0.013, 0.213, 0, 1).ticks(5)] == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])
    assert [*charts.Axis(0.9, 3.1, 0, 1).ticks(5, least=1)] == [1, 2, 3]


def test_sheets_are_made_smaller_until_they_have_room(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (300, 1600, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    data, small = page.shrunk(tmp_path / "a.png", 100_000)
    assert len(data) <= 75_000 and not small
    Image.fromarray(noise[:8, :8]).save(tmp_path / "b.png")
    assert page.shrunk(tmp_path / "b.png", 100_000) == ((tmp_path / "b.png").read_bytes(), True)


def test_a_page_that_shows_the_same_results_is_left_as_it_is(place):
    """By a run, which has nothing to do; whatever it looks like, if it is there."""

    def again() -> str:
        return report.write(["tiny.yaml"], Path("runs"), every, only_news=True).read_text()

    every = variants()
    path = report.write(["tiny.yaml"], Path("runs"), every)
    path.write_text("as it is")
    assert again() == "as it is"
    kept = (path.parent / "results.json").read_text()
    (path.parent / "results.json").write_text(kept.replace('"done"', '"stopped"', 1))
    assert again() != "as it is" and (path.parent / "results.json").read_text() == kept


def test_a_sweep_says_what_is_not_the_same_for_all_seeds(place):
    """The protocol of each seed, where they differ; the pictures of the first."""
    results = gather.results(["tiny.yaml", "seed=0,1"], variants("seed=0,1")).json()
    protocol, records = results["probes"][0]["protocol"], [*place.glob("runs/probe-*/artifact.json")]
    each = {r["seed"]: r["metrics"]["protocol"] for r in (json.loads(p.read_text()) for p in records)}
    assert protocol["seed"] == [0, 1] and protocol["draws"] == each[0]["draws"]
    assert protocol["data"] == {f"seed={seed}": each[seed]["data"] for seed in (0, 1)}
    assert {s["stage"] for s in results["sheets"]} <= {s["label"] for s in results["stages"] if s["seed"] == 0}
    assert len(results["sheets"]) == len(gather.results(["tiny.yaml"], variants("seed=0")).sheets)


def test_a_page_that_cannot_be_drawn_fails_no_run(place, monkeypatch, capsys):
    monkeypatch.setenv("PIPELINE_REPORT", "yes")
    monkeypatch.setattr(page, "html", lambda results: 1 / 0)
    for path in place.glob("runs/pages/tiny-*/results.json"):
        path.unlink()
    assert cli.main(["run", "tiny.yaml", "--here"]) == 0
    assert "no report: division by zero" in capsys.readouterr().out


def test_the_command_says_where_the_page_is(place, capsys):
    assert cli.main(["report", "tiny.yaml", "seed=0,1"]) == 0
    assert Path(capsys.readouterr().out.strip()).name == "report.html"
    assert cli.main(["report", "tiny.yaml", "sed=0"]) == 2


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium to look with")
@pytest.mark.parametrize("width", [375, 1280])
def test_in_a_browser_nothing_is_cut(place, tmp_path, width):
    """Nothing reaches past the page's right edge, on a telephone either; no picture is broken."""
    path, _ = written("seed=0,1")
    script = """<script>onload = () => {
      const past = e => e.getBoundingClientRect().right > innerWidth + 1
      const wide = [...document.querySelectorAll("body *")].filter(past)
      const broken = [...document.images].filter(i => !i.naturalWidth)
      parent.postMessage([wide.map(e => e.outerHTML.slice(0, 80)), broken.length, document.images.length], "*")
    }</script>"""
    (tmp_path / "inner.html").write_text(path.read_text() + script)
    frame = f"""<iframe src=inner.html style="width: {width}px; height: 900px; border: 0"></iframe>
      <script>onmessage = e => document.title = JSON.stringify(e.data)</script>"""
    (tmp_path / "frame.html").write_text(frame)
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    words = [str(CHROMIUM), *options, "--virtual-time-budget=8000", f"file://{tmp_path / 'frame.html'}"]
    dom = subprocess.run(words, capture_output=True, text=True, timeout=120).stdout
    (title,) = re.findall(r"<title>(.*?)</title>", dom)
    wide, broken, images = json.loads(unescape(title))
    assert (wide, broken) == ([], 0) and images > 2
