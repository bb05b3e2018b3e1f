"""`pipeline parity`: silent where ranks agree, and names the tensor where they do not."""

from pathlib import Path

import pytest

from pipeline import cli
from pipeline.commands import parity
from pipeline.training import checkpoint

CONFIG = """\
root: ROOT
stages:
  shards: {kind: pack, source: digits}
  moco:
    kind: pretrain
    data: shards
    net: {kind: cnn, width: 8, norm: {kind: NORM}}
    views: {kind: characters}
    objective: {kind: moco, queue: 64, head: {hidden: 0, dim: 16}}
    batch: 32
"""


def config(tmp_path, norm: str) -> str:
    path = tmp_path / "c.yaml"
    path.write_text(CONFIG.replace("ROOT", str(tmp_path / "runs")).replace("NORM", norm))
    return str(path)


@pytest.mark.cluster
def test_ranks_that_agree(tmp_path, capsys):
    assert cli.main(["parity", config(tmp_path, "global"), "--steps", "2"]) == 0
    assert "moco: 1 and 2 processes, fp64: agree over 2 steps within 1e-10" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.cluster
def test_per_rank_statistics_are_found(tmp_path, capsys):
    assert cli.main(["parity", config(tmp_path, "local"), "--steps", "1"]) == 1
    said = capsys.readouterr()
    assert "moco: 1 and 2 processes, fp64: step 1: the loss is" in said.out and "norm.kind local" in said.err


def test_a_config_with_nothing_to_compare(tmp_path, capsys):
    path = tmp_path / "c.yaml"
    path.write_text("stages:\n  shards: {kind: pack, source: digits}\n")
    assert cli.main(["parity", str(path)]) == 2
    assert "no stage to compare" in capsys.readouterr().err


def test_the_first_tensor_that_differs_is_named(tmp_path):
    import torch

    for name, value in (("a", 1.0), ("b", 1.5)):
        folder = tmp_path / name
        tensors = {"objective.w": torch.full((2,), value), "objective.queue.ids": torch.arange(3)}
        checkpoint.save(folder / "checkpoints", 1, tensors, {}, 1)
        (folder / "metrics.jsonl").write_text('{"step": 1, "learn/loss": 2.0}\n')
    found = parity.first_difference(tmp_path / "a", tmp_path / "b", 1e-10)
    assert found == "step 1: objective.w [2] differs by 0.5, its largest entry is 1"
    assert parity.first_difference(tmp_path / "a", tmp_path / "a", 1e-10) is None
    assert parity.first_difference(tmp_path / "a", tmp_path / "b", 1e-10, weights=1.0) is None


def left(folder, loss: str = "2.0", steps=(1,), **tensors) -> Path:
    """What a short training leaves behind."""
    for step in steps:
        checkpoint.save(folder / "checkpoints", step, {f"objective.{k}": v for k, v in tensors.items()}, {}, 9)
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(f'{{"step": {s}, "learn/loss": {loss}}}\n' for s in steps))
    return folder


def test_what_is_not_a_number_agrees_with_nothing(tmp_path):
    """Nor with itself: two trainings that both broke have not been shown to be the same."""
    import torch

    good = left(tmp_path / "good", w=torch.ones(2))
    for name, value in (("nan", torch.nan), ("inf", torch.inf)):
        bad = left(tmp_path / name, w=torch.tensor([1.0, value]))
        for one, other, whose in ((good, bad, "several"), (bad, good, "the one process"), (bad, bad, "the one")):
            found = parity.first_difference(one, other, 1e-10)
            assert found is not None and found.startswith(f"step 1: objective.w [2] of {whose}")
    broken = left(tmp_path / "loss", "NaN", w=torch.ones(2))
    for one, other in ((good, broken), (broken, good), (broken, broken)):
        assert "the loss is" in str(parity.first_difference(one, other, 1e-10))
    assert parity.first_difference(good, good, 1e-10) is None


def test_what_was_not_compared_does_not_agree(tmp_path):
    import torch

    whole = left(tmp_path / "whole", steps=(1, 2), w=torch.ones(2))
    short = left(tmp_path / "short", w=torch.ones(2))
    nothing = left(tmp_path / "nothing", steps=())
    assert "steps [1], not [1, 2]" in str(parity.first_difference(whole, short, 1e-10))
    assert "nothing to compare" in str(parity.first_difference(nothing, nothing, 1e-10))
    more = left(tmp_path / "more", w=torch.ones(2), b=torch.ones(1))
    assert "only one of the two holds objective.b" in str(parity.first_difference(short, more, 1e-10))
    longer = left(tmp_path / "longer", w=torch.ones(3))
    assert "objective.w is [3], not [2]" in str(parity.first_difference(short, longer, 1e-10))
