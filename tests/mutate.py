"""Deliberate errors, one at a time, in a copy of the code: do the tests that should notice it fail?

    python -m tests.mutate [--only WORD ...]        WORD: part of a mutation's name or file

The copy is made afresh; this tree is not touched. First the tests run on the copy as it is, since a test that fails
anyway notices nothing. Ends with 1 where an error survived, 2 where a mutation or a test no longer fits the code.
"""

import argparse
import importlib
import multiprocessing
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
COPIED = ("pipeline", "tests", "configs", "jobs", "slurm", "benchmarks", "pyproject.toml", "README.md", "docs")
USED = ("torch", "torchvision", "numba", "scipy.stats", "sklearn", "hypothesis", "safetensors.torch", "pydantic")
"""What tests import that is not ours: imported once, before the forks."""
NOTICED, PASSED, SECONDS, SAID = 1, 0, 300, "pytest.txt"


class Mutation(NamedTuple):
    """``old``, which stands once in ``file``, becomes ``new``; ``tests``, by their ids without "tests/", notice."""

    name: str
    file: str
    old: str
    new: str
    tests: str

    @property
    def path(self) -> Path:
        return Path("pipeline", self.file)


def copied(to: Path) -> Path:
    """The code and its tests below a folder, with what numba has compiled of it."""
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, to / name, ignore=shutil.ignore_patterns("*.pyc"))
        elif (ROOT / name).exists():
            shutil.copy2(ROOT / name, to / name)
    return to


def fits(mutation: Mutation, root: Path = ROOT) -> bool:
    """Whether the text to be changed is there, once."""
    path = root / mutation.path
    return path.exists() and path.read_text().count(mutation.old) == 1 and mutation.old != mutation.new


def run(tests: list[str], root: Path) -> int:
    """pytest's exit code, in a fork of this process: what it has imported need not be imported again."""
    process = multiprocessing.get_context("fork").Process(target=inside, args=(tests, root))
    process.start()
    process.join()
    return process.exitcode or 0


def inside(tests: list[str], root: Path) -> None:
    """Ends this process as pytest ends on the tests below a folder, where what it says is kept."""
    with open(root / SAID, "w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    os.chdir(root)
    os.environ["PYTHONPATH"] = str(root)  # of the processes that tests start
    sys.path.insert(0, str(root))
    for name in [name for name in sys.modules if name.split(".")[0] in ("tests", "pipeline")]:
        del sys.modules[name]
    words = ["-x", "-n", "0", "-m", "not gpu", "-p", "no:cacheprovider", f"--timeout={SECONDS}"]
    os._exit(pytest.main([*words, *(f"tests/{test}" for test in tests)]))


def attempt(mutation: Mutation, root: Path) -> int:
    """pytest's exit code in a copy that holds the error, and afterwards no longer."""
    path = root / mutation.path
    text, times = path.read_text(), path.stat()
    path.write_text(text.replace(mutation.old, mutation.new))
    try:
        return run(mutation.tests.split(), root)
    finally:
        path.write_text(text)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def main(words: list[str] | None = None) -> int:
    from tests.mutations import MUTATIONS

    parser = argparse.ArgumentParser(prog="python -m tests.mutate", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", default=[""], metavar="WORD", help="part of a mutation's name or file")
    only = parser.parse_args(words).only
    chosen = [m for m in MUTATIONS if any(word in m.name or word in m.file for word in only)]
    if stale := [m.name for m in chosen if not fits(m)]:
        print(f"their text is not in their file once: {', '.join(stale)}; change them in tests/mutations.py")
        return 2
    os.environ |= {"OMP_NUM_THREADS": "1"}
    for name in USED:
        importlib.import_module(name)
    survived, broken = [], []
    with tempfile.TemporaryDirectory(prefix="mutate-") as place:
        root = copied(Path(place))
        tests = sorted({test for m in chosen for test in m.tests.split()})
        if run(tests, root) != PASSED:
            print((root / SAID).read_text()[-2000:])
            print("a test fails, or is not there, before anything is changed: mend it, or tests/mutations.py")
            return 2
        for at, mutation in enumerate(chosen, 1):
            code = attempt(mutation, root)
            verdict = {NOTICED: "noticed", PASSED: "SURVIVED"}.get(code, f"pytest ended with {code}")
            survived += [mutation.name] if code == PASSED else []
            broken += [mutation.name] if code not in (NOTICED, PASSED) else []
            print(f"{at:3}/{len(chosen)} {verdict:9} {mutation.file}: {mutation.name}", flush=True)
    print(f"{len(chosen) - len(survived) - len(broken)} of {len(chosen)} noticed", *survived, *broken, sep="\n  ")
    return 2 if broken else int(bool(survived))


if __name__ == "__main__":
    sys.exit(main())
