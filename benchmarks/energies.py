"""Whether a training of energies reaches its end at every seed: `python -m benchmarks.energies CONFIG ROOT STAGE
[COUNT [PROCESSES [KEY=VALUE ...]]]` runs STAGE, and what it needs, of a config whose stage `shards` packs the images.

Each seed is a process of its own, all on the same shards. Prints a line a seed as it ends, then how many have.
"""

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any


def command(config: str, stage: str, root: Path, *changes: str) -> list[str]:
    run = [sys.executable, "-m", "pipeline", "run", config, "--here", "--only", stage]
    return [*run, f"root={root}", *changes]


def trained(config: str, stage: str, root: Path, shards: Path, seed: int, *changes: str) -> dict[str, Any]:
    """What a seed has come to: exit code, seconds, and the numbers of the stages that it ran."""
    begun, place = time.perf_counter(), root / f"seed-{seed}"
    words = command(config, stage, place, f"seed={seed}", f"shards.source=shards:{shards}", *changes)
    done = subprocess.run(words, capture_output=True, text=True)
    found: dict[str, Any] = {"seed": seed, "code": done.returncode, "seconds": round(time.perf_counter() - begun)}
    for path in sorted(place.glob("*/artifact.json")):
        record = json.loads(path.read_text())
        found |= record["metrics"] if record["kind"] != "pack" else {}
    said = done.stdout[-300:] + done.stderr[:1500] + done.stderr[-300:]  # what was thrown comes before its trace
    print(json.dumps(found if done.returncode == 0 else found | {"error": said}))
    sys.stdout.flush()
    return found


def main(config: str, root: str, stage: str, count: str = "20", processes: str = "2", *changes: str) -> int:
    folder = Path(root).absolute()
    of_shards = [change for change in changes if change.startswith("shards.")]
    subprocess.run(command(config, "shards", folder, *of_shards), check=True)
    (shards,) = folder.glob("shards-*")
    rest = [change for change in changes if change not in of_shards]
    with ThreadPoolExecutor(int(processes)) as pool:
        found = list(pool.map(lambda seed: trained(config, stage, folder, shards, seed, *rest), range(int(count))))
    finished = sum(row["code"] == 0 for row in found)
    print(f"{finished} of {count} seeds finished")
    return 0 if finished == len(found) else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
