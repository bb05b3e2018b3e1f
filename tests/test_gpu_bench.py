"""The GPU's benchmark runs to its end on a CPU, small, and goes on where it was stopped."""

import json
import subprocess
import sys

import numpy as np
import pytest

from pipeline.data.sources.base import png


@pytest.mark.slow
def test_every_piece_runs_and_is_kept(tmp_path):
    (tmp_path / "photos").mkdir()
    draw = np.random.default_rng(0)
    for i in range(6):
        (tmp_path / f"photos/{i}.png").write_bytes(png(draw.integers(0, 256, (40, 50, 3), dtype=np.uint8)))
    words = [sys.executable, "-m", "benchmarks.gpu", str(tmp_path / "photos"), str(tmp_path / "out"), "--small"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "out/gpu.json").read_text())
    assert len(found) == 15 and found["end to end bf16"]["images_per_s"] > 0
    assert all(found[f"step {p} eager"]["tflops"] > 0 for p in ("fp32", "tf32", "bf16"))
    assert all(found[f"step {p} of plain torch"]["images_per_s"] > 0 for p in ("fp32", "tf32", "bf16"))
    assert "not a measurement" in (tmp_path / "out/gpu.md").read_text()
    again = subprocess.run(words, capture_output=True, text=True)
    assert again.returncode == 0 and again.stdout == ""
