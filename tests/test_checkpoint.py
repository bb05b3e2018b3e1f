"""Checkpoints are whole or not there, and a damaged one is never believed."""

import json

import pytest
import torch
from safetensors.torch import load_file

from pipeline.tensors import write
from pipeline.training import checkpoint


def tensors(value: float) -> dict[str, torch.Tensor]:
    tied = torch.full((3,), value)
    return {"a": tied, "b": tied.view(3, 1), "c": torch.arange(5)}


def test_round_trip_and_keep(tmp_path):
    for step in (10, 20, 30):
        checkpoint.save(tmp_path, step, tensors(step), {"seed": 1}, keep=2)
    assert checkpoint.steps(tmp_path) == [20, 30]
    found, state = checkpoint.newest(tmp_path)
    assert state["step"] == 30 and state["seed"] == 1
    assert all(torch.equal(found[k], v) for k, v in tensors(30).items())


def test_what_a_killed_save_left_goes_with_the_next(tmp_path):
    (tmp_path / ".00000015.part").mkdir()
    (tmp_path / ".00000015.part" / checkpoint.TENSORS).write_bytes(b"half")
    checkpoint.save(tmp_path, 20, tensors(20), {"seed": 1}, keep=2)
    assert [p.name for p in tmp_path.iterdir()] == ["00000020"]


def test_same_bytes_twice(tmp_path):
    for name in ("x", "y"):
        checkpoint.save(tmp_path / name, 1, tensors(1), {"seed": 1}, keep=1)
    for file in ("tensors.safetensors", "state.json"):
        assert (tmp_path / "x/00000001" / file).read_bytes() == (tmp_path / "y/00000001" / file).read_bytes()


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


@pytest.mark.parametrize(
    "harm",
    [
        lambda p: flip(p / "tensors.safetensors"),
        lambda p: (p / "tensors.safetensors").write_bytes(b""),
        lambda p: (p / "tensors.safetensors").unlink(),
        lambda p: (p / "state.json").write_text("{"),
        lambda p: (p / "state.json").write_bytes(b"\xff\xfe"),
        lambda p: (p / "state.json").write_text("[]"),
        lambda p: (p / "state.json").write_text(json.dumps({"step": 30})),
        lambda p: (p / "state.json").unlink(),
    ],
    ids=["flipped", "empty", "gone", "torn state", "binary state", "list", "no digest", "no state"],
)
def test_a_damaged_checkpoint_is_passed_over(tmp_path, harm, capsys):
    for step in (20, 30):
        checkpoint.save(tmp_path, step, tensors(step), {}, keep=2)
    harm(tmp_path / "00000030")
    _, state = checkpoint.newest(tmp_path)
    assert state["step"] == 20
    assert "00000030" in capsys.readouterr().out


def test_a_half_written_one_is_not_there(tmp_path):
    (tmp_path / ".00000040.part").mkdir()
    assert checkpoint.newest(tmp_path) is None
    checkpoint.save(tmp_path, 40, tensors(4), {}, keep=1)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("make", [lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), torch.optim.AdamW])
def test_optimiser_goes_on_bit_for_bit(make):
    def steps(parameters, optimiser, n):
        for _ in range(n):
            optimiser.zero_grad()
            sum((p**3).sum() for p in parameters).backward()
            optimiser.step()

    first = [torch.nn.Parameter(torch.linspace(-1, 1, 6).view(2, 3)), torch.nn.Parameter(torch.ones(2))]
    other = make(first)
    steps(first, other, 3)
    second = [torch.nn.Parameter(p.detach().clone()) for p in first]
    restored = make(second)
    moments, numbers = checkpoint.pack_optimiser(other)
    checkpoint.unpack_optimiser(restored, {k: v.clone() for k, v in moments.items()}, numbers)
    steps(first, other, 3)
    steps(second, restored, 3)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_tensors_are_readable_as_any_other_file(tmp_path):
    shared = torch.arange(6.0)
    (tmp_path / "other").touch()
    write({"a": shared, "b": shared[2:], "t": shared.view(2, 3).T}, tmp_path / "x.safetensors")
    assert (tmp_path / "x.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode
    assert torch.equal(load_file(tmp_path / "x.safetensors")["t"], shared.view(2, 3).T)
